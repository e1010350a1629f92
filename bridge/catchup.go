package bridge

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"

	"clockbridge/store"
)

// catchUp makes checkpoint and index say what the stream holds: after a start, an append that was refused or whose
// outcome is unknown, a reconnect, and where the stream's end is another than this feed left it. It is the only repair there
// is, and doing it once more never hurts.
func (f *Feed) catchUp(ctx context.Context) error {
	if !f.cfg.NATS.IsConnected() {
		f.sound = false
		return disconnected(f.cfg.NATS)
	}
	reconnects := f.cfg.NATS.Stats().Reconnects
	if f.sound && f.reconnected() == nil {
		if untouched, err := f.untouched(ctx); err != nil || untouched {
			return err
		}
	}
	f.sound = false
	at, err := f.cfg.Store.Checkpoint(f.name)
	if err != nil {
		return fmt.Errorf("%w: read checkpoint of %s: %w", ErrStore, f.name, err)
	}
	f.at, f.stored = at, at
	state, batches, err := f.stream.open(ctx)
	if err != nil {
		return err
	}
	f.limits(state.Unlike)
	if err := f.out.reset(batches, state.Limited || state.First > 1); err != nil {
		return err
	}
	left := f.lease.checkpoint()
	takeover := left.Newer(f.at)
	if takeover && f.at.Position > 0 && (left.Losses != f.at.Losses || !left.Stream.Equal(f.at.Stream)) {
		// The stream has lost messages in other hands, so this index may speak of some that are gone.
		if err := f.cfg.Store.Reset(f.name); err != nil {
			return fmt.Errorf("%w: reset %s: %w", ErrStore, f.name, err)
		}
		f.at, f.stored = store.Checkpoint{}, store.Checkpoint{}
	}
	lost := false // what a later checkpoint than this one speaks of
	if takeover {
		if lost, err = f.misses(ctx, state, left); err != nil {
			return err
		}
		if left.Stream.Equal(f.at.Stream) {
			f.at.First = max(f.at.First, left.First)
		}
	}
	if err := f.compare(ctx, state, takeover && !lost && left.Position >= f.at.Position); err != nil {
		return err
	}
	known := f.at
	if takeover {
		known = left
	}
	if err := f.replay(ctx, state.Last, known); err != nil {
		return err
	}
	if takeover {
		if err := f.adopt(left, lost); err != nil {
			return err
		}
	}
	if f.at.Newer(left) {
		if err := f.lease.save(f.at); err != nil {
			return err
		}
	}
	f.sound, f.unheard, f.reconnects = true, 0, reconnects
	f.status.moved(f.at, nil)
	f.status.answered(f.at.Answered)
	return nil
}

// untouched reports whether the stream still ends where this feed left it. Nobody else should write it, and nothing should
// vanish from it; but an idle feed would be the last to know.
func (f *Feed) untouched(ctx context.Context) (bool, error) {
	state, err := f.stream.look(ctx)
	switch {
	case errors.Is(err, ErrNoStream):
		return false, nil
	case err != nil:
		return false, err
	case !state.Created.Equal(f.at.Stream), state.Last != f.at.Position:
		return false, nil
	case state.First > state.Last:
		f.purge(state)
		return true, nil
	}
	m, err := f.stream.get(ctx, state.Last)
	return m != nil && m.Position == state.Last || m == nil && err == nil && state.Last == f.hole, f.foreign(err)
}

func disconnected(nc *nats.Conn) error {
	if err := nc.LastError(); err != nil {
		return fmt.Errorf("%w (%s): %w", errDisconnected, nc.Status(), err)
	}
	return fmt.Errorf("%w (%s)", errDisconnected, nc.Status())
}

var (
	errDisconnected = errors.New("NATS unreachable")
	errBehind       = errors.New("the stream does not show all that it holds, it is looked at again")
	errReconnected  = errors.New("NATS connection was lost meanwhile, the stream is looked at again")
)

// compare finds out whether the stream still holds what the checkpoint says it does, and marks what it lost. That it
// ends at or behind the checkpoint's position proves nothing: a server can come back with its old last sequence and a
// hole in front of it. So the message at the position is looked at. vouched: the stream holds what a later checkpoint speaks of, so
// that what is gone at this one was removed since.
func (f *Feed) compare(ctx context.Context, state streamState, vouched bool) error {
	position := f.at.Position
	switch {
	case position == 0 && f.at.Stream.IsZero():
		to := f.at
		to.Stream = state.Created
		return f.commit(to, nil, nil)
	case !state.Created.Equal(f.at.Stream):
		return f.lose(ctx, 0, state, "the stream was recreated")
	case position == 0:
		return nil
	case state.Last < position:
		end, err := f.stream.before(ctx, state.Last+1) // its end may be a hole as well
		if err != nil {
			return f.foreign(err)
		}
		return f.lose(ctx, end, state, "the stream ends before the checkpoint")
	case state.First > position:
		f.purge(state)
		return nil
	}
	m, err := f.stream.get(ctx, position)
	if err != nil {
		return f.foreign(err)
	}
	if m == nil || m.Position != position {
		if vouched {
			f.purge(state)
			return nil
		}
		if dropped, err := f.dropped(ctx, position); err != nil || dropped {
			return err
		}
		replaced, err := f.replaced(ctx, state)
		if err != nil || replaced {
			return err
		}
		end, err := f.stream.before(ctx, position)
		if err != nil {
			return f.foreign(err)
		}
		switch missed, err := f.missed(ctx, end); {
		case err != nil:
			return err
		case !missed:
			f.log.Warn("the stream's last message was removed, no record misses it", "position", position, "surviving", end, "do", adviceHole)
			f.hole = position
			return nil
		}
		return f.lose(ctx, end, state, "the message at the checkpoint is gone")
	}
	agrees, err := f.agrees(m)
	if err != nil {
		return err
	}
	if !agrees {
		return f.lose(ctx, 0, state, "the message at the checkpoint is another one")
	}
	f.purge(state)
	return nil
}

// agrees reports whether the index speaks of m as the last message of its record, or knows that a later one is lost.
func (f *Feed) agrees(m *message) (bool, error) {
	known, err := f.lookup(m.ID)
	if err != nil {
		return false, err
	}
	if known.Position == 0 {
		return judge(known, m.Entry, false) == isFresh, nil
	}
	return known.Position == m.Position && known.Version == m.Version && known.Deleted == m.Deleted, nil
}

const adviceHole = "nothing if it was removed by hand; otherwise the stream lost a change that could not be read"

// missed reports whether the index speaks of any record whose message was behind end or is lost already, or of another past.
// Otherwise what is gone is a change that could not be read, or what another writer left: somebody has looked at it and removed
// it, and no repair would bring it back.
func (f *Feed) missed(ctx context.Context, end uint64) (bool, error) {
	entries, err := f.cfg.Store.Select(f.name, "", 1, func(e store.Entry) bool {
		return (e.Position == 0 || e.Position > end) && !isInvalidKey(e.ID)
	})
	if err != nil {
		return false, fmt.Errorf("%w: read index: %w", ErrStore, err)
	}
	if len(entries) > 0 || end == 0 {
		return len(entries) > 0, nil
	}
	m, err := f.stream.get(ctx, end)
	if err != nil || m == nil {
		return true, f.foreign(err)
	}
	agrees, err := f.agrees(m)
	return !agrees, err
}

// replaced reports whether the message at the checkpoint is missing because the stream keeps few messages per subject
// and a later one, written before a crash, took its place.
func (f *Feed) replaced(ctx context.Context, state streamState) (bool, error) {
	if !state.PerSubject || state.Last == f.at.Position {
		return false, nil
	}
	found := errors.New("found")
	err := f.stream.read(ctx, f.at.Position+1, func(m message) error {
		known, err := f.lookup(m.ID)
		if err == nil && (known.Position == f.at.Position || m.invalid()) {
			err = found
		}
		return err
	})
	if errors.Is(err, found) {
		return true, nil
	}
	return false, f.foreign(err)
}

// lose marks every index entry above end as lost from the stream and moves the checkpoint back to end. Where it is not
// certain that the index speaks of this stream, that is all of it: a backup, say, may hold what came before another
// loss, or before another process wrote. The entries come first: a crash in between finds the same loss again, since the
// message at the checkpoint is still gone, or, where all of the stream is in doubt, since the checkpoint names no stream
// any more.
func (f *Feed) lose(ctx context.Context, end uint64, state streamState, reason string) error {
	recreated := !state.Created.Equal(f.at.Stream)
	if end > 0 {
		m, err := f.stream.get(ctx, end)
		if err != nil {
			return f.foreign(err)
		}
		agrees := false
		if m != nil {
			if agrees, err = f.agrees(m); err != nil {
				return err
			}
		}
		if f.at.Losses > 0 || !agrees {
			end = 0
		}
	}
	lost := 0
	marking := f.at
	if end == 0 {
		marking.Stream = time.Time{}
	}
	for {
		entries, err := f.cfg.Store.Select(f.name, "", maxRun, func(e store.Entry) bool { return e.Position > end })
		if err != nil {
			return fmt.Errorf("%w: read index: %w", ErrStore, err)
		}
		if len(entries) == 0 {
			break
		}
		for i := range entries {
			entries[i].Position = 0
		}
		if err := f.commit(marking, nil, entries); err != nil {
			return err
		}
		lost += len(entries)
	}
	f.log.Warn("stream lost acknowledged messages, repairing", "reason", reason,
		"position", f.at.Position, "surviving", end, "records", lost)
	f.lost(lost)
	to := f.at
	to.Position, to.Stream, to.Repair = end, state.Created, true
	to.Losses++
	if recreated {
		to.First = 0
	}
	return f.commit(to, nil, nil)
}

// lost shows that the stream has lost the messages of so many records, 0 if that is not known.
func (f *Feed) lost(records int) {
	f.status.lost(records)
	f.cfg.Metrics.lost(records)
}

// adopt goes on from the checkpoint that another process left in the lease's record, or that this one did not write into
// its store. What that process alone had in its index, the stream does not tell: which records a walk had shown, and
// which the stream had lost. So where that is needed, and where the stream has lost messages since, a new walk finds out.
func (f *Feed) adopt(left store.Checkpoint, lost bool) error {
	to := left
	to.Position, to.Stream = f.at.Position, f.at.Stream
	if !left.Stream.Equal(f.at.Stream) {
		to.First = 0
	}
	to.Walk, to.Losses = max(left.Walk, f.at.Walk), max(left.Losses, f.at.Losses)
	to.Term, to.Round = f.lease.term(), max(left.Round, f.at.Round)+1
	if lost {
		to.Losses++
		f.log.Warn("stream lost acknowledged messages, repairing", "reason", "it does not hold what the last holder left",
			"position", left.Position, "surviving", f.at.Position)
		f.lost(0)
	}
	if lost || f.at.Repair || left.Repair || left.Confirm || left.Origin == OriginResync {
		to.Cursor, to.Confirm, to.Repair = "", false, false
		f.resynced(resyncTakeover)
	}
	return f.record(to, nil)
}

// misses reports whether the stream lacks the last message of a checkpoint that another process left.
func (f *Feed) misses(ctx context.Context, state streamState, left store.Checkpoint) (bool, error) {
	switch {
	case left.Position == 0, state.First > left.Position && state.Created.Equal(left.Stream):
		return false, nil
	case state.Last < left.Position, !state.Created.Equal(left.Stream):
		return true, nil
	}
	m, err := f.stream.get(ctx, left.Position)
	if err != nil {
		return false, f.foreign(err)
	}
	if m != nil && m.Position == left.Position || state.PerSubject && state.Last > left.Position {
		return false, nil
	}
	dropped, err := f.dropped(ctx, left.Position)
	return !dropped, err
}

// dropped reports whether the stream begins behind a position by now, and reports a purge: a message may grow too old, or be
// purged, between a look at the stream and one at the message.
func (f *Feed) dropped(ctx context.Context, position uint64) (bool, error) {
	now, err := f.stream.look(ctx)
	if err != nil || now.First <= position {
		return false, err
	}
	f.purge(now)
	return true, nil
}

// purge reports, once, that messages were removed from the front of a stream that keeps everything.
func (f *Feed) purge(state streamState) {
	if state.First <= max(1, f.at.First) || state.Limited || state.PerSubject || f.purged == state.First {
		return
	}
	f.purged = state.First
	f.log.Warn("stream was purged, earlier messages are gone", "first", state.First, "position", f.at.Position,
		"do", "nothing if it was meant; otherwise delete the stream: the feed creates it and fills it again")
	f.status.purged(state.First)
}

// replay applies the messages behind the checkpoint to the index, up to the stream's last position: after a crash at
// most a page, with an empty store the whole stream. known is the last checkpoint that anybody made.
//
// What is found behind known was read with a cursor that is asked again, unless a new delta has begun since: then an append
// from before has arrived late, and what became of its records until then no cursor will say. A new walk does, and so does one in hand
// that asks for what it has not shown; a first listing does not ask.
func (f *Feed) replay(ctx context.Context, last uint64, known store.Checkpoint) error {
	var msgs []message
	apply := func() error {
		ids := make([]string, len(msgs))
		for i := range msgs {
			ids[i] = msgs[i].ID
		}
		index, err := f.cfg.Store.Lookup(f.name, ids)
		if err != nil {
			return fmt.Errorf("%w: look up index: %w", ErrStore, err)
		}
		to := f.at
		strange := false // another past than that of the index and the cursor, or what a crash left behind both
		entries := make([]store.Entry, 0, len(msgs))
		for i := range msgs {
			m, was := &msgs[i], index[i]
			to.Position = m.Position
			if was.ID != "" && was.Position == 0 && judge(was, m.Entry, false) == isFresh {
				continue // the stream has an older version of a record whose latest it lost
			}
			was.Position = m.Position // lost or not: is it news?
			late := m.Position > known.Position && m.Walk < known.Walk && known.Origin != OriginResync
			strange = strange || (late || f.at.Repair) && judge(m.Entry, was, false) == isFresh
			m.Walk = was.Walk // a walk in hand shows the record, or asks for it
			if m.Date == "" {
				m.Date = was.Date
			}
			entries = append(entries, m.Entry)
		}
		own := f.own(msgs)
		msgs = msgs[:0]
		if strange {
			if to.Cursor != "" {
				f.resynced(resyncStrange)
			}
			to.Cursor, to.Repair = "", true // which adopt keeps in mind
		}
		if err := f.commit(to, nil, entries); err != nil {
			return err
		}
		f.status.moved(f.at, own)
		f.recent.add(own, time.Now())
		return nil
	}
	err := f.stream.read(ctx, f.at.Position+1, func(m message) error {
		m.data = nil
		msgs = append(msgs, m)
		if len(msgs) < maxRun {
			return nil
		}
		return apply()
	})
	if err != nil {
		return f.foreign(err)
	}
	if len(msgs) > 0 {
		if err := apply(); err != nil {
			return err
		}
	}
	if last <= f.at.Position {
		return nil
	}
	// The stream ends in a hole, and the next message goes behind it all the same; or whoever answered does not show yet what
	// is there, like a server that has just become leader. Then the index would miss it for good.
	hole, err := f.stream.hole(ctx, f.at.Position+1, last)
	if err != nil {
		return err
	}
	if !hole {
		return fmt.Errorf("%w: it ends at %d, and shows nothing behind %d", errBehind, last, f.at.Position)
	}
	f.hole = last
	to := f.at
	to.Position = last
	return f.commit(to, nil, nil)
}

// own returns those messages that this process stored without being told so.
func (f *Feed) own(msgs []message) []message {
	i := slices.IndexFunc(msgs, func(m message) bool { return f.unheard > 0 && m.Position >= f.unheard })
	if i < 0 {
		return nil
	}
	return msgs[i:]
}

func (f *Feed) lookup(id string) (store.Entry, error) {
	known, err := f.cfg.Store.Lookup(f.name, []string{id})
	if err != nil {
		return store.Entry{}, fmt.Errorf("%w: look up index: %w", ErrStore, err)
	}
	return known[0], nil
}

// foreign makes a conflict of a message that this feed cannot have written.
func (f *Feed) foreign(err error) error {
	if errors.Is(err, errForeign) {
		return fmt.Errorf("%w: stream %s: %w", ErrConflict, f.stream.name, err)
	}
	return err
}
