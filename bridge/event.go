package bridge

import (
	"github.com/nats-io/nats.go"
)

// Event is what one message of a feed's stream says to a subscriber.
type Event struct {
	ID       string // the record's; "" of a change that could not be read
	Version  string // changeVersion; versions of one record order as strings
	Position uint64
	Deleted  bool   // the record is gone altogether
	Date     string // the record's day, YYYY-MM-DD; "" where its data names none
	Origin   string // one of the Origin constants
	Time     string // when the change was read, RFC 3339
	Reason   string // why a change could not be read; "" of others
	Data     []byte // the record as the API sent it
}

// Unreadable reports whether the change was kept aside, since it could not be read.
func (e *Event) Unreadable() bool { return e.ID == "" }

// Decoder reads the messages of one feed's stream.
type Decoder struct{ codec codec }

// NewDecoder returns the decoder of a feed's messages.
func NewDecoder(tenant, collection string) *Decoder {
	return &Decoder{newCodec(tenant, collection, "")}
}

// Decode reads a message at a position of the stream. It is an error if the feed cannot have written it. The event shares data.
func (d *Decoder) Decode(subject string, h nats.Header, data []byte, position uint64) (Event, error) {
	m, err := d.codec.decode(subject, h, data, position)
	if err != nil {
		return Event{}, err
	}
	e := Event{
		ID: m.ID, Version: m.Version, Position: m.Position, Deleted: m.Deleted, Date: m.Date, Origin: m.origin, Time: h.Get(headerTime),
		Reason: m.reason, Data: m.data,
	}
	if m.invalid() {
		e.ID, e.Deleted = "", false
	}
	return e, nil
}
