package bridge

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"pgregory.net/rapid"

	"clockbridge/protime/protimetest"
)

// TestModel drives random histories against a feed: changes of every kind, expired deltas, bad answers, crashes at any
// write, lost and recreated streams, people who are to be forgotten. The simulator's truth is the model; whatever happened, the stream must end as an
// exact log of it. A failing run prints its seed and is replayed with -rapid.seed.
func TestModel(t *testing.T) {
	srv := startServer(t)
	rapid.Check(t, func(r *rapid.T) {
		opts := protimetest.Options{
			PageSize:            rapid.SampledFrom([]int{1, 7, 100}).Draw(r, "page size"),
			EmptyPages:          rapid.Bool().Draw(r, "empty pages"),
			ShuffleEveryVersion: rapid.Bool().Draw(r, "shuffled"),
			NoRepeat:            rapid.Bool().Draw(r, "no repeat"),
			DeltaPages:          rapid.Bool().Draw(r, "delta pages"),
			LenientLinks:        rapid.Bool().Draw(r, "lenient links"),
			GetDeletedNotFound:  rapid.Bool().Draw(r, "soft-deleted is 404"),
			Seed:                rapid.Uint64().Draw(r, "seed"),
		}
		w := newWorld(t, srv, opts)
		defer w.end()
		m := &model{w: w, r: r, stores: []string{w.path}}
		if rapid.Bool().Draw(r, "shared") {
			w.share()
		}
		m.insert(rapid.IntRange(0, 30).Draw(r, "records at first"))
		// An action that cannot be taken at the moment skips itself, and rapid draws another.
		r.Repeat(map[string]func(*rapid.T){
			"insert":     func(r *rapid.T) { m.insert(rapid.IntRange(1, 5).Draw(r, "n")) },
			"update":     m.update,
			"softDelete": func(r *rapid.T) { m.with(r, func(id string) { w.sim.SoftDelete("clockings", id) }) },
			"remove":     func(r *rapid.T) { m.with(r, func(id string) { w.sim.Remove("clockings", id); delete(m.alive, id) }) },
			"action":     m.action,
			"step":       func(*rapid.T) { m.step() },
			"expire":     func(*rapid.T) { w.sim.Expire("clockings") },
			"crash":      m.crash,
			"badAnswer":  m.badAnswer,
			"loseTail":   m.loseTail,
			"recreate":   m.recreate,
			"reconnect":  m.reconnect,
			"takeover":   m.takeover,
			"forget":     m.forget,
		})
		w.faults.clear()
		w.settle()
		m.judge()
	})
}

// model is a world under random fire.
type model struct {
	w     *world
	r     *rapid.T
	alive map[string]bool

	stores []string // of the instances that have followed the feed
}

// takeover lets another instance follow the feed: a new one, or one of those from before with what its store says.
func (m *model) takeover(r *rapid.T) {
	if !m.w.shared {
		r.Skip("one instance")
	}
	path := rapid.SampledFrom(append([]string{""}, m.stores...)).Draw(r, "store")
	m.w.elsewhere(path)
	if path == "" {
		m.stores = append(m.stores, m.w.path)
	}
}

// forget asks for somebody to be forgotten. It may crash meanwhile; once it is done, nothing of before names the person.
func (m *model) forget(r *rapid.T) {
	id := rapid.SampledFrom([]string{"1", "2", "3"}).Draw(r, "person")
	asked := ForgetRequest{Request: fmt.Sprint(asked.Add(1)), Person: id}
	if _, err := m.w.feed.Forget(asked); err != nil {
		r.Skip("another request is not done yet")
	}
	if rapid.Bool().Draw(r, "crash") {
		m.crash(r)
	} else {
		m.step()
	}
	forgotten, err := m.w.feed.Forget(asked)
	if err != nil || !forgotten.Done {
		return
	}
	for _, position := range m.w.naming(id) {
		if position <= forgotten.Position {
			m.r.Fatalf("person %s is forgotten up to %d and named at %d\n%s", id, forgotten.Position, position, m.w.logs)
		}
	}
}

func (m *model) insert(n int) {
	if m.alive == nil {
		m.alive = map[string]bool{}
	}
	for range n {
		m.alive[m.w.sim.Insert("clockings", clocking(1+len(m.alive)%3, 480))] = true
	}
}

func (m *model) with(r *rapid.T, do func(id string)) {
	if len(m.alive) == 0 {
		r.Skip("no record")
	}
	ids := make([]string, 0, len(m.alive))
	for id := range m.alive {
		ids = append(ids, id)
	}
	sort.Strings(ids)
	do(rapid.SampledFrom(ids).Draw(r, "id"))
}

func (m *model) update(r *rapid.T) {
	m.with(r, func(id string) {
		for range rapid.IntRange(1, 3).Draw(r, "times") {
			m.w.sim.Update("clockings", id, map[string]any{"timeOfDayInMinutes": rapid.IntRange(0, 1439).Draw(r, "time")})
		}
	})
}

func (m *model) action(r *rapid.T) {
	m.with(r, func(a string) {
		m.with(r, func(b string) {
			if a == b {
				return
			}
			m.w.sim.Action(func(tx *protimetest.Tx) {
				tx.Update("clockings", a, map[string]any{"timeOfDayInMinutes": 1})
				tx.Remove("clockings", b)
			})
			delete(m.alive, b)
		})
	})
}

// step is what Run does with one Step, without the pauses.
func (m *model) step() {
	err := m.w.feed.Step(context.Background())
	switch {
	case err == nil:
		return
	case errors.Is(err, ErrStore):
		m.w.crash()
		return
	case errors.Is(err, ErrConflict):
		m.r.Fatalf("conflict: %v\n%s", err, m.w.logs)
	}
	if p := m.w.feed.plan(err, 0); p.restart != "" {
		if err := m.w.feed.restart(p.restart, false); err != nil {
			m.w.crash()
		}
	}
}

// crash lets one of the next writes fail, in one of its ways, and starts over from the files.
func (m *model) crash(r *rapid.T) {
	after := rapid.IntRange(0, 6).Draw(r, "writes before")
	way := rapid.SampledFrom([]string{"append lost", "append kept", "append partly", "commit lost", "commit kept"}).Draw(r, "way")
	n := 0
	now := func() bool { n++; return n > after }
	onAppend := func(int) (int, error) { now(); return 0, nil }
	onCommit := func() (bool, error) { now(); return false, nil }
	switch way {
	case "append lost", "append kept", "append partly":
		onAppend = func(k int) (int, error) {
			if !now() {
				return 0, nil
			}
			return map[string]int{"append lost": 0, "append kept": k, "append partly": k / 2}[way], errBoom
		}
	default:
		onCommit = func() (bool, error) {
			if !now() {
				return false, nil
			}
			return way == "commit kept", errBoom
		}
	}
	m.w.faults.set(onAppend, onCommit)
	m.step()
	m.step()
	m.w.faults.clear()
	m.w.crash()
}

func (m *model) badAnswer(r *rapid.T) {
	f := protimetest.Fault{
		Kind: rapid.SampledFrom([]protimetest.FaultKind{
			protimetest.Status, protimetest.Cut, protimetest.WrongContent, protimetest.NoValue, protimetest.NoLink,
			protimetest.Garbage, protimetest.TokenDeath, protimetest.Gone,
		}).Draw(r, "kind"),
		Times:  rapid.IntRange(1, 3).Draw(r, "times"),
		After:  rapid.IntRange(0, 2000).Draw(r, "after"),
		Status: rapid.SampledFrom([]int{400, 404, 408, 409, 414, 429, 500, 503}).Draw(r, "status"),
	}
	cancel := m.w.sim.Fail(f)
	m.step()
	m.step()
	cancel()
}

func (m *model) loseTail(r *rapid.T) {
	s, err := m.w.js.Stream(context.Background(), m.w.stream())
	if err != nil || s.CachedInfo().State.Msgs < 2 {
		r.Skip("no message")
	}
	// A stream that lost every message cannot be told from one that was purged; a purge is reported and not repaired.
	m.w.loseTail(rapid.Uint64Range(1, min(s.CachedInfo().State.Msgs-1, 20)).Draw(r, "n"))
	m.w.crash()
}

func (m *model) recreate(r *rapid.T) {
	if _, err := m.w.js.Stream(context.Background(), m.w.stream()); err != nil {
		r.Skip("no stream")
	}
	m.w.dropStream()
	m.w.crash()
}

func (m *model) reconnect(*rapid.T) {
	was := m.w.nc.Stats().Reconnects
	if err := m.w.nc.ForceReconnect(); err != nil {
		m.r.Fatal(err)
	}
	waitFor(m.w.t, "the reconnect", func() bool { return m.w.nc.Stats().Reconnects > was && m.w.nc.IsConnected() })
}

func (m *model) judge() {
	if err := judgeStream(m.w.messages(), m.w.sim.Truth("clockings")); err != nil {
		m.r.Fatalf("%v\n%s", err, m.w.logs)
	}
}

// end lets go of what newWorld took, since one test makes many worlds.
func (w *world) end() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	w.feed.out.close()
	if err := w.js.DeleteStream(ctx, w.stream()); err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
		w.t.Error(err)
	}
	w.nc.Close()
	w.store.Close()
	w.sim.Close()
}
