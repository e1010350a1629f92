package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"clockbridge/store"
)

// Forgotten says how far the feed has come with forgetting a person.
type Forgotten struct {
	Done     bool   `json:"done"`     // false = it is at it, ask again
	Position uint64 `json:"position"` // up to here no message names the person
	Messages int    `json:"messages"` // that were erased
	Records  int    `json:"records"`  // of which one of these was the last message: it has a deletion in its place now
}

// ErrForgetting is returned by Forget while another person is being forgotten.
var ErrForgetting = errors.New("another person is being forgotten, ask again later")

// keepForgotten is how long the end of a request waits for whoever asks.
const keepForgotten = time.Minute

// forgetting is the request to forget somebody.
type forgetting struct {
	mu     sync.Mutex
	person string // "" = nobody
	result Forgotten
	err    error
	ended  time.Time
}

// Forget asks for every message that names a person to be erased, overwritten on the disks of JetStream, and says how far that has come: it
// is asked again until it is done, or has failed. A record whose last message is erased gets a deletion with origin erasure, so that
// subscribers hear of it; its version counts as published from then on, and is not published again. What the API reports later is. Whoever is interrupted asks
// again: what is erased stays so.
func (f *Feed) Forget(person string) (Forgotten, error) {
	if reason := checkID(person); reason != "" {
		return Forgotten{}, fmt.Errorf("person %.40q: %s", person, reason)
	}
	g := &f.forgetting
	g.mu.Lock()
	defer g.mu.Unlock()
	over := !g.ended.IsZero()
	switch {
	case g.person == person && over && time.Since(g.ended) < keepForgotten:
		result, err := g.result, g.err
		g.person, g.ended = "", time.Time{}
		return result, err
	case g.person == person && !over:
		return g.result, nil
	case g.person != "" && !over:
		return Forgotten{}, ErrForgetting
	}
	g.person, g.result, g.err, g.ended = person, Forgotten{}, nil, time.Time{}
	f.Sync()
	return g.result, nil
}

// wanted returns whom to forget, "" for nobody.
func (g *forgetting) wanted() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.ended.IsZero() {
		return ""
	}
	return g.person
}

// end notes what became of the request; drop gives it up.
func (g *forgetting) end(result Forgotten, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	result.Done = err == nil
	g.result, g.err, g.ended = result, err, time.Now()
}

func (g *forgetting) drop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.person, g.ended = "", time.Time{}
}

// forget does what Forget was asked for. It needs neither the API nor its answer. The deletions come first: after a crash in between the
// stream still says which messages are to go.
func (f *Feed) forget(ctx context.Context) error {
	id := f.forgetting.wanted()
	if id == "" {
		return nil
	}
	person := NewPerson(f.cfg.Collection, id, f.cfg.Privacy)
	result := Forgotten{Position: f.at.Position}
	var found []message
	err := f.stream.read(ctx, 1, func(m message) error {
		if person.in(&m) {
			m.data = nil
			found = append(found, m)
		}
		return nil
	})
	if err != nil {
		return f.foreign(err)
	}
	for run := range slices.Chunk(found, maxRun) {
		n, err := f.replaceLast(ctx, run)
		if err != nil {
			return err
		}
		result.Records += n
	}
	for _, m := range found {
		// A stream that lost its end meanwhile may hold something else there.
		if err := errors.Join(f.lease.check(), f.reconnected()); err != nil {
			f.sound = false
			return fmt.Errorf("erase message %d: %w", m.Position, err)
		}
		if err := f.stream.erase(ctx, m.Position); err != nil {
			f.log.Warn("person not forgotten", "erased", result.Messages, "of", len(found), "error", err.Error(), "do", "ask again")
			f.forgetting.end(result, err)
			return nil // whatever keeps it from being erased does not keep the feed from its work
		}
		f.recent.erase(m.Position)
		result.Messages++
	}
	state, err := f.stream.look(ctx)
	if err != nil {
		return err
	}
	to := f.at
	to.First = state.First
	if err := f.commit(to, nil, nil); err != nil {
		return err
	}
	f.log.Info("person forgotten", "messages", result.Messages, "records", result.Records, "position", result.Position)
	f.forgetting.end(result, nil)
	return nil
}

// replaceLast appends a deletion for each of the messages that is the last of its record.
func (f *Feed) replaceLast(ctx context.Context, msgs []message) (n int, err error) {
	ids := make([]string, len(msgs))
	for i := range msgs {
		ids[i] = msgs[i].ID
	}
	known, err := f.cfg.Store.Lookup(f.name, ids)
	if err != nil {
		return 0, fmt.Errorf("%w: look up index: %w", ErrStore, err)
	}
	var last []message
	for i := range msgs {
		if known[i].Position == msgs[i].Position {
			last = append(last, erasure(known[i]))
		}
	}
	return len(last), f.put(ctx, last, nil)
}

// erasure is the deletion that takes the place of a record's last message.
func erasure(last store.Entry) message {
	m := message{Entry: last, prev: last.Position, data: deletedData(last.ID), origin: OriginErasure}
	m.Deleted, m.Erased = true, true
	if m.invalid() {
		m.prev, m.data, m.reason = prevUnknown, []byte("{}"), "it could not be read, and was erased"
	}
	return m
}

// erase removes a message for good: the server overwrites it. It is no error if it is gone already.
func (s *stream) erase(ctx context.Context, position uint64) error {
	asking, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	reply, err := s.nc.RequestWithContext(asking, "$JS.API.STREAM.MSG.DELETE."+s.name, fmt.Appendf(nil, `{"seq":%d}`, position))
	var answer struct{ Error *jetstream.APIError }
	if err == nil {
		err = json.Unmarshal(reply.Data, &answer)
	}
	if err == nil && answer.Error != nil {
		left, gerr := s.get(ctx, position)
		if gerr == nil && (left == nil || left.Position != position) {
			return nil
		}
		err = answer.Error
	}
	if err != nil {
		return fmt.Errorf("erase message %d of stream %s: %w", position, s.name, withPermission(s.nc, err))
	}
	return nil
}
