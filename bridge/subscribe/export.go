package subscribe

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"

	"clockbridge/store"
)

// Export calls each with the last message of every record, deleted ones too, as the stream held them at its present end, and
// returns that position. The order is that of the positions. It begins anew, and calls begin each time, when the connection was lost
// or the stream dropped a message that was still to be delivered, and gives up after a few times: ErrDropped. After an error, what
// each was given is no export. What is held in memory are the positions of the messages that arrive while a consumer is made.
func (s *Stream) Export(ctx context.Context, begin func() error, each func(Message) error) (position uint64, err error) {
	for failed := 0; ; {
		if err := begin(); err != nil {
			return 0, err
		}
		before, err := s.persistState(ctx) // waits for a connection
		if err != nil {
			return 0, err
		}
		position, err = s.export(ctx, before, each)
		var own callerError
		switch failed++; {
		case err == nil:
			return position, nil
		case errors.As(err, &own):
			return 0, own.error
		case ctx.Err() != nil:
			return 0, ctx.Err()
		case final(err), failed == tries:
			return 0, err
		}
	}
}

// export is one attempt. An error of each comes back as a callerError.
func (s *Stream) export(ctx context.Context, before State, each func(Message) error) (uint64, error) {
	consumer, err := s.consumer(ctx, jetstream.ConsumerConfig{DeliverPolicy: jetstream.DeliverLastPerSubjectPolicy, FilterSubject: s.subject("")})
	if err != nil {
		return 0, err
	}
	defer s.release(consumer)
	at, err := s.State(ctx)
	if err != nil {
		return 0, err
	}
	// The consumer delivers the last message of each subject as of some position between before and at, and then whatever comes
	// behind. So only a subject with a message there can be delivered twice, or in a state that is not the last.
	later := map[string]uint64{}
	if at.Last > before.Last {
		err := s.Read(ctx, Range{From: before.Last + 1, To: at.Last}, func(m Message) error {
			later[m.Subject] = m.Position
			return nil
		})
		if err != nil {
			return 0, err
		}
	}
	// Every subject that there is at the position is delivered once, unless its message has gone since.
	left := at.Subjects
	take := func(m Message) error {
		if last, ok := later[m.Subject]; m.Position > at.Last || ok && last != m.Position {
			return nil
		}
		if left == 0 {
			// A replica that was behind when the consumer was made there shows what has been replaced before.
			return fmt.Errorf("read stream %s: it shows more records than it says it has", s.Name)
		}
		left--
		if err := each(m); err != nil {
			return callerError{err}
		}
		return nil
	}
	if consumer.CachedInfo().NumPending > 0 {
		err = s.pull(ctx, consumer, false, func(m Message, pending uint64) (bool, error) {
			return m.Position >= at.Last || pending == 0, take(m)
		})
	}
	switch {
	case err != nil:
		return 0, err
	case left > 0:
		return 0, fmt.Errorf("%s: %d of %d records at position %d: %w", s.Name, left, at.Subjects, at.Last, ErrDropped)
	}
	return at.Last, nil
}

// ExportAt is Export of an earlier position. It reads the stream twice, and what it must remember, the position of each record's last
// message, lies in a temporary file in dir ("" = the system's directory for those). ErrPast if the stream keeps only few
// messages of each record, or drops old ones.
func (s *Stream) ExportAt(ctx context.Context, position uint64, dir string, each func(Message) error) (err error) {
	state, err := s.persistState(ctx)
	switch {
	case err != nil:
		return err
	case position > state.Last:
		return fmt.Errorf("position %d: the stream %s ends at %d", position, s.Name, state.Last)
	case state.PerSubject > 0:
		return fmt.Errorf("%s keeps %d messages of each record: %w", s.Name, state.PerSubject, ErrPast)
	case state.First > 1 && position > 0:
		return fmt.Errorf("%s begins at %d: %w", s.Name, state.First, ErrPast)
	case position == 0:
		return nil
	}
	last, err := store.Temporary(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, last.Close()) }()
	index := &lastIndex{store: last}
	err = s.Read(ctx, Range{To: position}, func(m Message) error { return index.add(m) })
	if err == nil {
		err = index.flush()
	}
	if err != nil {
		return err
	}
	var run []Message
	show := func() error {
		shown, err := index.filter(run)
		run = run[:0]
		for _, m := range shown {
			if err := each(m); err != nil {
				return err
			}
		}
		return err
	}
	err = s.Read(ctx, Range{To: position}, func(m Message) error {
		if run = append(run, m); len(run) < indexRun {
			return nil
		}
		return show()
	})
	if err != nil {
		return err
	}
	return show()
}

// indexRun is how many messages go into one transaction.
const indexRun = 1000

// lastIndex knows the position of every subject's last message.
type lastIndex struct {
	store   *store.Store
	entries []store.Entry
}

func (x *lastIndex) add(m Message) error {
	x.entries = append(x.entries, store.Entry{ID: m.Subject, Position: m.Position})
	if len(x.entries) < indexRun {
		return nil
	}
	return x.flush()
}

func (x *lastIndex) flush() error {
	err := x.store.Commit(indexName, store.Checkpoint{}, store.Checkpoint{}, x.entries)
	x.entries = x.entries[:0]
	return err
}

// indexName is the only name in the index.
const indexName = "last"

// filter returns those messages that are the last of their subjects.
func (x *lastIndex) filter(run []Message) ([]Message, error) {
	ids := make([]string, len(run))
	for i := range run {
		ids[i] = run[i].Subject
	}
	known, err := x.store.Lookup(indexName, ids)
	if err != nil {
		return nil, err
	}
	shown := make([]Message, 0, len(run))
	for i, m := range run {
		if known[i].Position == m.Position {
			shown = append(shown, m)
		}
	}
	return shown, nil
}
