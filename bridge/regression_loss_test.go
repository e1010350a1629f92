package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"clockbridge/protime/protimetest"
)

// The append behind the hole was accepted, and hid it for good.
func TestRegression_LossHiddenByAReconnectInsideAStep(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	onFetch := func() {}
	w.cfg.Source = watched{w.cfg.Source, func(string) { onFetch() }}
	w.reopen()
	ids := w.company(120)
	w.settle()
	onFetch = func() {
		onFetch = func() {}
		w.loseTail(40)
		w.restart(func() {}) // the server comes back with a hole at its end
	}
	w.sim.Update("clockings", ids[0], map[string]any{"timeOfDayInMinutes": 3})
	if err := w.feed.Step(context.Background()); !errors.Is(err, errReconnected) {
		t.Errorf("step: %v, want %v", err, errReconnected)
	}
	w.settle()
	w.judge()
	w.wantLost(40)
}

// Only what lay above the last sequence was repaired.
func TestRegression_FellBackWithAHoleAtItsNewEnd(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.company(80)
	w.settle()
	backup := filepath.Join(t.TempDir(), "b")
	w.restart(func() { copyDir(t, w.nats.dir, backup) })
	w.settle()
	w.company(20)
	w.settle()
	w.restart(func() { copyDir(t, backup, w.nats.dir) })
	w.loseTail(10)
	w.crash()
	w.settle()
	w.judge()
}

// Where another machine had written in between, a crash among the marks made the loss invisible to the next start.
func TestRegression_CrashWhileMarkingALoss(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	ids := w.company(80)
	w.settle()
	backup := filepath.Join(t.TempDir(), "b")
	w.restart(func() { copyDir(t, w.nats.dir, backup) })
	w.settle()
	for i := 19; i >= 0; i-- {
		w.sim.Update("clockings", ids[i], map[string]any{"timeOfDayInMinutes": 3})
	}
	w.settle() // 100
	w.restart(func() { copyDir(t, backup, w.nats.dir) })
	// another machine takes over
	for i := range 20 {
		w.sim.Update("clockings", ids[i+20], map[string]any{"timeOfDayInMinutes": 4})
	}
	pathA := w.path
	w.path = filepath.Join(t.TempDir(), "other.db")
	w.reopen()
	w.settle()
	for i := range 20 {
		w.sim.Update("clockings", ids[i+20], map[string]any{"timeOfDayInMinutes": 3})
	}
	w.settle()
	w.judge()
	// back to the first
	w.path = pathA
	w.reopen()
	n := 0
	w.faults.set(nil, func() (bool, error) {
		if n++; n == 2 {
			return false, errBoom
		}
		return false, nil
	})
	if err := w.feed.Step(context.Background()); !errors.Is(err, errBoom) {
		t.Fatalf("step: %v, want %v", err, errBoom)
	}
	w.faults.clear()
	w.crash()
	w.settle()
	w.judge()
}

// A record's message before was named although the purge had taken it: every second append was refused.
func TestRegression_ChainsBehindAPurge(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	ids := w.company(3000)
	w.settle()
	s, err := w.js.Stream(context.Background(), w.stream())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Purge(context.Background()); err != nil {
		t.Fatal(err)
	}
	w.crash()
	w.settle()
	for _, id := range ids {
		w.sim.Update("clockings", id, map[string]any{"timeOfDayInMinutes": 3})
	}
	w.step()
	w.judge()
}

// What a backup held again was published once more, because the index had taken it for lost when the backup was put back.
func TestRegression_BackupFromBeforeALoss(t *testing.T) {
	for _, repaired := range []bool{true, false} {
		t.Run(fmt.Sprintf("repaired=%v", repaired), func(t *testing.T) {
			w := newWorld(t, startServer(t), protimetest.Options{})
			w.company(4)
			w.settle()
			backup := filepath.Join(t.TempDir(), "b")
			w.restart(func() { copyDir(t, w.nats.dir, backup) })
			w.loseTail(2)
			w.crash()
			if repaired {
				w.settle()
				w.judge()
			} else { // the loss is noticed, but the API is down
				cancel := w.sim.Fail(protimetest.Fault{Kind: protimetest.Status})
				if err := w.feed.Step(context.Background()); err == nil {
					t.Fatal("the step went well without an API")
				}
				cancel()
			}
			w.restart(func() { copyDir(t, backup, w.nats.dir) })
			w.settle()
			w.judge()
		})
	}
}

// An index that was rebuilt from the stream did not know that the stream had lost messages before: what a backup held
// again was published once more.
func TestRegression_BackupFromBeforeALossThatNobodyRemembers(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.company(2)
	w.settle()
	backup := filepath.Join(t.TempDir(), "b")
	w.restart(func() { copyDir(t, w.nats.dir, backup) })
	w.loseTail(1)
	w.crash()
	w.settle()
	w.path = filepath.Join(t.TempDir(), "other.db")
	w.reopen()
	w.settle()
	w.restart(func() { copyDir(t, backup, w.nats.dir) })
	w.settle()
	w.judge()
}

// Behind a backup another machine wrote other messages than the index spoke of, though fewer: a deletion was never published.
func TestRegression_IndexOfAnotherPast(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{NoRepeat: true})
	ids := w.company(20)
	w.settle()
	backup := filepath.Join(t.TempDir(), "b")
	w.restart(func() { copyDir(t, w.nats.dir, backup) })
	w.settle()
	w.sim.Remove("clockings", ids[3])
	for i := range 5 {
		w.sim.Update("clockings", ids[10+i], map[string]any{"timeOfDayInMinutes": 3})
	}
	w.settle()
	w.restart(func() { copyDir(t, backup, w.nats.dir) })
	mine := w.path
	w.path = filepath.Join(t.TempDir(), "other.db")
	w.reopen()
	w.sim.Fail(protimetest.Fault{Kind: protimetest.Status, Times: 1, Match: func(r *http.Request) bool { // its walk ends, but not its confirmation
		return strings.Contains(r.URL.Path, "/clockings/")
	}})
	if err := w.feed.Step(context.Background()); err == nil {
		t.Fatal("the step went well, though the API did not answer for a record")
	}
	w.path = mine
	w.reopen()
	w.settle()
	w.judge()
}

// A backup brought back a record that the API had removed meanwhile, and that the index had never heard of: nobody was to
// ask for it, so it stayed alive in the stream.
func TestRegression_BackupThatKnowsMore(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{NoRepeat: true})
	ids := w.company(4)
	w.settle()
	backup := filepath.Join(t.TempDir(), "b")
	w.restart(func() { copyDir(t, w.nats.dir, backup) })
	w.loseTail(1)
	w.sim.Remove("clockings", ids[3])
	w.path = filepath.Join(t.TempDir(), "other.db")
	w.reopen()
	w.settle()
	w.company(3)
	w.settle()
	w.restart(func() { copyDir(t, backup, w.nats.dir) })
	w.settle()
	w.judge()
}

// A server that had just become leader said where the stream ends, and did not show its last messages yet. That was taken for
// a hole, and what stood there was published once more.
func TestRegression_LeaderThatDoesNotShowAllYet(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	ids := w.company(20)
	w.settle()
	w.bustle(ids, 0)
	w.faults.set(nil, func() (bool, error) { return false, errBoom })
	if err := w.feed.Step(t.Context()); !errors.Is(err, errBoom) {
		t.Fatalf("got %v, want the append kept and the commit lost", err)
	}
	w.faults.clear()
	w.crash()
	// Another server answers for messages, and has none behind the checkpoint.
	position := w.checkpoint().Position
	w.answering(func(asked uint64, answer func() []byte) []byte {
		if asked <= position {
			return answer()
		}
		return []byte(`{"error":{"code":404,"err_code":10037,"description":"no message found"}}`)
	})
	before := len(w.messages())
	if err := w.feed.Step(t.Context()); !errors.Is(err, errBehind) {
		t.Errorf("got %v, want errBehind", err)
	}
	if got := len(w.messages()); got != before {
		t.Errorf("%d messages were appended", got-before)
	}
	w.feed.stream.nc = w.nc
	w.settle()
	w.judge()
}

// An append from before a new delta arrived behind its walk. A record that it brings and that was deleted meanwhile stayed alive
// in the stream: the old delta would have reported the deletion, the new one began after it.
func TestRegression_LateAppendFromBeforeTheWalk(t *testing.T) {
	for _, elsewhere := range []bool{false, true} {
		t.Run(fmt.Sprint("Elsewhere", elsewhere), func(t *testing.T) {
			w := newWorld(t, startServer(t), protimetest.Options{NoRepeat: true})
			w.company(3)
			w.share()
			w.settle()
			id := w.company(1)[0]
			var late []message
			var at uint64
			w.feed.out = frozenLog{w.feed.out, func(msgs []message, position uint64) { late, at = msgs, position }}
			if err := w.feed.Step(t.Context()); !errors.Is(err, errBoom) {
				t.Fatalf("got %v, want the append frozen", err)
			}
			w.sim.Remove("clockings", id)
			w.sim.Expire("clockings")
			w.crash()
			w.settle()
			a := &appender{nc: w.nc, codec: w.feed.stream.codec}
			if err := a.reset(false, false); err != nil {
				t.Fatal(err)
			}
			defer a.close()
			if _, err := a.Append(t.Context(), late, at); err != nil {
				t.Fatalf("the late append: %v", err)
			}
			if elsewhere {
				w.elsewhere("")
			}
			w.settle()
			w.judge()
		})
	}
}

// The same, while nothing had been published yet: the late append arrived in the middle of what was taken for a first listing, which
// asks for no record that it has not shown.
func TestRegression_LateAppendInAFirstListing(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.settle()
	ids := w.company(2)
	var late []message
	w.feed.out = frozenLog{w.feed.out, func(msgs []message, _ uint64) { late = msgs }}
	if err := w.feed.Step(t.Context()); !errors.Is(err, errBoom) {
		t.Fatalf("got %v, want the append frozen", err)
	}
	w.sim.Remove("clockings", ids[0])
	// The process ends, its successor finds the delta expired, and has followed the first page of the listing, an empty one.
	link := `"deltaLink":"` + apiRoot + `delta/clockings?deltaToken=y"}`
	w.cfg.Source = scripted{Source: w.cfg.Source, page: func(cursor string) string {
		if strings.Contains(cursor, "/delta/") {
			return `{"value":[],` + link
		}
		return `{"value":[` + string(w.sim.Truth("clockings")[ids[1]].Data) + `],` + link
	}}
	to := w.checkpoint()
	to.Cursor, to.Origin = apiRoot+"clockings?continuationToken=x", OriginSnapshot
	to.Walk++
	if err := w.store.Commit(w.feed.name, w.checkpoint(), to, nil); err != nil {
		t.Fatal(err)
	}
	w.crash()
	a := &appender{nc: w.nc, codec: w.feed.stream.codec}
	if err := a.reset(false, false); err != nil {
		t.Fatal(err)
	}
	defer a.close()
	arrived := false
	w.faults.set(func(n int) (int, error) {
		if !arrived {
			arrived = true
			if _, err := a.Append(t.Context(), late, 0); err != nil {
				t.Errorf("the late append: %v", err)
			}
		}
		return n, nil
	}, nil)
	w.settle()
	if !arrived {
		t.Fatal("the listing had nothing to append")
	}
	w.judge()
}

// What happened at the stream's end while a feed was idle came out when it next had something to append, which may be days
// later.
func TestRegression_IdleFeedIsTheLastToKnow(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	ids := w.company(3)
	w.settle()
	w.erase(ids[2])
	w.settle()
	w.judge()
	w.wantLost(1)
	w.forge("12345", "A", false, []byte(`{"id":12345}`)) // as two writers would
	w.settle()
	if known, err := w.feed.lookup("12345"); err != nil || known.Position == 0 {
		t.Errorf("the index says %+v of a message that the stream holds (%v)", known, err)
	}
	w.dropStream()
	w.settle()
	w.wantLost(1 + 4)
}

// A message that was purged, or grew too old, between a look at the stream and one at the message was taken for lost: what was
// still there was published once more.
func TestRegression_PurgeTakenForALoss(t *testing.T) {
	for _, where := range []string{"OwnStore", "EmptyStore"} {
		t.Run(where, func(t *testing.T) {
			w := newWorld(t, startServer(t), protimetest.Options{})
			ids := w.company(20)
			w.share()
			w.settle()
			w.bustle(ids, 0)
			w.settle()
			if where == "EmptyStore" {
				w.elsewhere("")
			} else {
				w.crash()
			}
			starts, position := w.starts(), w.feed.lease.checkpoint().Position
			w.answering(func(asked uint64, answer func() []byte) []byte {
				if asked == position {
					s, err := w.js.Stream(context.Background(), w.stream())
					if err == nil {
						err = s.Purge(context.Background())
					}
					if err != nil {
						t.Error(err)
					}
				}
				return answer()
			})
			w.step()
			w.feed.stream.nc = w.nc
			w.settle()
			if got := w.messages(); len(got) > 0 || w.starts() != starts {
				t.Errorf("%d messages were published again, %d deltas begun", len(got), w.starts()-starts)
			}
			if s := w.feed.Status(); s.Lost > 0 || s.PurgedTo != position+1 {
				t.Errorf("%d records lost, purged up to %d, want none and %d", s.Lost, s.PurgedTo, position+1)
			}
		})
	}
}

// answering puts a server between the feed and the one that has its messages: respond answers a request for the message at a position,
// or lets that one do it.
func (w *world) answering(respond func(asked uint64, answer func() []byte) []byte) {
	w.t.Helper()
	srv, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, NoLog: true, NoSigs: true})
	if err != nil {
		w.t.Fatal(err)
	}
	srv.Start()
	w.t.Cleanup(srv.Shutdown)
	between, err := nats.Connect(srv.ClientURL())
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(between.Close)
	if _, err := between.Subscribe("$JS.API.STREAM.MSG.GET."+w.stream(), func(m *nats.Msg) {
		var ask struct{ Seq uint64 }
		if err := json.Unmarshal(m.Data, &ask); err != nil {
			return
		}
		m.Respond(respond(ask.Seq, func() []byte {
			reply, err := w.nc.Request(m.Subject, m.Data, 5*time.Second)
			if err != nil {
				return nil
			}
			return reply.Data
		}))
	}); err != nil {
		w.t.Fatal(err)
	}
	if err := between.Flush(); err != nil {
		w.t.Fatal(err)
	}
	w.feed.stream.nc = between
}

// Somebody who had looked at a change that cannot be read removed it from the end of the stream. No repair could bring it back, so
// with every poll the stream was found to have lost messages, and all of it was read again.
func TestRegression_UnreadableChangeRemoved(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	ids := w.company(5)
	w.settle()
	cursor := w.checkpoint().Cursor
	w.sim.Fail(protimetest.Fault{Kind: protimetest.WrongContent, ContentType: "application/json", Times: 1,
		Body: fmt.Sprintf(`{"value":[{"changeType":"InsertOrUpdate","data":{"status":"no id"}}],"deltaLink":%q}`, cursor)})
	w.settle()
	s, err := w.js.Stream(t.Context(), w.stream())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Purge(t.Context(), jetstream.WithPurgeSubject(SubjectPrefix(w.tenant, "clockings")+"."+invalidToken)); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		w.settle()
		w.crash()
	}
	if lost, gone := strings.Count(w.logs.String(), "lost acknowledged"), strings.Count(w.logs.String(), "no record misses it"); lost != 0 || gone != 3 {
		t.Errorf("it speaks of a loss %d times, of the removal %d times, want never, and once for each start:\n%s", lost, gone, w.logs)
	}
	w.bustle(ids, 0)
	w.settle()
	w.judge()
}

// A message of another writer was removed from the end of the stream, as the conflict asks for. That was taken for a loss then.
func TestRegression_ForeignMessageRemoved(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	ids := w.company(5)
	w.settle()
	ack, err := w.js.Publish(t.Context(), Subject(w.tenant, "clockings", ids[0]), []byte("{}"))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.feed.Step(t.Context()); !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), fmt.Sprintf("position %d", ack.Sequence)) {
		t.Fatalf("got %v, want a conflict that names position %d", err, ack.Sequence)
	}
	s, err := w.js.Stream(t.Context(), w.stream())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteMsg(t.Context(), ack.Sequence); err != nil {
		t.Fatal(err)
	}
	w.settle()
	w.crash()
	w.settle()
	if strings.Contains(w.logs.String(), "lost acknowledged") {
		t.Errorf("it speaks of a loss:\n%s", w.logs)
	}
	w.bustle(ids, 0)
	w.settle()
	w.judge()
}

// A hole at the stream's end was found anew with every try, and taken for another loss, as long as the API could not be asked for
// what it had held.
func TestRegression_LossFoundAgainWhileTheAPIIsDown(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	ids := w.company(3)
	w.settle()
	w.erase(ids[2])
	cancel := w.sim.Fail(protimetest.Fault{Kind: protimetest.Status})
	for range 5 {
		if err := w.feed.Step(t.Context()); err == nil {
			t.Fatal("the step went well without an API")
		}
	}
	cancel()
	w.settle()
	w.judge()
	w.wantLost(1)
}
