package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"clockbridge/bridge/subscribe"
)

// headerReplay says of a message that it is a replay, and of what: <stream>/<position>.
const headerReplay = "clockbridge-replay"

// publishGroup is how many messages are sent until all of them are known to have arrived.
const publishGroup = 2000

// publishPause is how long a group may wait for more.
const publishPause = time.Second

// publisher publishes a replay: in order, and each group for as long as it takes to arrive. A message that has arrived though nobody heard
// of it is sent again, with the Nats-Msg-Id that it had, by which a stream with a window for duplicates drops it.
type publisher struct {
	ctx      context.Context
	nc       *nats.Conn
	stream   *subscribe.Stream
	subject  string // without the last token, if that is the record's
	each     bool   // the last token is the record's
	acks     bool   // a stream holds the subject, and acknowledges
	file     string // "" = none
	note     replayNote
	resumed  uint64
	saved    uint64
	savedAt  time.Time
	group    []*nats.Msg
	position uint64 // everything up to here is in group or has arrived
}

// replayNote is what the file of --resume holds.
type replayNote struct {
	Stream   string    `json:"stream"`
	Created  time.Time `json:"created"` // the stream, which positions belong to
	Replay   string    `json:"replay"`  // what was asked for
	Position uint64    `json:"position"`
}

func newPublisher(ctx context.Context, s *reading, c *replayCmd) (*publisher, error) {
	o := &publisher{ctx: ctx, nc: s.js.Conn(), stream: s.Stream, file: c.Resume}
	o.subject, o.each = strings.CutSuffix(c.ToSubject, ".*")
	if err := checkTarget(o.subject); err != nil {
		return nil, err
	}
	looking, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	name, err := s.js.StreamNameBySubject(looking, c.ToSubject)
	switch {
	case err == nil && strings.HasPrefix(name, "PROTIME_"):
		return nil, usagef("to-subject: %s is held by %s, a feed's stream, which would then be in conflict", c.ToSubject, name)
	case ctx.Err() != nil:
		return nil, errors.New("interrupted")
	}
	o.acks = err == nil // who may not ask is in another account than JetStream is, and nobody acknowledges there
	o.note = replayNote{
		Stream: s.Name, Created: s.Created(),
		Replay: fmt.Sprintf("%+v from %s to %s into %s", c.selection, c.From, c.To, c.ToSubject),
	}
	return o, o.load()
}

// checkTarget refuses subjects that are no place for a replay: what a feed's stream may hold, and what NATS keeps for itself.
func checkTarget(subject string) error {
	switch first, _, _ := strings.Cut(subject, "."); {
	case subject == "" || strings.ContainsAny(subject, " \t\r\n*>") || strings.HasPrefix(subject, ".") || strings.HasSuffix(subject, ".") || strings.Contains(subject, ".."):
		return usagef("to-subject: must be a subject, with no wildcard but a last token *")
	case first == "protime":
		return usagef("to-subject: subjects that begin with protime belong to the feeds' streams, and a message from somebody else brings a feed into conflict")
	case strings.HasPrefix(first, "$") || first == "_INBOX" || first == "clockbridge":
		return usagef("to-subject: subjects that begin with %s are not for messages", first)
	}
	return nil
}

// load reads how far an earlier process came.
func (o *publisher) load() error {
	if o.file == "" {
		return nil
	}
	text, err := os.ReadFile(o.file)
	if errors.Is(err, os.ErrNotExist) {
		return o.save() // whether it can be written is better known now
	}
	if err != nil {
		return err
	}
	var was replayNote
	if err := json.Unmarshal(text, &was); err != nil {
		return fmt.Errorf("%s is not the file of a replay: %w", o.file, err)
	}
	same := was
	same.Position, same.Created = 0, o.note.Created
	switch {
	case same != o.note:
		return usagef("%s is the file of another replay: %s of %s", o.file, was.Replay, was.Stream)
	case !was.Created.Equal(o.note.Created):
		return fmt.Errorf("%s: the stream %s has been made anew since, and its positions begin again: remove the file to start anew", o.file, was.Stream)
	}
	o.resumed, o.saved, o.position = was.Position, was.Position, was.Position
	return nil
}

func (o *publisher) save() error {
	if o.file == "" {
		return nil
	}
	o.note.Position = o.position
	text, err := json.Marshal(o.note)
	if err != nil {
		return err
	}
	if err := replaceFile(o.file, append(text, '\n')); err != nil {
		return fmt.Errorf("keep how far the replay is: %w", err)
	}
	o.saved = o.position
	return nil
}

// replaceFile writes a file whole or not at all.
func replaceFile(name string, text []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+"-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

func (o *publisher) write(m *subscribe.Message) error {
	msg := &nats.Msg{Subject: o.subject, Data: m.Data, Header: m.Header} // nobody else needs it, and a copy would cost a tenth of the speed
	if o.each {
		msg.Subject += m.Subject[strings.LastIndexByte(m.Subject, '.'):]
	}
	for name := range msg.Header {
		if strings.HasPrefix(name, "Nats-") { // what they ask of a stream was meant for the first one
			delete(msg.Header, name)
		}
	}
	id := []string{o.stream.Name + "/" + strconv.FormatUint(m.Position, 10)}
	msg.Header[headerReplay], msg.Header[nats.MsgIdHdr] = id, id
	if len(o.group) == 0 && o.savedAt.IsZero() {
		o.savedAt = time.Now()
	}
	o.group, o.position = append(o.group, msg), m.Position
	if len(o.group) >= publishGroup || time.Since(o.savedAt) >= publishPause {
		return o.flush()
	}
	return nil
}

// idle notes that nothing was chosen up to a position.
func (o *publisher) idle(at uint64) error {
	o.position = at
	if at-o.saved < 100*publishGroup {
		return nil
	}
	return o.flush()
}

// flush sends what is left, until all of it has arrived, and keeps how far that is.
func (o *publisher) flush() error {
	const soon = 50 * time.Millisecond
	for pause := soon; len(o.group) > 0; pause = min(2*pause, 2*time.Second) {
		err := o.send()
		if err == nil {
			if pause > soon {
				o.stream.Trouble(nil)
			}
			break
		}
		var refused *jetstream.APIError
		if o.ctx.Err() != nil || errors.As(err, &refused) || errors.Is(err, nats.ErrMaxPayload) || errors.Is(err, nats.ErrConnectionClosed) || errors.Is(err, nats.ErrPermissionViolation) {
			return fmt.Errorf("publish replay: %w", err)
		}
		if pause == soon {
			o.stream.Trouble(fmt.Errorf("publish replay: %w", err))
		}
		select {
		case <-time.After(pause):
		case <-o.ctx.Done():
			return o.ctx.Err()
		}
	}
	clear(o.group)
	o.group, o.savedAt = o.group[:0], time.Now()
	if o.position == o.saved {
		return nil
	}
	return o.save()
}

// send sends the group. It has arrived if there is no error; otherwise some, all or none of it has.
func (o *publisher) send() error {
	ctx, cancel := context.WithTimeout(o.ctx, 10*time.Second)
	defer cancel()
	reconnects := o.nc.Stats().Reconnects
	if !o.acks {
		for _, msg := range o.group {
			if err := o.nc.PublishMsg(msg); err != nil {
				return err
			}
		}
		if err := o.nc.FlushWithContext(ctx); err != nil {
			return err
		}
		if o.nc.Stats().Reconnects != reconnects {
			return errors.New("the connection was lost meanwhile")
		}
		return o.refused()
	}
	inbox := o.nc.NewRespInbox()
	acks, err := o.nc.SubscribeSync(inbox)
	if err != nil {
		return err
	}
	defer acks.Unsubscribe() //nolint:errcheck // nobody answers any more
	for _, msg := range o.group {
		msg.Reply = inbox
		if err := o.nc.PublishMsg(msg); err != nil {
			return err
		}
	}
	if err := o.nc.FlushWithContext(ctx); err != nil {
		return err
	}
	if err := o.refused(); err != nil { // nobody will answer
		return err
	}
	for range o.group {
		ack, err := acks.NextMsgWithContext(ctx)
		if err != nil {
			return err
		}
		if err := readPublishAck(ack); err != nil {
			return err
		}
	}
	return nil
}

// refused is what NATS has said if it does not let this user publish the group: to what is published it does not answer. It is known once
// all has been flushed.
func (o *publisher) refused() error {
	last := o.nc.LastError()
	if !errors.Is(last, nats.ErrPermissionViolation) {
		return nil
	}
	for _, msg := range o.group {
		if strings.Contains(last.Error(), fmt.Sprintf("Publish to %q", msg.Subject)) {
			return last
		}
	}
	return nil
}

// readPublishAck reads what a stream answers to a message.
func readPublishAck(msg *nats.Msg) error {
	var ack struct {
		Error  *jetstream.APIError
		Stream string
	}
	if len(msg.Data) == 0 && msg.Header.Get("Status") == "503" {
		return nats.ErrNoResponders
	}
	if err := json.Unmarshal(msg.Data, &ack); err != nil {
		return fmt.Errorf("read acknowledgement: %w", err)
	}
	if ack.Error != nil {
		return ack.Error
	}
	if ack.Stream == "" {
		return errors.New("read acknowledgement: it names no stream")
	}
	return nil
}
