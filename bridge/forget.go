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

// ForgetRequest asks for a person to be forgotten.
type ForgetRequest struct {
	Request string `json:"request"` // a name for it, to ask with it how far it has come
	Person  string `json:"person"`  // the id, as the API writes it, or what stands in its place in the stream
	Look    bool   `json:"look"`    // only say what there is
}

// Forgotten says how far a feed has come with it.
type Forgotten struct {
	Done     bool      `json:"done"`          // false = it is at it, or has not come to it yet
	Position uint64    `json:"position"`      // up to here it has looked, and once it is done no message names the person; 0 = it has not looked yet
	Found    int       `json:"found"`         // messages that name the person
	From     time.Time `json:"from,omitzero"` // when the first of these was stored
	To       time.Time `json:"to,omitzero"`   // when the last one was
	Messages int       `json:"messages"`      // of these that are erased
	Records  int       `json:"records"`       // that have a deletion in the place of their last message
}

var (
	// ErrForgetting is returned by Forget while there is another request.
	ErrForgetting = errors.New("somebody is being forgotten on another request, ask again later")
	// errNotErased is wrapped by errors that keep messages from being erased, and nothing else from its work.
	errNotErased = errors.New("not everything is erased, ask again")
)

// maxRequest is the longest name of a request to forget somebody, in bytes.
const maxRequest = 64

// forgetting is a request to forget somebody.
type forgetting struct {
	mu     sync.Mutex
	asked  ForgetRequest // the zero value = there is none
	over   bool
	result Forgotten
	err    error
}

// Forget asks for every message that names a person to be erased, overwritten on the disks of JetStream, and says how far that has
// come: it is asked again with the same name of the request until it is done, or has failed. A record whose last message is erased gets a deletion
// with origin erasure, so that subscribers hear of it; its version counts as published from then on, and is not published again. What
// the API reports later is. Whoever is interrupted makes another request: what is erased stays so.
func (f *Feed) Forget(r ForgetRequest) (Forgotten, error) {
	if reason := checkID(r.Person); reason != "" {
		return Forgotten{}, fmt.Errorf("person %.40q: %s", r.Person, reason)
	}
	if r.Request == "" || len(r.Request) > maxRequest {
		return Forgotten{}, fmt.Errorf("request %.40q: must be a name for this request, of up to %d bytes, to ask with it how far it has come", r.Request, maxRequest)
	}
	g := &f.forgetting
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.asked == r:
		return g.result, g.err
	case g.wantedLocked():
		return Forgotten{}, ErrForgetting
	}
	g.asked, g.over, g.result, g.err = r, false, Forgotten{}, nil
	f.Sync()
	return g.result, nil
}

// wanted returns the request in hand, if there is one.
func (g *forgetting) wanted() (ForgetRequest, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.asked, g.wantedLocked()
}

func (g *forgetting) wantedLocked() bool { return g.asked.Request != "" && !g.over }

// progress shows how far it has come.
func (g *forgetting) progress(r Forgotten) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.result = r
}

// end notes what became of the request, if there is one.
func (g *forgetting) end(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.wantedLocked() {
		g.over, g.err, g.result.Done = true, err, err == nil
	}
}

// drop gives the request up.
func (g *forgetting) drop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.asked = ForgetRequest{}
}

// forget does what Forget was asked for. It needs neither the API nor its answer, but where the stream has lost messages that the API is still to be
// asked for: what they say of the person nobody knows.
func (f *Feed) forget(ctx context.Context) error {
	r, wanted := f.forgetting.wanted()
	if !wanted {
		return nil
	}
	if f.at.Repair || f.at.Confirm || f.at.Origin == OriginResync {
		lost, err := f.cfg.Store.Select(f.name, "", 1, func(e store.Entry) bool { return e.Position == 0 && !isInvalidKey(e.ID) })
		if err != nil {
			return fmt.Errorf("%w: read index: %w", ErrStore, err)
		}
		if len(lost) > 0 {
			return nil
		}
	}
	err := f.eraseAll(ctx, NewPerson(f.cfg.Collection, r.Person, f.cfg.Privacy), r.Look)
	if err == nil || errors.Is(err, errNotErased) {
		f.forgetting.end(err)
		return nil
	}
	return err // it is tried again
}

// eraseAll erases all messages that name a person. What must be durable comes first: after a crash in between the stream still says which
// messages are to go, and no message is missed that is not there any more. look: it only says how many there are.
func (f *Feed) eraseAll(ctx context.Context, person Person, look bool) error {
	state, err := f.stream.look(ctx)
	if err != nil {
		return err
	}
	if state.DenyDelete && !look {
		return fmt.Errorf("%w: stream %s is set to deny it (deny_delete), which cannot be changed: it can only be deleted whole", errNotErased, f.stream.name)
	}
	f.purge(state)
	found, begin, result, err := f.find(ctx, person)
	if err != nil {
		return err
	}
	f.forgetting.progress(result)
	if look || len(found) == 0 {
		return nil
	}
	f.log.Info("forgetting a person", "messages", len(found), "position", result.Position)
	for run := range slices.Chunk(found, maxRun) {
		n, err := f.replaceLast(ctx, run)
		if err != nil {
			return err
		}
		result.Records += n
	}
	if err := f.beginsAt(begin, state); err != nil {
		return err
	}
	for _, m := range found {
		// A stream that lost its end meanwhile may hold something else there.
		if err := errors.Join(f.lease.check(), f.reconnected()); err != nil {
			f.sound = false
			return fmt.Errorf("erase message %d: %w", m.Position, err)
		}
		if err := f.stream.erase(ctx, m.Position); err != nil {
			f.log.Warn("person not forgotten", "erased", result.Messages, "of", len(found), "error", err.Error(), "do", "ask again")
			return fmt.Errorf("%w: %w", errNotErased, err)
		}
		result.Messages++
		f.forgetting.progress(result)
	}
	f.recent.forget(person)
	f.log.Info("person forgotten", "messages", result.Messages, "records", result.Records, "position", result.Position)
	return nil
}

// find reads the whole stream for the messages that name a person. It returns them without their data, the position at which the stream begins
// without them, and what is known of them.
func (f *Feed) find(ctx context.Context, person Person) (found []message, begin uint64, result Forgotten, err error) {
	begin = f.at.Position + 1
	result.Position = f.at.Position
	err = f.stream.readStored(ctx, 1, func(m message, stored time.Time) error {
		if !person.in(&m) {
			begin = min(begin, m.Position)
			return nil
		}
		m.data = nil
		found = append(found, m)
		if result.Found++; result.Found == 1 {
			result.From = stored.UTC()
		}
		result.To = stored.UTC()
		return nil
	})
	switch {
	case errors.Is(err, errForeign):
		err = f.foreign(err)
	case err != nil:
		err = fmt.Errorf("%w: %w", errNotErased, err)
	}
	return found, begin, result, err
}

// beginsAt makes durable, also for whoever takes the feed over, that the messages before a position are gone for no purge, and that none
// is missed at a checkpoint from before. Where a purge went before, the stream's begin stays one.
func (f *Feed) beginsAt(position uint64, state streamState) error {
	to := f.at
	if state.First <= max(1, f.at.First) {
		to.First = max(to.First, position)
	}
	if err := f.commit(to, nil, nil); err != nil {
		return err
	}
	if err := f.lease.save(f.at); err != nil {
		f.sound = false
		return err
	}
	return nil
}

// replaceLast appends a deletion for the record of each of the messages that is its last, or behind which it was deleted: whoever keeps what
// the record was is to hear of it.
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
	seen := map[string]bool{}
	for i, was := range known {
		if seen[was.ID] || was.Position != msgs[i].Position && (!was.Deleted || was.Erased || was.Position == 0) {
			continue
		}
		seen[was.ID] = true
		m := erasure(was)
		m.Walk = f.at.Walk
		last = append(last, m)
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
