// Package subscribe reads a feed's stream the way a subscriber does: with the plain JetStream API and the right to read,
// wherever the stream is. It writes nothing, and leaves no consumer behind.
//
// What it promises:
//
//   - Read delivers every message of a range once and in order, whatever happens to the connection, the server or the consumer
//     meanwhile. (TestRead_outage)
//   - Export delivers the state of every record as the stream held it at one position, or an error. (TestExport_model)
//   - A stream that drops messages while it is read, or is made anew, is an error and not a gap. (TestRead_dropped, TestRead_recreated)
package subscribe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"clockbridge/bridge"
)

var (
	// ErrNoStream is wrapped where the feed has no stream.
	ErrNoStream = errors.New("there is no such stream")
	// ErrDropped is wrapped where messages went while they were being read: by the stream's limits, or purged.
	ErrDropped = errors.New("the stream dropped messages while it was read")
	// ErrRecreated is wrapped where the stream was deleted and made again while it was being read.
	ErrRecreated = errors.New("the stream was made anew while it was read, and its positions begin again")
	// ErrPast is wrapped where a stream does not keep what its past was.
	ErrPast = errors.New("the stream does not hold its past")
)

// Feed names a feed.
type Feed struct{ Tenant, Collection string }

// Feeds lists the feeds that have a stream, in the order of their names. It needs the permission to list streams.
func Feeds(ctx context.Context, js jetstream.JetStream) ([]Feed, error) {
	var all []Feed
	names := js.StreamNames(ctx)
	for name := range names.Name() {
		part := strings.Split(name, "_")
		if len(part) == 3 && part[0] == "PROTIME" {
			all = append(all, Feed{strings.ToLower(part[1]), strings.ToLower(part[2])})
		}
	}
	if err := names.Err(); err != nil {
		return nil, fmt.Errorf("list streams: %w", err)
	}
	slices.SortFunc(all, func(a, b Feed) int {
		return strings.Compare(a.Tenant+" "+a.Collection, b.Tenant+" "+b.Collection)
	})
	return all, nil
}

// Stream is a feed's stream. It is for one goroutine.
type Stream struct {
	Feed
	Name string

	// Trouble, if set, is told of the first failure in a row that is tried again, and nil when it is over.
	Trouble func(error)

	js      jetstream.JetStream
	decoder *bridge.Decoder
	created time.Time
	wanting bool // Trouble was told so
}

// Message is one message of the stream.
type Message struct {
	bridge.Event
	Subject string
	Stored  time.Time // by the stream
	Header  nats.Header
}

// State is what a stream holds at one moment.
type State struct {
	First, Last uint64 // positions; First is Last+1 of an empty stream
	Messages    uint64
	Subjects    uint64 // records, and the one for changes that could not be read
	PerSubject  int64  // how many messages of a record it keeps; less than 1 = all
}

// Open looks the stream of a feed up, and says what it holds: ErrNoStream if there is none.
func Open(ctx context.Context, js jetstream.JetStream, feed Feed) (*Stream, State, error) {
	s := &Stream{
		Feed: feed, Name: bridge.StreamName(feed.Tenant, feed.Collection), js: js,
		decoder: bridge.NewDecoder(feed.Tenant, feed.Collection),
	}
	state, err := s.State(ctx)
	return s, state, err
}

// State says what the stream holds. It is an error if it is not the stream that was opened.
func (s *Stream) State(ctx context.Context) (State, error) {
	asking, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	found, err := s.js.Stream(asking, s.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return State{}, fmt.Errorf("%s: %w", s.Name, ErrNoStream)
	}
	if err != nil {
		return State{}, fmt.Errorf("look up stream %s: %w", s.Name, err)
	}
	info := found.CachedInfo()
	switch {
	case s.created.IsZero():
		s.created = info.Created
	case !s.created.Equal(info.Created):
		return State{}, fmt.Errorf("%s: %w", s.Name, ErrRecreated)
	}
	return State{
		First: info.State.FirstSeq, Last: info.State.LastSeq, Messages: info.State.Msgs, Subjects: info.State.NumSubjects,
		PerSubject: info.Config.MaxMsgsPerSubject,
	}, nil
}

// Created is when the stream was made: positions of another one mean nothing here.
func (s *Stream) Created() time.Time { return s.created }

// At returns the position of the first message that was stored at t or later, or the one behind the last.
func (s *Stream) At(ctx context.Context, t time.Time) (position uint64, err error) {
	err = s.persist(ctx, func() error {
		consumer, err := s.consumer(ctx, jetstream.ConsumerConfig{DeliverPolicy: jetstream.DeliverByStartTimePolicy, OptStartTime: &t})
		if err == nil {
			position = consumer.CachedInfo().Delivered.Stream + 1
			s.release(consumer)
		}
		return err
	})
	return position, err
}

// subject is that of one record, or of all for "".
func (s *Stream) subject(id string) string {
	if id == "" {
		return bridge.SubjectPrefix(s.Tenant, s.Collection) + ".*"
	}
	return bridge.Subject(s.Tenant, s.Collection, id)
}

// answerTimeout is how long JetStream may take to answer.
const answerTimeout = 5 * time.Second

// next asks the stream's leader for the first position from `from` on with a message on subject, 0 for none: consumers and direct
// gets may be served by a replica that is behind.
func (s *Stream) next(ctx context.Context, from uint64, subject string) (uint64, error) {
	asking, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	prefix := "$JS.API."
	switch o := s.js.Options(); {
	case o.Domain != "":
		prefix = "$JS." + o.Domain + ".API."
	case o.APIPrefix != "":
		prefix = strings.TrimSuffix(o.APIPrefix, ".") + "."
	}
	reply, err := s.js.Conn().RequestWithContext(asking, prefix+"STREAM.MSG.GET."+s.Name, fmt.Appendf(nil, `{"seq":%d,"next_by_subj":%q}`, max(from, 1), subject))
	if err != nil {
		return 0, fmt.Errorf("look for a message of %s from %d on: %w", s.Name, from, err)
	}
	var answer struct {
		Error   *jetstream.APIError
		Message struct{ Seq uint64 }
	}
	err = json.Unmarshal(reply.Data, &answer)
	switch {
	case err != nil:
	case answer.Error != nil && answer.Error.ErrorCode == jetstream.JSErrCodeMessageNotFound:
		return 0, nil
	case answer.Error != nil && answer.Error.ErrorCode == jetstream.JSErrCodeStreamNotFound:
		return 0, fmt.Errorf("%s: %w", s.Name, ErrNoStream)
	case answer.Error != nil:
		err = answer.Error
	}
	if err != nil {
		return 0, fmt.Errorf("look for a message of %s from %d on: %w", s.Name, from, err)
	}
	return answer.Message.Seq, nil
}

// consumer makes a consumer that the server forgets soon after nobody pulls from it.
func (s *Stream) consumer(ctx context.Context, cfg jetstream.ConsumerConfig) (jetstream.Consumer, error) {
	asking, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	cfg.AckPolicy, cfg.MemoryStorage, cfg.Replicas, cfg.InactiveThreshold = jetstream.AckNonePolicy, true, 1, 30*time.Second
	consumer, err := s.js.CreateConsumer(asking, s.Name, cfg)
	if err != nil {
		return nil, fmt.Errorf("read stream %s: %w", s.Name, err)
	}
	return consumer, nil
}

// release deletes a consumer. Where that is not permitted, or nobody hears it, the server forgets it by itself.
func (s *Stream) release(consumer jetstream.Consumer) {
	if !s.js.Conn().IsConnected() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = s.js.DeleteConsumer(ctx, s.Name, consumer.CachedInfo().Name) // what remains is forgotten
}
