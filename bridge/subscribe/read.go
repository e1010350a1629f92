package subscribe

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Range says which messages are read.
type Range struct {
	From   uint64 // first position; 0 = the first that there is
	To     uint64 // last position; 0 = no end: what comes later is waited for
	Record string // id of the only record; "" = all
}

// heartbeat is how often the server shows that a consumer without messages is still there.
const heartbeat = time.Second

// tries is how often in a row something fails, on a connection that stands, until it is given up.
const tries = 6

// callerError is what the caller's function returned. It is not tried again.
type callerError struct{ error }

func (e callerError) Unwrap() error { return e.error }

// Read calls each with the messages of a range, in order, each once. It waits for as long as NATS cannot be reached, and ends with
// the range, with ctx, with the first error of each, or with one of this package's errors.
func (s *Stream) Read(ctx context.Context, r Range, each func(Message) error) error {
	begin, err := s.persistState(ctx)
	if err != nil {
		return err
	}
	at := reading{s: s, to: r.To, subject: s.subject(r.Record), all: r.Record == "", next: max(r.From, begin.First, 1), each: each}
	if at.to == 0 {
		at.to = math.MaxUint64
	}
	err = s.persist(ctx, func() error { return at.on(ctx, r.To == 0) })
	var own callerError
	if errors.As(err, &own) {
		return own.error
	}
	if err != nil {
		return err
	}
	end, err := s.persistState(ctx)
	if err != nil {
		return err
	}
	if at.gap != 0 && end.First > begin.First && at.gap <= end.First {
		return fmt.Errorf("%s, before position %d: %w", s.Name, end.First, ErrDropped)
	}
	return nil
}

// reading is a Read in progress.
type reading struct {
	s       *Stream
	next    uint64 // what is delivered next is here or behind
	to      uint64
	subject string
	all     bool   // no message is left out by subject
	gap     uint64 // the first position behind a gap
	each    func(Message) error
}

// on reads on until the range has ended, or something fails.
func (r *reading) on(ctx context.Context, follow bool) error {
	for {
		if _, err := r.s.State(ctx); err != nil { // is it still the same stream?
			return err
		}
		if r.next > r.to {
			return nil
		}
		if !follow {
			next, err := r.s.next(ctx, r.next, r.subject)
			if err != nil || next == 0 || next > r.to {
				return err
			}
		}
		if err := r.consume(ctx, follow); err != nil {
			return err
		}
	}
}

// consume delivers what a new consumer shows, until nothing more is pending there.
func (r *reading) consume(ctx context.Context, follow bool) error {
	consumer, err := r.s.consumer(ctx, jetstream.ConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: r.next, FilterSubject: r.subject,
	})
	if err != nil {
		return err
	}
	defer r.s.release(consumer)
	return r.s.pull(ctx, consumer, follow, func(m Message, pending uint64) (bool, error) {
		if m.Position < r.next {
			return false, nil
		}
		if m.Position > r.to {
			r.next = r.to + 1
			return true, nil
		}
		if r.all && r.gap == 0 && m.Position > r.next {
			r.gap = m.Position
		}
		if err := r.each(m); err != nil {
			return false, callerError{err}
		}
		r.next = m.Position + 1
		return m.Position == r.to || pending == 0 && !follow, nil
	})
}

// pull calls each with what a consumer delivers, until each says that it is done. It is an error if a message is missing.
func (s *Stream) pull(ctx context.Context, consumer jetstream.Consumer, follow bool, each func(m Message, pending uint64) (done bool, err error)) error {
	msgs, err := consumer.Messages(jetstream.PullMaxMessages(2000), jetstream.PullHeartbeat(heartbeat), jetstream.WithMessagesErrOnMissingHeartbeat(true))
	if err != nil {
		return fmt.Errorf("read stream %s: %w", s.Name, err)
	}
	defer msgs.Stop()
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	if !follow { // something is there, or the leader would not have said so
		stall := time.AfterFunc(answerTimeout, cancel)
		defer stall.Stop()
		progressed := each
		each = func(m Message, pending uint64) (bool, error) {
			stall.Stop() // the caller may take its time
			done, err := progressed(m, pending)
			stall.Reset(answerTimeout)
			return done, err
		}
	}
	for delivered := uint64(1); ; delivered++ {
		msg, err := msgs.Next(jetstream.NextContext(waiting))
		if err != nil {
			return fmt.Errorf("read stream %s: %w", s.Name, err)
		}
		meta, err := msg.Metadata()
		if err != nil {
			return fmt.Errorf("read stream %s: %w", s.Name, err)
		}
		if meta.Sequence.Consumer != delivered {
			return fmt.Errorf("read stream %s: a message was lost on its way", s.Name)
		}
		event, err := s.decoder.Decode(msg.Subject(), msg.Headers(), msg.Data(), meta.Sequence.Stream)
		if err != nil {
			return callerError{fmt.Errorf("read stream %s: %w", s.Name, err)}
		}
		s.fine()
		done, err := each(Message{Event: event, Subject: msg.Subject(), Stored: meta.Timestamp, Header: msg.Headers()}, meta.NumPending)
		if done || err != nil {
			return err
		}
	}
}

// persistState is State, tried again.
func (s *Stream) persistState(ctx context.Context) (state State, err error) {
	err = s.persist(ctx, func() error { state, err = s.State(ctx); return err })
	return state, err
}

// persist does something until it succeeds, ctx ends, or it can be seen that it never will: it fails again and again though the
// connection stands. While there is no connection, it waits.
func (s *Stream) persist(ctx context.Context, do func() error) error {
	pause := backoff.NewExponentialBackOff(backoff.WithInitialInterval(50*time.Millisecond), backoff.WithMaxInterval(2*time.Second), backoff.WithMaxElapsedTime(0))
	failed := 0
	s.wanting = false
	for {
		reconnects := s.js.Conn().Stats().Reconnects
		err := do()
		if err == nil {
			s.fine()
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if final(err) {
			return err
		}
		if !s.wanting { // the first in a row
			failed = 0
			pause.Reset()
			s.wanting = true
			if s.Trouble != nil {
				s.Trouble(err)
			}
		}
		if s.js.Conn().IsConnected() && s.js.Conn().Stats().Reconnects == reconnects {
			failed++
		} else {
			failed = 0
		}
		if failed == tries {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause.NextBackOff()):
		}
	}
}

// fine ends a trouble.
func (s *Stream) fine() {
	if s.wanting {
		s.wanting = false
		if s.Trouble != nil {
			s.Trouble(nil)
		}
	}
}

// final reports whether trying again would not help.
func final(err error) bool {
	var own callerError
	return errors.As(err, &own) || errors.Is(err, ErrNoStream) || errors.Is(err, ErrRecreated) ||
		errors.Is(err, jetstream.ErrStreamNotFound) || errors.Is(err, nats.ErrConnectionClosed) || errors.Is(err, nats.ErrPermissionViolation)
}
