package bridge

import (
	"bytes"
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"clockbridge/protime/protimetest"
)

// TestForget_crash: wherever it is interrupted, nothing is lost or twice, and to ask again ends it.
func TestForget_crash(t *testing.T) {
	srv := startServer(t)
	for _, way := range []string{"append lost", "append kept", "commit lost", "commit kept", "erasing"} {
		t.Run(way, func(t *testing.T) {
			w := newWorld(t, srv, protimetest.Options{})
			w.company(60) // of 20 people
			w.settle()
			kept := strings.HasSuffix(way, "kept")
			onAppend := func(n int) (int, error) {
				if kept {
					return n, errBoom
				}
				return 0, errBoom
			}
			switch {
			case strings.HasPrefix(way, "append"):
				w.faults.set(onAppend, nil)
			case strings.HasPrefix(way, "commit"):
				w.faults.set(nil, func() (bool, error) { return kept, errBoom })
			default:
				w.faults.set(nil, func() (bool, error) { // behind the commit the connection is another one
					w.feed.reconnects++
					return false, nil
				})
			}
			asked := w.ask("7")
			if err := w.feed.Step(context.Background()); err == nil {
				t.Fatal("nothing went wrong")
			}
			if r, err := w.feed.Forget(asked); r.Done || err != nil {
				t.Errorf("behind the failure: %+v, %v, want it to be tried again", r, err)
			}
			w.faults.clear()
			if len(w.naming("7")) != 3 {
				t.Fatalf("named by %v, want three positions", w.naming("7"))
			}
			w.crash()
			w.settle()
			w.judge()
			r := w.forget("7")
			if len(w.naming("7")) > 0 || r.Messages != 3 {
				t.Errorf("asked again: %+v, left: %v", r, w.naming("7"))
			}
			w.judge()
			w.lostNothing()
			erasures := 0
			for _, m := range w.messages() {
				if m.erased() {
					erasures++
				}
			}
			if erasures != 3 {
				t.Errorf("%d deletions in place of 3 messages", erasures)
			}
		})
	}
}

// A stream that loses the deletions gets them again, and not what the API still has.
func TestForget_lostTail(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.company(60)
	w.settle()
	w.forget("7")
	for _, restart := range []bool{false, true} {
		w.loseTail(3)
		if restart {
			w.reopen()
		}
		w.settle()
		if left := w.naming("7"); len(left) > 0 || w.feed.Status().Lost == 0 {
			t.Errorf("named at %v, %d records lost", left, w.feed.Status().Lost)
		}
		w.judge()
		if r, found := w.verify(); r.Differs() || r.Forgotten != 3 {
			t.Errorf("verify: %+v %v", r, found)
		}
	}
}

// noAlarm fails if anybody was told of a loss or a purge.
func (w *world) noAlarm() {
	w.t.Helper()
	w.lostNothing()
	if strings.Contains(w.logs.String(), "purged") {
		w.t.Errorf("taken for a purge:\n%s", w.logs)
	}
	w.judge()
}

// TestForget_olderCheckpoint: a store, or a lease's record, from before speaks of a message that was erased since, at the stream's begin or at
// its end of then. Nobody takes that for a loss, or for a purge.
func TestForget_olderCheckpoint(t *testing.T) {
	srv := startServer(t)
	backup := func(w *world) string {
		w.t.Helper()
		copied := filepath.Join(w.t.TempDir(), "backup.db")
		if err := w.store.Close(); err != nil {
			w.t.Fatal(err)
		}
		if err := copyFile(w.path, copied); err != nil {
			w.t.Fatal(err)
		}
		w.reopen()
		return copied
	}
	for _, test := range []struct {
		name  string
		after func(w *world) // the message at the checkpoint
	}{
		{"DeletionInItsPlace", func(*world) {}},
		{"AnotherVersion", func(w *world) {
			other := clocking(8, 1)
			other["remark"] = nil
			w.sim.Update("clockings", w.lastID(), other)
		}},
		{"Deleted", func(w *world) { w.sim.Remove("clockings", w.lastID()) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t, srv, protimetest.Options{})
			w.share()
			w.named(70)
			w.company(20)
			w.named(70)
			w.settle()
			old := backup(w)
			test.after(w)
			w.company(3)
			w.settle()
			if r := w.forget("70"); r.Messages != 2 {
				t.Fatalf("%+v, want two messages erased", r)
			}
			w.company(2)
			w.settle()
			w.elsewhere(old)
			w.settle()
			w.noAlarm()
			w.company(1)
			w.settle()
			w.noAlarm()
		})
	}
	t.Run("LeaseOfBefore", func(t *testing.T) { // the API is away, so that no cursor moves
		w := newWorld(t, srv, protimetest.Options{})
		w.share()
		w.company(20)
		w.named(70)
		w.settle()
		w.sim.Fail(protimetest.Fault{Kind: protimetest.Status, Status: 503, Times: 1})
		asked := w.ask("70")
		if err := w.feed.Step(t.Context()); err == nil {
			t.Fatal("the API answers")
		}
		if r, err := w.feed.Forget(asked); !r.Done || err != nil {
			t.Fatalf("%+v, %v, want it done without the API", r, err)
		}
		w.elsewhere("")
		w.settle()
		w.noAlarm()
	})
	t.Run("CrashInBetween", func(t *testing.T) {
		w := newWorld(t, srv, protimetest.Options{})
		w.named(70)
		w.company(5)
		w.named(70)
		w.settle()
		w.faults.set(nil, func() (bool, error) {
			if w.checkpoint().First != 0 {
				return true, errBoom // all is durable that must be before the first message goes
			}
			return true, nil
		})
		w.ask("70")
		n := 0
		for w.feed.Step(t.Context()) == nil && n < 3 {
			n++
		}
		w.faults.clear()
		w.crash()
		w.settle()
		w.forget("70")
		w.reopen()
		w.settle()
		w.noAlarm()
	})
}

// lastID is the id of the record of the stream's last message.
func (w *world) lastID() string {
	w.t.Helper()
	all := w.messages()
	return all[len(all)-1].id
}

// TestForget_purge: what was purged is reported all the same.
func TestForget_purge(t *testing.T) {
	purge := func(w *world, to uint64) {
		w.t.Helper()
		s, err := w.js.Stream(w.t.Context(), w.stream())
		if err == nil {
			err = s.Purge(w.t.Context(), jetstream.WithPurgeSequence(to))
		}
		if err != nil {
			w.t.Fatal(err)
		}
	}
	reported := func(w *world) {
		w.t.Helper()
		w.logs.b.Reset()
		w.reopen()
		w.settle()
		if !strings.Contains(w.logs.String(), "stream was purged") {
			w.t.Errorf("a purge was not reported:\n%s", w.logs)
		}
	}
	w := newWorld(t, startServer(t), protimetest.Options{})
	for range 5 {
		w.named(70)
	}
	w.company(20)
	w.settle()
	purge(w, 3)
	w.forget("70")
	reported(w)

	for _, takeover := range []bool{false, true} {
		w = newWorld(t, startServer(t), protimetest.Options{})
		w.share()
		for range 10 {
			w.named(70)
		}
		w.company(20)
		w.settle()
		w.forget("70")
		w.dropStream()
		if takeover {
			w.elsewhere("")
		}
		w.settle()
		purge(w, 8) // of another stream, which begins at 1
		reported(w)
	}
}

// TestForget_repairFirst: what the stream has lost may name the person, so it is fetched before.
func TestForget_repairFirst(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.company(20)
	id := w.named(70)
	w.settle()
	w.company(2)
	w.settle()
	w.sim.Update("clockings", id, map[string]any{"timeOfDayInMinutes": 1})
	w.settle()
	w.loseTail(1)
	cancel := w.sim.Fail(protimetest.Fault{Kind: protimetest.Status, Status: 503})
	asked := w.ask("70")
	for range 2 {
		if err := w.feed.Step(t.Context()); err == nil {
			t.Fatal("the API answers")
		}
	}
	cancel()
	w.settle()
	w.settle()
	if r, err := w.feed.Forget(asked); r.Messages != 2 || err != nil || len(w.naming("70")) > 0 {
		t.Errorf("%+v, %v, left: %v", r, err, w.naming("70"))
	}
	w.judge()
}

// TestForget_regress: where the API's versions went backwards, what it has now is published when it is trusted, and verify says what it is.
func TestForget_regress(t *testing.T) {
	for _, lost := range []bool{false, true} {
		w := newWorld(t, startServer(t), protimetest.Options{})
		w.company(5)
		id := w.named(70)
		w.settle()
		w.forget("70")
		w.sim.Regress()
		w.sim.Update("clockings", id, map[string]any{"timeOfDayInMinutes": 7, "person": map[string]any{"id": 5}})
		w.settle()
		if r, found := w.verify(); r.Ahead != 1 || r.Forgotten != 0 {
			t.Errorf("verify: %+v %v, want one record ahead", r, found)
		}
		if lost {
			w.loseTail(1)
		}
		w.feed.Resync(true)
		w.settle()
		if m, is := w.lastOf(id), w.sim.Truth("clockings")[id]; m.deleted || m.version != is.Version || !bytes.Equal(m.data, is.Data) {
			t.Errorf("lost %v: the last message is %s version %s, want %s, which is trusted", lost, m.origin, m.version, is.Version)
		}
	}
}
