package bridge

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"clockbridge/protime/protimetest"
	"clockbridge/store"
)

// company fills the simulator with n clockings and returns their ids.
func (w *world) company(n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = w.sim.Insert("clockings", clocking(1+i%20, 480+i%600))
	}
	return ids
}

// bustle makes one change of every kind among ids.
func (w *world) bustle(ids []string, round int) {
	at := func(k int) string { return ids[(round*7+k)%len(ids)] }
	w.sim.Update("clockings", at(0), map[string]any{"timeOfDayInMinutes": 500 + round})
	w.sim.SoftDelete("clockings", at(1))
	w.sim.Remove("clockings", at(2))
	w.sim.Insert("clockings", clocking(99, 600+round))
	w.sim.Action(func(tx *protimetest.Tx) {
		tx.Update("clockings", at(3), map[string]any{"kind": "InOut", "timeOfDayInMinutes": 700 + round})
		tx.Update("clockings", at(4), map[string]any{"kind": "InOut", "timeOfDayInMinutes": 701 + round})
	})
}

// TestResync_asksForNoDeletion: a walk does not show what was deleted long ago, and nobody asks for it one by one.
func TestResync_asksForNoDeletion(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{NoRepeat: true})
	ids := w.company(20)
	w.settle()
	for _, id := range ids[:8] {
		w.sim.Remove("clockings", id)
	}
	w.settle()
	w.sim.ResetRequests()
	w.feed.Resync(false)
	w.settle()
	w.judge()
	for _, r := range w.sim.Requests() {
		if strings.Contains(r.Path, "/clockings/") && !strings.Contains(r.Path, "/delta/") {
			t.Errorf("asked for %s", r.Path)
		}
	}
}

func TestPromise1NothingLost(t *testing.T) {
	t.Run("ListingAndDeltas", func(t *testing.T) {
		w := newWorld(t, startServer(t), protimetest.Options{})
		ids := w.company(350)
		w.settle()
		w.judge()
		for round := range 5 {
			w.bustle(ids, round)
			w.settle()
			w.judge()
		}
		if got := len(w.messages()); got < 350+5*5 {
			t.Errorf("stream holds %d messages, want the 350 of the listing and every change since", got)
		}
	})
	t.Run("DeletedWhileExpired", func(t *testing.T) {
		w := newWorld(t, startServer(t), protimetest.Options{})
		ids := w.company(350)
		w.settle()
		before := len(w.messages())
		for _, id := range ids[:21] {
			w.sim.Remove("clockings", id)
		}
		for _, id := range ids[21:30] {
			w.sim.Update("clockings", id, map[string]any{"timeOfDayInMinutes": 1})
		}
		w.sim.Advance(73 * time.Hour)
		w.settle()
		w.judge()
		if got, want := len(w.messages())-before, 30; got != want {
			t.Errorf("the resync published %d messages, want %d: only what differs", got, want)
		}
		for _, m := range w.messages()[before:] {
			if m.origin != OriginResync {
				t.Errorf("message %d has origin %s, want %s", m.seq, m.origin, OriginResync)
			}
		}
	})
	t.Run("BodyBreaksOff", func(t *testing.T) {
		w := newWorld(t, startServer(t), protimetest.Options{})
		ids := w.company(50)
		w.settle()
		for _, id := range ids {
			w.sim.Update("clockings", id, map[string]any{"timeOfDayInMinutes": 2})
		}
		w.sim.Fail(protimetest.Fault{Kind: protimetest.Cut, After: 3000, Times: 2})
		at := w.checkpoint()
		if err := w.feed.Step(context.Background()); err == nil {
			t.Fatal("step succeeded although the body broke off")
		}
		if now := w.checkpoint(); now.Cursor != at.Cursor {
			t.Errorf("cursor moved to %q past a body that broke off", now.Cursor)
		} else if now.Position == at.Position {
			t.Error("the changes in front of the break were not published")
		}
		w.settle()
		w.judge()
	})
	t.Run("LeftTheFilter", func(t *testing.T) {
		w := newWorld(t, startServer(t), protimetest.Options{})
		old := clocking(1, 480)
		old["date"] = "2026-01-02"
		w.sim.Insert("clockings", old)
		w.company(5)
		w.settle()
		w.cfg.Filter = func(time.Time) string { return "date ge '2026-06-01'" }
		w.reopen()
		w.settle()
		for _, m := range w.messages() {
			if m.deleted {
				t.Errorf("record %s was taken for deleted because the filter moved on", m.id)
			}
		}
		w.judge()
		for _, r := range w.sim.Requests() {
			if strings.Contains(r.Path, "/clockings/") {
				t.Errorf("the API was asked for %s, which the filter had left behind", r.Path)
			}
		}
	})
	t.Run("DeleteWithoutVersion", func(t *testing.T) {
		w := newWorld(t, startServer(t), protimetest.Options{DeleteNoVersion: true})
		ids := w.company(5)
		w.settle()
		w.sim.Remove("clockings", ids[1])
		w.settle()
		w.judge()
		msgs := w.messages()
		if last := msgs[len(msgs)-1]; !last.deleted || last.id != ids[1] {
			t.Errorf("last message is %+v, want the deletion of %s", last, ids[1])
		}
	})
}

// TestPromise2NothingTwice crashes a feed at every write it makes, in every way a write can fail.
func TestPromise2NothingTwice(t *testing.T) {
	srv := startServer(t)
	type way struct {
		name   string
		append func(int) (int, error)
		commit func() (bool, error)
	}
	ways := []way{
		{name: "AppendLost", append: func(int) (int, error) { return 0, errBoom }},
		{name: "AppendPartly", append: func(n int) (int, error) { return (n + 1) / 2, errBoom }},
		{name: "AppendKept", append: func(n int) (int, error) { return n, errBoom }},
		{name: "CommitLost", commit: func() (bool, error) { return false, errBoom }},
		{name: "CommitKept", commit: func() (bool, error) { return true, errBoom }},
	}
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			for k := 1; ; k++ {
				if !crashAt(t, srv, k, way.append, way.commit) {
					if k < 5 {
						t.Fatalf("only %d writes were reached", k-1)
					}
					return
				}
			}
		})
	}
}

// crashAt runs a feed's life through all its phases and lets the k-th write fail. It reports whether there was one.
func crashAt(t *testing.T, srv *testServer, k int, appendFault func(int) (int, error), commitFault func() (bool, error)) bool {
	t.Helper()
	w := newWorld(t, srv, protimetest.Options{PageSize: 20})
	defer w.dropStream()
	writes := 0
	hook := func() bool { writes++; return writes == k }
	var onAppend func(int) (int, error)
	var onCommit func() (bool, error)
	if appendFault != nil {
		onAppend = func(n int) (int, error) {
			if hook() {
				return appendFault(n)
			}
			return 0, nil
		}
	}
	if commitFault != nil {
		onCommit = func() (bool, error) {
			if hook() {
				return commitFault()
			}
			return false, nil
		}
	}
	w.faults.set(onAppend, onCommit)
	pass := func() {
		for range 10 {
			err := w.feed.Step(context.Background())
			if err == nil {
				return
			}
			if p := w.feed.plan(err, 0); p.restart != "" {
				if err := w.feed.restart(p.restart, false); err != nil {
					w.crash()
				}
				continue
			}
			if errors.Is(err, errBoom) {
				w.crash()
			}
		}
		t.Fatalf("write %d: the feed does not recover\n%s", k, w.logs)
	}
	ids := w.company(50)
	pass()
	w.bustle(ids, 1)
	pass()
	w.bustle(ids, 2)
	w.sim.Expire("clockings")
	pass()
	w.loseTail(3)
	w.crash()
	w.bustle(ids, 3)
	pass()
	w.faults.clear()
	w.settle()
	if err := judgeStream(w.messages(), w.sim.Truth("clockings")); err != nil {
		t.Fatalf("write %d: %v\n%s", k, err, w.logs)
	}
	return writes >= k
}

func (w *world) dropStream() {
	w.feed.out.close()
	if err := w.js.DeleteStream(context.Background(), w.stream()); err != nil {
		w.t.Fatal(err)
	}
}

// loseTail removes the last n messages the way a damaged file does: the last sequence stays, the messages are gone.
func (w *world) loseTail(n uint64) {
	w.t.Helper()
	s, err := w.js.Stream(context.Background(), w.stream())
	if err != nil {
		w.t.Fatal(err)
	}
	last := s.CachedInfo().State.LastSeq
	n = min(n, last)
	for seq := last - n + 1; seq <= last; seq++ {
		if _, err := s.GetMsg(context.Background(), seq); errors.Is(err, jetstream.ErrMsgNotFound) {
			continue // it is gone already
		}
		if err := s.DeleteMsg(context.Background(), seq); err != nil {
			w.t.Fatal(err)
		}
	}
}

func TestPromise2NoMessageID(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.company(3)
	w.settle()
	for _, m := range w.messages() {
		if id := m.header.Get(nats.MsgIdHdr); id != "" {
			t.Errorf("message %d carries a message id %q: exactness must not rest on the dedup window", m.seq, id)
		}
	}
}

func TestPromise3InOrder(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{Seed: 7, ShuffleEveryVersion: true})
	ids := w.company(30)
	w.settle()
	for round := range 10 {
		for i := range 40 {
			w.sim.Update("clockings", ids[i%len(ids)], map[string]any{"timeOfDayInMinutes": round*40 + i})
		}
		w.settle()
		w.judge()
	}
}

func TestPromise4LossIsNoticed(t *testing.T) {
	t.Run("HoleAtTheEnd", func(t *testing.T) {
		w := newWorld(t, startServer(t), protimetest.Options{})
		w.company(120)
		w.settle()
		w.loseTail(40)
		w.crash()
		w.settle()
		w.judge()
		w.wantLost(40)
	})
	t.Run("HoleWhileRunning", func(t *testing.T) {
		w := newWorld(t, startServer(t), protimetest.Options{})
		w.company(120)
		w.settle()
		w.loseTail(40)
		w.nc.ForceReconnect()
		waitFor(t, "the connection to come back", func() bool { return w.nc.Stats().Reconnects > 0 && w.nc.IsConnected() })
		w.settle()
		w.judge()
		w.wantLost(40)
	})
	t.Run("TailFallsBack", func(t *testing.T) {
		w := newWorld(t, startServer(t), protimetest.Options{})
		ids := w.company(120)
		w.settle()
		backup := filepath.Join(t.TempDir(), "backup")
		w.restart(func() { copyDir(t, w.nats.dir, backup) })
		for round := range 8 {
			w.bustle(ids, round)
			w.settle()
		}
		w.restart(func() { copyDir(t, backup, w.nats.dir) })
		w.settle()
		w.judge()
		if w.feed.Status().Lost == 0 {
			t.Error("the loss was repaired but not counted")
		}
	})
	t.Run("ProxySays404", func(t *testing.T) {
		// While lost records are fetched again, something in between does not know the API any more. No record is gone.
		w := newWorld(t, startServer(t), protimetest.Options{})
		w.company(20)
		w.settle()
		w.loseTail(5)
		w.crash()
		w.sim.Fail(protimetest.Fault{Kind: protimetest.Status, Status: 404, Body: "<html>no such route</html>", Times: 1, Match: func(r *http.Request) bool {
			return strings.Contains(r.URL.Path, "/clockings/")
		}})
		w.settle()
		w.judge()
		for _, m := range w.messages() {
			if m.deleted {
				t.Errorf("record %s was taken for deleted", m.id)
			}
		}
	})
	t.Run("AppendRefused", func(t *testing.T) {
		// The tail falls back when the feed has looked at it: its next append notices.
		w := newWorld(t, startServer(t), protimetest.Options{})
		ids := w.company(10)
		w.settle()
		w.feed.at.Position += 5 // what a stream that lost five messages looks like to an append
		w.bustle(ids, 1)
		if _, err := w.feed.follow(context.Background()); !errors.Is(err, errRefused) {
			t.Fatalf("follow: %v, want %v", err, errRefused)
		}
		w.settle()
		w.judge()
	})
	t.Run("Recreated", func(t *testing.T) {
		w := newWorld(t, startServer(t), protimetest.Options{})
		ids := w.company(120)
		w.settle()
		w.sim.Remove("clockings", ids[4])
		w.settle()
		w.dropStream()
		w.crash()
		w.settle()
		w.judge()
	})
	t.Run("RestoredElsewhere", func(t *testing.T) {
		// The same messages in a stream with another birthday: noticed, read again, and found whole.
		w := newWorld(t, startServer(t), protimetest.Options{})
		w.company(30)
		w.settle()
		w.anotherBirthday()
		w.crash()
		w.settle()
		w.judge()
		if got := len(w.messages()); got != 30 {
			t.Errorf("%d messages, want the 30 there were", got)
		}
		if !strings.Contains(w.logs.String(), "the stream was recreated") {
			t.Errorf("no log line says that the stream is another one:\n%s", w.logs)
		}
	})
	t.Run("OldBackupElsewhere", func(t *testing.T) {
		// A stream with another birthday holds an older version of a record than the one that was published.
		w := newWorld(t, startServer(t), protimetest.Options{})
		ids := w.company(30)
		w.settle()
		backup := filepath.Join(t.TempDir(), "backup")
		w.restart(func() { copyDir(t, w.nats.dir, backup) })
		w.sim.Update("clockings", ids[3], map[string]any{"timeOfDayInMinutes": 5})
		w.sim.Remove("clockings", ids[4])
		w.settle()
		w.anotherBirthday()
		w.restart(func() { copyDir(t, backup, w.nats.dir) })
		w.crash()
		w.settle()
		w.judge()
		if got := len(w.messages()); got != 32 {
			t.Errorf("%d messages, want the 30 of the backup and the two that it lacks", got)
		}
	})
	t.Run("RecreatedLarge", func(t *testing.T) {
		w := newWorld(t, startServer(t), protimetest.Options{PageSize: 1000})
		ids := w.company(maxRepair + 100)
		w.settle()
		w.sim.Remove("clockings", ids[4])
		w.settle()
		w.dropStream()
		w.crash()
		w.settle()
		w.judge()
		if got := w.feed.Status().Resyncs; got != 1 {
			t.Errorf("%d resyncs, want 1: too many records to fetch one by one", got)
		}
	})
	t.Run("EmptyStore", func(t *testing.T) {
		w := newWorld(t, startServer(t), protimetest.Options{})
		ids := w.company(120)
		w.settle()
		before := len(w.messages())
		w.sim.Remove("clockings", ids[3])
		w.path = filepath.Join(t.TempDir(), "new.db")
		w.crash()
		w.settle()
		w.judge()
		if got := len(w.messages()) - before; got != 1 {
			t.Errorf("%d messages published after the store was lost, want 1, the deletion", got)
		}
	})
	t.Run("PurgeIsReported", func(t *testing.T) {
		w := newWorld(t, startServer(t), protimetest.Options{})
		ids := w.company(20)
		w.settle()
		s, err := w.js.Stream(context.Background(), w.stream())
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Purge(context.Background()); err != nil {
			t.Fatal(err)
		}
		w.crash()
		w.bustle(ids, 1)
		w.settle()
		if !strings.Contains(w.logs.String(), "stream was purged") {
			t.Errorf("no log line says that the stream was purged:\n%s", w.logs)
		}
		if got := w.feed.Status().PurgedTo; got != 21 {
			t.Errorf("status says purged to %d, want 21", got)
		}
		if got := len(w.messages()); got != 6 {
			t.Errorf("%d messages after the purge, want the 6 new changes and nothing republished", got)
		}
	})
}

func (w *world) wantLost(n uint64) {
	w.t.Helper()
	if got := w.feed.Status().Lost; got != n {
		w.t.Errorf("status counts %d lost records, want %d", got, n)
	}
	if !strings.Contains(w.logs.String(), "stream lost acknowledged messages") {
		w.t.Errorf("no log line tells of the loss:\n%s", w.logs)
	}
}

// restart stops the server, does something to its files, and starts it again.
func (w *world) restart(between func()) {
	w.t.Helper()
	was := w.nc.Stats().Reconnects
	w.nats.stop()
	between()
	w.nats.start()
	waitFor(w.t, "the feed's connection to come back", func() bool { return w.nc.Stats().Reconnects > was && w.nc.IsConnected() })
}

func TestPromise5OneWriter(t *testing.T) {
	t.Run("StaleInstanceIsRefused", func(t *testing.T) {
		w := newWorld(t, startServer(t), protimetest.Options{})
		ids := w.company(20)
		w.settle()
		stale := w.feed
		// Another machine takes over with an empty store, and publishes.
		w.feed = nil
		w.path = filepath.Join(t.TempDir(), "other.db")
		other := w.store
		w.store = nil
		defer other.Close()
		w.reopen()
		w.bustle(ids, 1)
		w.settle()
		before := len(w.messages())
		m := message{Entry: store.Entry{ID: ids[9], Version: "0"}, data: []byte(`{"id":1}`), origin: OriginDelta}
		if _, err := stale.out.Append(context.Background(), []message{m}, stale.at.Position); !errors.Is(err, errRefused) {
			t.Errorf("stale append: %v, want %v", err, errRefused)
		}
		if got := len(w.messages()); got != before {
			t.Errorf("a stale instance wrote %d messages", got-before)
		}
		w.judge()
	})
	t.Run("ForeignMessage", func(t *testing.T) {
		w := newWorld(t, startServer(t), protimetest.Options{})
		ids := w.company(20)
		w.settle()
		if _, err := w.js.Publish(context.Background(), Subject(w.tenant, "clockings", ids[0]), []byte("hello")); err != nil {
			t.Fatal(err)
		}
		w.bustle(ids, 1)
		err := w.feed.Step(context.Background())
		for range 3 {
			if err != nil && !errors.Is(err, ErrConflict) {
				err = w.feed.Step(context.Background())
			}
		}
		if !errors.Is(err, ErrConflict) {
			t.Fatalf("step: %v, want %v", err, ErrConflict)
		}
		if p := w.feed.plan(err, 0); p.state != StateConflict || p.wait != forever {
			t.Errorf("plan is %+v, want state %s and no retry", p, StateConflict)
		}
	})
	t.Run("SameStoreTwice", func(t *testing.T) {
		w := newWorld(t, startServer(t), protimetest.Options{})
		ids := w.company(20)
		w.settle()
		at := w.checkpoint()
		moved := at
		moved.Cursor = "elsewhere"
		if err := w.store.Commit(w.feed.name, at, moved, nil); err != nil {
			t.Fatal(err)
		}
		w.bustle(ids, 1)
		if err := w.feed.Step(context.Background()); !errors.Is(err, ErrConflict) {
			t.Errorf("step: %v, want %v", err, ErrConflict)
		}
	})
}

// TestStaleChainTailIsRefused shows why a position alone does not fence a chain: the third message of a stalled chain
// fits as soon as the stream happens to hold two others.
func TestStaleChainTailIsRefused(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	a := w.feed.out.(faultyLog).appendLog.(*appender)
	if err := a.reset(false, false); err != nil {
		t.Fatal(err)
	}
	msg := func(id, version string) message {
		return message{Entry: store.Entry{ID: id, Version: version}, data: []byte(fmt.Sprintf(`{"id":%s,"changeVersion":%q}`, id, version)), origin: OriginDelta}
	}
	ctx := context.Background()
	if _, err := a.Append(ctx, []message{msg("1", "A"), msg("2", "B")}, 0); err != nil {
		t.Fatal(err)
	}
	// A stalled chain held messages 1 to 3; its third, an old version of record 2, arrives only now.
	late := msg("2", "0")
	if err := a.send(ctx, formChain, []message{late}, 2); !errors.Is(err, errRefused) {
		t.Errorf("late message of a stalled chain: %v, want %v", err, errRefused)
	}
	if got := len(w.messages()); got != 2 {
		t.Errorf("stream holds %d messages, want 2", got)
	}
}
