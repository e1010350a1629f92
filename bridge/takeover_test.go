package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"clockbridge/protime"
	"clockbridge/protime/protimetest"
)

// leased makes the world's feed the holder of its lease, as take does, for tests that step by hand.
func (w *world) leased(until func() time.Time) *lease {
	w.t.Helper()
	ctx := context.Background()
	bucket, err := w.js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: Bucket})
	if err != nil {
		w.t.Fatal(err)
	}
	var was leaseRecord
	var revision uint64
	entry, err := bucket.Get(ctx, leaseKey(w.feed.name))
	if err == nil {
		was, revision = decodeLease(entry.Value()), entry.Revision()
	} else if !errors.Is(err, jetstream.ErrKeyNotFound) {
		w.t.Fatal(err)
	}
	now := leaseRecord{Holder: fmt.Sprintf("test-%d", was.Term+1), Term: was.Term + 1, Checkpoint: was.Checkpoint, Paused: was.Paused}
	value, err := json.Marshal(now)
	if err != nil {
		w.t.Fatal(err)
	}
	if revision, err = bucket.Update(ctx, leaseKey(w.feed.name), value, revision); err != nil {
		w.t.Fatal(err)
	}
	l := &lease{kv: bucket, key: leaseKey(w.feed.name), until: until, heartbeat: time.Minute, record: now, revision: revision}
	w.feed.lease, w.feed.sound = l, false
	return l
}

func forNow() time.Time { return time.Now().Add(time.Hour) }

// share puts the world's feed under a lease from now on, whatever crashes.
func (w *world) share() {
	w.shared = true
	w.leased(forNow)
}

// elsewhere goes on as another process does that becomes the holder, with the store at path; "" = an empty one.
func (w *world) elsewhere(path string) {
	w.t.Helper()
	if path == "" {
		path = filepath.Join(w.t.TempDir(), "elsewhere.db")
	}
	w.path = path
	w.shared = true
	w.reopen()
}

// TestTakeover: whoever becomes the holder goes on with the same delta, from an empty store, a store from before, or its own.
func TestTakeover(t *testing.T) {
	for _, where := range []string{"EmptyStore", "OldStore", "OwnStore"} {
		t.Run(where, func(t *testing.T) {
			w := newWorld(t, startServer(t), protimetest.Options{PageSize: 7})
			ids := w.company(40)
			w.leased(forNow)
			w.settle()
			first := w.path
			w.bustle(ids, 0)
			w.elsewhere("")
			w.settle()
			w.bustle(ids, 1)
			w.settle()
			switch where {
			case "EmptyStore":
				w.elsewhere("")
			case "OldStore":
				w.elsewhere(first)
			case "OwnStore":
				w.elsewhere(w.path)
			}
			w.bustle(ids, 2)
			w.settle()
			w.judge()
			if n := w.starts(); n != 1 {
				t.Errorf("%d deltas were started, want one", n)
			}
		})
	}
}

// TestTakeover_unfinishedWalk: what a walk has shown so far only its holder knew.
func TestTakeover_unfinishedWalk(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{PageSize: 5})
	ids := w.company(40)
	w.leased(forNow)
	w.settle()
	w.sim.Remove("clockings", ids[3])
	w.sim.Remove("clockings", ids[39])
	w.sim.Advance(80 * time.Hour) // the delta expires, and a new one does not speak of changes as old as these
	// The walk shows what is there, and the confirmation of what it did not show is cut short.
	w.faults.set(func(int) (int, error) { return 0, errBoom }, nil)
	for range 3 {
		if p := w.feed.plan(w.feed.Step(context.Background()), 0); p.restart != "" {
			if err := w.feed.restart(p.restart, false); err != nil {
				break
			}
		}
	}
	w.faults.clear()
	if !w.checkpoint().Confirm {
		t.Fatalf("the walk has not ended: %+v", w.checkpoint())
	}
	before := len(w.messages())
	w.sim.ResetRequests()
	w.elsewhere("")
	w.settle()
	w.judge()
	asked := 0
	for _, r := range w.sim.Requests() {
		if strings.Contains(r.Path, "/clockings/") && !strings.Contains(r.Path, "/delta/") {
			asked++
		}
	}
	if asked != 2 {
		t.Errorf("%d records were asked for one by one, want the two that the walk does not show", asked)
	}
	if got := len(w.messages()) - before; got != 2 {
		t.Errorf("%d messages more, want the two deletions", got)
	}
}

// TestTakeover_firstListing: a first listing is gone on with near where the last holder was, since its checkpoint is handed over at
// every heartbeat.
func TestTakeover_firstListing(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{PageSize: 10})
	w.company(100)
	w.leased(forNow).heartbeat = 0
	pages := 0
	w.sim.Fail(protimetest.Fault{Kind: protimetest.Status, Status: 503, Times: 1, Match: func(r *http.Request) bool {
		pages++
		return strings.Contains(r.URL.RawQuery, "continuationToken") && pages > 6
	}})
	if err := w.feed.Step(t.Context()); err == nil {
		t.Fatal("the step went well, though a page was refused")
	}
	w.elsewhere("")
	if at := w.feed.lease.checkpoint(); !strings.Contains(at.Cursor, "continuationToken") {
		t.Errorf("the last holder left the cursor %q, want that of a page", at.Cursor)
	}
	w.settle()
	w.judge()
	if n := w.starts(); n != 1 {
		t.Errorf("%d deltas were started, want one", n)
	}
}

// TestTakeover_resync: a delta that was given up is not taken up again by whoever takes over before the first page of the next one.
func TestTakeover_resync(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.company(10)
	w.leased(forNow)
	w.settle()
	w.feed.Resync(true)
	w.sim.Fail(protimetest.Fault{Kind: protimetest.Status, Status: 503, Times: 1})
	if err := w.feed.Step(t.Context()); err == nil {
		t.Fatal("the step went well, though the API refuses everything")
	}
	tried := w.starts()
	w.elsewhere("")
	if at := w.feed.lease.checkpoint(); at.Cursor != "" || !at.TrustAPI {
		t.Errorf("the last holder left %+v, want no cursor, and the API to be trusted", at)
	}
	w.settle()
	w.judge()
	if n := w.starts() - tried; n != 1 {
		t.Errorf("%d deltas were started after the takeover, want one", n)
	}
}

// TestTakeover_lostTail: the stream lost its end while nobody followed, and the one who could tell is gone.
func TestTakeover_lostTail(t *testing.T) {
	for _, where := range []string{"EmptyStore", "OldStore"} {
		t.Run(where, func(t *testing.T) {
			w := newWorld(t, startServer(t), protimetest.Options{})
			ids := w.company(30)
			w.leased(forNow)
			w.settle()
			old := w.path
			w.elsewhere("")
			w.settle()
			w.sim.Remove("clockings", ids[1])
			w.bustle(ids[2:], 0)
			w.settle()
			w.loseTail(10)
			if where == "OldStore" {
				w.elsewhere(old)
			} else {
				w.elsewhere("")
			}
			w.settle()
			w.judge()
			if !strings.Contains(w.logs.String(), "lost acknowledged messages") {
				t.Errorf("nobody says that messages were lost:\n%s", w.logs)
			}
			if scrape(t, w.feed)["clockbridge_losses_total"] == 0 {
				t.Error("the loss is not counted")
			}
		})
	}
}

// TestTakeover_oldIndex: the stream lost messages in other hands and was repaired. An index from before, whose position the
// stream has reached again with the same message, must not be believed.
func TestTakeover_oldIndex(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	ids := w.company(20)
	w.leased(forNow)
	w.settle()
	backup := t.TempDir()
	w.restart(func() { copyDir(t, w.nats.dir, backup) })
	for _, id := range ids[10:] {
		w.sim.Update("clockings", id, map[string]any{"timeOfDayInMinutes": 1})
	}
	w.settle()
	old := w.path
	w.elsewhere("")
	w.settle()
	w.restart(func() { copyDir(t, backup, w.nats.dir) }) // the ten updates are gone, and their positions free
	w.leased(forNow)
	w.sim.Update("clockings", ids[10], map[string]any{"timeOfDayInMinutes": 2})
	w.settle()
	w.judge()
	if got := len(w.messages()); got != 30 {
		t.Fatalf("%d messages, want 30", got)
	}
	w.elsewhere(old) // it knows of ids[10] as it was, at a position where it stands as it is
	w.sim.Expire("clockings")
	w.settle()
	w.judge()
	if got := len(w.messages()); got != 30 {
		t.Errorf("%d messages, want the 30 there were", got)
	}
}

// TestTakeover_crash: a process that takes over crashes at any of its writes, and again, and does not forget where the last
// holder had come to.
func TestTakeover_crash(t *testing.T) {
	for _, kept := range []bool{false, true} {
		for after := range 8 {
			w := newWorld(t, startServer(t), protimetest.Options{})
			ids := w.company(2500) // more than one run
			w.leased(forNow)
			w.settle()
			w.bustle(ids, 0)
			w.elsewhere("")
			n := 0
			w.faults.set(nil, func() (bool, error) {
				if n++; n > after {
					return kept, errBoom
				}
				return true, nil
			})
			err := w.feed.Step(context.Background())
			w.faults.clear()
			if err == nil {
				break // it makes fewer writes
			}
			w.elsewhere(w.path)
			w.settle()
			w.judge()
			if n := w.starts(); n != 1 {
				t.Errorf("crash at write %d (kept %v): %d deltas were started, want one", after+1, kept, n)
			}
		}
	}
}

// TestTakeover_lateWrite: a holder was frozen with an append on its way, and thaws when its lease has long gone to another
// that has not written yet. The stream takes the append, since it fits; the new holder must find it and not write it again.
func TestTakeover_lateWrite(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	ids := w.company(10)
	w.share()
	w.settle()
	w.bustle(ids, 0)
	var frozen []message
	var at uint64
	out := w.feed.out.(faultyLog).appendLog
	w.feed.out = frozenLog{out, func(msgs []message, position uint64) { frozen, at = msgs, position }}
	if err := w.feed.Step(t.Context()); !errors.Is(err, errBoom) {
		t.Fatalf("got %v, want the append frozen", err)
	}
	first, firstStore := w.feed, w.store
	w.feed, w.store = nil, nil
	thaw := sync.OnceFunc(func() {
		if _, err := out.Append(t.Context(), frozen, at); err != nil {
			t.Errorf("the late append: %v", err)
		}
	})
	w.cfg.Source = watched{w.cfg.Source, func(string) { thaw() }} // when the new holder has caught up
	w.elsewhere("")
	if err := w.feed.Step(t.Context()); !errors.Is(err, errRefused) {
		t.Errorf("the new holder: %v, want its append refused", err)
	}
	w.settle()
	w.judge()
	first.out.close()
	firstStore.Close()
}

// frozenLog takes an append and does not send it.
type frozenLog struct {
	appendLog
	take func(msgs []message, at uint64)
}

func (l frozenLog) Append(_ context.Context, msgs []message, at uint64) (uint64, error) {
	l.take(msgs, at)
	return 0, errBoom
}

// TestPromise5OneFollower: a holder whose lease has lapsed, or went to another, neither asks the API nor writes.
func TestPromise5OneFollower(t *testing.T) {
	t.Run("Lapsed", func(t *testing.T) {
		w := newWorld(t, startServer(t), protimetest.Options{})
		ids := w.company(10)
		until := time.Now().Add(time.Hour)
		w.leased(func() time.Time { return until })
		w.settle()
		w.bustle(ids, 0)
		until = time.Now()
		requests, messages := w.sim.RequestCount(), len(w.messages())
		if err := w.feed.Step(t.Context()); !errors.Is(err, errLapsed) {
			t.Errorf("got %v, want errLapsed", err)
		}
		if w.sim.RequestCount() != requests || len(w.messages()) != messages {
			t.Error("it acted all the same")
		}
		until = time.Now().Add(time.Hour)
		w.settle()
		w.judge()
	})
	t.Run("LapsedBetweenFetchAndAppend", func(t *testing.T) {
		w := newWorld(t, startServer(t), protimetest.Options{})
		w.company(10)
		var lapsed atomic.Bool
		w.leased(func() time.Time {
			if lapsed.Load() {
				return time.Time{}
			}
			return forNow()
		})
		w.settle()
		w.company(1)
		source := w.feed.cfg.Source
		w.feed.cfg.Source = lapsing{source, func() { lapsed.Store(true) }}
		messages := len(w.messages())
		if err := w.feed.Step(t.Context()); !errors.Is(err, errLapsed) {
			t.Errorf("got %v, want errLapsed", err)
		}
		if len(w.messages()) != messages {
			t.Error("it wrote all the same")
		}
	})
	t.Run("Lost", func(t *testing.T) {
		w := newWorld(t, startServer(t), protimetest.Options{})
		ids := w.company(10)
		w.leased(forNow)
		w.settle()
		paused, pausedStore := w.feed, w.store
		w.store, w.feed = nil, nil
		w.path = filepath.Join(t.TempDir(), "other.db")
		w.reopen()
		w.leased(forNow)
		w.settle()
		w.bustle(ids, 0)
		messages := len(w.messages())
		err := paused.Step(t.Context()) // it believes that its lease is good, and has yet to learn better
		if len(w.messages()) != messages {
			t.Errorf("the former holder wrote %d messages (%v)", len(w.messages())-messages, err)
		}
		w.settle()
		w.judge()
		pausedStore.Close()
	})
}

// lapsing lets time pass between an answer of the API and what becomes of it.
type lapsing struct {
	Source
	after func()
}

func (l lapsing) Fetch(ctx context.Context, cursor string) (*protime.Page, error) {
	page, err := l.Source.Fetch(ctx, cursor)
	l.after()
	return page, err
}

// TestIdlePoll: an idle poll is one request, and writes nothing but one message to the bucket: JetStream syncs that one, the
// store nothing.
func TestIdlePoll(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.company(10)
	w.leased(forNow)
	w.settle()
	commits := 0
	var mu sync.Mutex
	w.faults.set(nil, func() (bool, error) { mu.Lock(); defer mu.Unlock(); commits++; return true, nil })
	lastOfBucket := func() uint64 {
		s, err := w.js.Stream(t.Context(), "KV_"+Bucket)
		if err != nil {
			t.Fatal(err)
		}
		return s.CachedInfo().State.LastSeq
	}
	requests, revision, cursor := w.sim.RequestCount(), lastOfBucket(), w.feed.at.Cursor
	w.step()
	if w.feed.at.Cursor == cursor {
		t.Fatal("the deltaLink is the same, so nothing was to be recorded")
	}
	if got := w.sim.RequestCount() - requests; got != 1 {
		t.Errorf("%d requests, want one", got)
	}
	if got := lastOfBucket() - revision; got != 1 {
		t.Errorf("%d messages to the bucket, want one", got)
	}
	if commits != 0 {
		t.Errorf("%d commits, want none", commits)
	}
	// And the deltaLink is not lost with the process.
	w.faults.clear()
	idle := w.feed.at.Cursor
	w.reopen()
	w.leased(forNow)
	if err := w.feed.catchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	if w.feed.at.Cursor != idle {
		t.Errorf("the next process goes on from %q, want %q", w.feed.at.Cursor, idle)
	}
}
