package subscribe

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/nats-io/nats.go/jetstream"
	"pgregory.net/rapid"
)

// TestExport_model: an export at a position is the state of a model there, for random histories of a real feed, while the
// history goes on, and for every position of the past; and at the end it is what the API says.
func TestExport_model(t *testing.T) {
	js := connect(t, startServer(t, t.TempDir(), -1))
	rapid.Check(t, func(r *rapid.T) {
		w := newWorld(t, js, rapid.IntRange(0, 12).Draw(r, "records at first"), nil)
		defer w.close()
		alive := []string{}
		for id := range w.sim.Truth("clockings") {
			alive = append(alive, id)
		}
		slices.Sort(alive)
		step := func() {
			for range rapid.IntRange(0, 4).Draw(r, "changes") {
				what := rapid.SampledFrom([]string{"insert", "update", "update", "soft", "remove"}).Draw(r, "what")
				if len(alive) == 0 || what == "insert" {
					alive = append(alive, w.insert())
					continue
				}
				i := rapid.IntRange(0, len(alive)-1).Draw(r, "record")
				switch what {
				case "update":
					w.update(alive[i], rapid.IntRange(0, 1439).Draw(r, "minutes"))
				case "soft":
					w.sim.SoftDelete("clockings", alive[i])
				case "remove":
					w.sim.Remove("clockings", alive[i])
					alive = slices.Delete(alive, i, i+1)
				}
			}
			if err := w.feed.Step(context.Background()); err != nil {
				r.Fatal(err)
			}
		}
		for range rapid.IntRange(0, 6).Draw(r, "steps") {
			step()
		}
		busy := rapid.IntRange(0, 3).Draw(r, "steps while it is exported")
		position, got, err := w.export(func() {
			if busy > 0 {
				busy--
				step()
			}
		})
		if err != nil {
			r.Fatal(err)
		}
		all := w.all()
		if want := stateAt(all, position); !slices.Equal(got, want) {
			r.Fatalf("export at %d:\n%v, want\n%v", position, got, want)
		}
		if len(all) > 0 {
			position = rapid.Uint64Range(0, all[len(all)-1].position).Draw(r, "position of the past")
			if got, want := w.exportAt(position), stateAt(all, position); !slices.Equal(got, want) {
				r.Fatalf("export of the past at %d:\n%v, want\n%v", position, got, want)
			}
		}
		w.settle()
		_, got, err = w.export(func() {})
		if err != nil {
			r.Fatal(err)
		}
		shown := map[string]seen{}
		for _, m := range got {
			shown[m.id] = m
		}
		for id, truth := range w.sim.Truth("clockings") {
			m, known := shown[id]
			if truth.Removed && known && !m.deleted || !truth.Removed && (!known || m.deleted || m.version != truth.Version || m.data != string(truth.Data)) {
				r.Fatalf("record %s: exported %+v, the API has %+v", id, m, truth)
			}
		}
		if n := w.consumers(); n != 0 {
			r.Fatalf("%d consumers are left behind", n)
		}
	})
}

// TestExport_moving exports while another goroutine writes as fast as it can, so that changes fall between the steps of an export.
func TestExport_moving(t *testing.T) {
	js := connect(t, startServer(t, t.TempDir(), -1))
	w := newWorld(t, js, 300, nil)
	ids := []string{}
	for id := range w.sim.Truth("clockings") {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		for i := 0; ctx.Err() == nil; i++ {
			for j := range 7 {
				w.update(ids[(i*7+j)%len(ids)], (i+j)%1440)
			}
			if i%5 == 0 {
				w.insert()
			}
			if err := w.feed.Step(context.Background()); err != nil {
				ended <- err
				return
			}
		}
		ended <- nil
	}()
	type exported struct {
		position uint64
		state    []seen
	}
	var exports []exported
	between := 0 // exports at a position that was reached after they began
	for range 40 {
		before, err := w.stream.State(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		position, state, err := w.export(func() {})
		if err != nil {
			t.Fatal(err)
		}
		if position > before.Last {
			between++
		}
		exports = append(exports, exported{position, state})
	}
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	all := w.all()
	for _, e := range exports {
		if want := stateAt(all, e.position); !slices.Equal(e.state, want) {
			t.Errorf("export at %d differs from the model: %d records, want %d", e.position, len(e.state), len(want))
		}
	}
	if between == 0 {
		t.Error("nothing was written while anything was exported")
	}
}

// A stream that keeps one message of each record drops the last of one that changes while it is exported: the export begins anew,
// or says so, and is never wrong.
func TestExport_dropped(t *testing.T) {
	js := connect(t, startServer(t, t.TempDir(), -1))
	// More than one pull delivers: so that a message goes that is not on its way yet.
	w := newWorld(t, js, 3000, func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 1 })
	last := w.all()[2999].id
	times := 0
	change := func() { // once in an attempt, and in so many attempts
		if times > 0 {
			times--
			w.update(last, times)
			w.settle()
		}
	}
	begin := func(n int) (uint64, []seen, error) {
		times = 0
		var got []seen
		position, err := w.stream.Export(t.Context(), func() error {
			got = nil
			n--
			if n >= 0 {
				times = 1
			}
			return nil
		}, func(m Message) error { got = append(got, saw(m)); change(); return nil })
		return position, got, err
	}
	position, got, err := begin(1)
	if err != nil {
		t.Fatal(err)
	}
	if want := stateAt(w.all(), position); !slices.Equal(got, want) {
		t.Errorf("the second attempt differs from the model at %d: %d records, want %d", position, len(got), len(want))
	}
	if _, _, err = begin(tries); !errors.Is(err, ErrDropped) {
		t.Errorf("in every attempt a message was dropped, and the export ends with %v", err)
	}
	if err := w.stream.ExportAt(t.Context(), position, t.TempDir(), func(Message) error { return nil }); !errors.Is(err, ErrPast) {
		t.Errorf("the past of a stream that keeps none: %v", err)
	}
}

// What the caller's function returns ends an export, and comes back as it is.
func TestExport_callerError(t *testing.T) {
	js := connect(t, startServer(t, t.TempDir(), -1))
	w := newWorld(t, js, 3, nil)
	boom := errors.New("boom")
	calls := 0
	_, err := w.stream.Export(t.Context(), func() error { return nil }, func(Message) error { calls++; return boom })
	if err != boom || calls != 1 {
		t.Errorf("got %v after %d calls", err, calls)
	}
}
