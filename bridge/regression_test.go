package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"clockbridge/protime"
	"clockbridge/protime/protimetest"
	"clockbridge/store"
)

// Each of these is named after what once went wrong.

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

// A request that nobody answered had no deadline: the feed stood still in state starting, without a word.
func TestRegression_UnansweredRequestHangs(t *testing.T) {
	srv, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: t.TempDir(), NoLog: true, NoSigs: true,
		Users: []*server.User{{Username: "a", Password: "a", Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Deny: []string{"$JS.API.STREAM.MSG.GET.>"}}}}}})
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	defer srv.Shutdown()
	nc, err := nats.Connect(srv.ClientURL(), nats.UserInfo("a", "a"), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.company(3)
	w.cfg.NATS = nc
	w.reopen()
	done := make(chan error, 1)
	go func() { done <- w.feed.Step(context.Background()) }()
	select {
	case err := <-done:
		if p := w.feed.plan(err, 0); p.state != StateMisconfigured || p.advice != advicePermission {
			t.Errorf("plan %+v for %v, want misconfigured, and the permission that is missing", p, err)
		}
	case <-time.After(2 * readTimeout):
		t.Fatal("step does not end")
	}
}

// What a replay read was marked as seen by the walk in hand, so deletions that the walk had found were never asked for.
func TestRegression_ReplayTakenForTheWalk(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{NoRepeat: true})
	ids := w.company(50)
	w.settle()
	w.sim.Remove("clockings", ids[3])
	w.sim.Remove("clockings", ids[4])
	w.sim.Advance(73 * time.Hour)
	err := w.feed.Step(context.Background())
	if p := w.feed.plan(err, 0); p.restart == "" {
		t.Fatal(err)
	} else if err := w.feed.restart(p.restart, false); err != nil {
		t.Fatal(err)
	}
	// the resync walks, and the confirmation cannot be appended
	w.faults.set(func(int) (int, error) { return 0, errBoom }, nil)
	if err := w.feed.Step(context.Background()); !errors.Is(err, errBoom) {
		t.Fatal(err)
	}
	w.faults.clear()
	at := w.checkpoint()
	if !at.Confirm {
		t.Fatalf("%+v", at)
	}
	// the stream is restored whole from a backup: other birthday (as in RestoredElsewhere)
	w.anotherBirthday()
	w.crash()
	w.settle()
	w.judge()
}

// Asked for on a fresh feed, it never ended.
func TestRegression_TrustOutlivesItsWalk(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.company(5)
	w.feed.Resync(true)
	w.settle()
	if w.checkpoint().TrustAPI {
		t.Error("TrustAPI is on for ever after the walk ended")
	}
}

func TestRegression_TrustedDelta(t *testing.T) {
	t.Run("LongAfterTheWalk", func(t *testing.T) { testTrustedDelta(t, true) })
	t.Run("BehindTheWalk", func(t *testing.T) { testTrustedDelta(t, false) })
}

// Deltas behind a trusted walk were trusted too, in any order, and again after a crash.
func testTrustedDelta(t *testing.T, early bool) {
	w := newWorld(t, startServer(t), protimetest.Options{ShuffleEveryVersion: true, Seed: 7})
	onFetch := func() {}
	w.cfg.Source = watched{w.cfg.Source, func(string) { onFetch() }}
	w.reopen()
	var ids []string
	change := func() {
		for i := range 3 {
			w.sim.Update("clockings", ids[0], map[string]any{"timeOfDayInMinutes": i + 900})
		}
	}
	crash := func() {
		n := 0
		w.faults.set(nil, func() (bool, error) { // the first commit behind an append is lost
			n++
			if n == 1 {
				return false, errBoom
			}
			return false, nil
		})
	}
	if early {
		ids = w.company(5)
		w.feed.Resync(true)
		w.settle() // the walk is long over
		change()
		crash()
	} else {
		ids = w.company(5)
		w.settle()
		w.feed.Resync(true)
		n := 0
		onFetch = func() {
			if n++; n == 2 { // delta behind the walk
				change()
				crash()
			}
		}
	}
	if err := w.feed.Step(context.Background()); !errors.Is(err, errBoom) {
		t.Fatalf("step: %v, want %v", err, errBoom)
	}
	w.faults.clear()
	w.crash()
	w.settle()
	w.judge()
}

// A delta that is ended again and again was walked again and again, at full speed, and shown as healthy.
func TestRegression_EndlessResyncs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := idle(new(logBuffer))
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		steps := 0
		err := f.loop(ctx, func(context.Context) error {
			steps++
			f.at.Cursor = "c" // the walk got somewhere
			return onCursor(apiErr(http.StatusGone, 0))
		})
		if s := f.Status(); err != nil || steps > 40 || s.State != StateRetrying || s.Advice != adviceRestarts {
			t.Errorf("%d walks in 10 minutes, status %+v, %v; want a few, and a state that says so", steps, s, err)
		}
	})
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

// A 404 of a proxy was believed because a walk had ended, although that walk had shown the record.
func TestRegression_ProxysWordForARecordThatTheWalkShowed(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{NoRepeat: true})
	ids := w.company(50)
	w.settle()
	w.sim.Remove("clockings", ids[3])
	w.sim.Advance(73 * time.Hour)
	err := w.feed.Step(context.Background())
	if err := w.feed.restart(w.feed.plan(err, 0).restart, false); err != nil {
		t.Fatal(err)
	}
	w.faults.set(func(int) (int, error) { return 0, errBoom }, nil)
	if err := w.feed.Step(context.Background()); !errors.Is(err, errBoom) {
		t.Fatal(err)
	}
	w.faults.clear()
	w.loseTail(5)
	w.crash()
	w.sim.Fail(protimetest.Fault{Kind: protimetest.Status, Status: 404, Body: "<html>no such route</html>", Times: 6, Match: func(r *http.Request) bool {
		return strings.Contains(r.URL.Path, "/clockings/")
	}})
	w.settle()
	w.judge()
}

// A 404 of a proxy was believed for a record that no walk can show.
func TestRegression_ProxysWordForARecordOutsideTheFilter(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{NoRepeat: true})
	w.company(5)
	w.settle()
	old := clocking(1, 480)
	old["date"] = "2026-01-02"
	id := w.sim.Insert("clockings", old)
	w.settle()
	w.cfg.Filter = func(time.Time) string { return "date ge '2026-06-01'" }
	w.reopen()
	w.settle()
	w.loseTail(1)
	w.crash()
	w.sim.Fail(protimetest.Fault{Kind: protimetest.Status, Status: 404, Body: "<html>no such route</html>", Times: 2, Match: func(r *http.Request) bool {
		return strings.Contains(r.URL.Path, "/clockings/")
	}})
	w.settle()
	for _, m := range w.messages() {
		if m.deleted {
			t.Errorf("record %s (want alive: %s) was taken for deleted, origin %s", m.id, id, m.origin)
		}
	}
	w.judge()
}

// One 400 on a later page of a walk was taken for a refused start: five minutes of "correct the filter".
func TestRegression_LaterPageTakenForTheStart(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{PageSize: 10})
	w.company(50)
	n := 0
	w.sim.Fail(protimetest.Fault{Kind: protimetest.Status, Status: 400, Times: 1, Match: func(r *http.Request) bool {
		if strings.Contains(r.URL.Path, "clockings") {
			n++
		}
		return n == 3
	}})
	err := w.feed.Step(context.Background())
	if p := w.feed.plan(err, time.Second); p.state != StateRetrying {
		t.Errorf("plan %+v for %v, want retrying", p, err)
	}
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

// While NATS was down, each of several instances asked without a pause whether the others were dead.
func TestRegression_BusyWhileNATSIsDown(t *testing.T) {
	f := &Fleet{cfg: FleetConfig{Heartbeat: time.Minute}}
	f.safeUntil(time.Now().Add(-time.Second))
	m := &membership{Fleet: f, id: "a", whole: true, due: time.Now().Add(time.Second), members: map[string]seen[memberRecord]{
		"b": {record: memberRecord{Heartbeat: time.Minute}, at: time.Now().Add(-time.Hour)},
	}}
	if next := m.next(); next.Before(m.due) {
		t.Errorf("there is something to do %s before the next heartbeat, though nothing may be done", m.due.Sub(next))
	}
}

// A feed whose response showed the old version of a record on a page of its own was shown as stale until the next change.
func TestRegression_StaleByThePage(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{ShuffleEveryVersion: true, DeltaPages: true, PageSize: 1})
	ids := w.company(1)
	w.settle()
	for seed := range uint64(8) { // some order has an old version last
		w.sim.Update("clockings", ids[0], map[string]any{"timeOfDayInMinutes": seed + 1})
		w.sim.Update("clockings", ids[0], map[string]any{"timeOfDayInMinutes": seed + 2})
		w.step()
		w.feed.recovered()
		w.sim.Expire("clockings")
		w.settle() // the new delta repeats what changed lately
		w.feed.recovered()
		if s := w.feed.Status(); s.State != StateHealthy {
			t.Fatalf("status = %+v, want healthy", s)
		}
	}
	w.judge()
}

// A feed that crashed between two pages of a response, of which the second showed only old versions of what the first had brought,
// was shown as stale until the next change.
func TestRegression_StaleByTheRestOfAResponse(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	link := func(token string) string { return apiRoot + "delta/clockings?deltaToken=" + token }
	change := func(version string) string {
		return `{"value":[{"changeType":"InsertOrUpdate","data":{"id":1,"changeVersion":"` + version + `"}}],`
	}
	broken := true
	w.cfg.Source = scripted{Source: w.cfg.Source, page: func(cursor string) string {
		switch {
		case cursor == link("1"):
			return change("B") + `"nextLink":"` + link("2") + `"}`
		case cursor == link("2") && broken:
			return "" // and so the process ends here
		case cursor == link("2"):
			return change("A") + `"deltaLink":"` + link("3") + `"}`
		}
		return `{"value":[],"deltaLink":"` + link("1") + `"}`
	}}
	w.reopen()
	if err := w.feed.Step(t.Context()); err == nil {
		t.Fatal("the step went well with half a response")
	}
	broken = false
	w.crash()
	w.step()
	w.feed.recovered()
	if s := w.feed.Status(); s.State != StateHealthy || s.Stale != 1 {
		t.Errorf("status = %+v, want healthy after 1 stale change", s)
	}
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

// The lease was looked at before the way to the API was found, and no more: a token, a name and a connection later, the
// request ended the delta of the next holder.
func TestRegression_RequestBehindALapsedLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		f := idle(new(logBuffer))
		f.lease = &lease{until: func() time.Time {
			if time.Since(began) < 5*time.Second {
				return began.Add(10 * time.Second)
			}
			return began.Add(15 * time.Second) // renewed once
		}}
		f.cfg.Source = farAway{}
		err := f.readPage(t.Context(), "c", new(run), nil)
		if took := time.Since(began); !errors.Is(err, errLapsed) || took != 15*time.Second {
			t.Errorf("the request was given up after %s with %v, want 15 s and %v", took, err, errLapsed)
		}
	})
}

// farAway is an API that takes a minute to be reached.
type farAway struct{ Source }

func (farAway) Fetch(ctx context.Context, _ string) (*protime.Page, error) {
	if err := sleep(ctx, time.Minute); err != nil {
		return nil, err
	}
	return nil, errors.New("reached")
}

// Of a hundred records that were asked for, one without an answer made the other answers worthless: with an API that fails
// now and then, a repair never ended.
func TestRegression_RepairThatNeverEnds(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.company(80)
	w.settle()
	w.loseTail(70)
	w.crash()
	n := 0
	w.sim.Fail(protimetest.Fault{Kind: protimetest.Status, Match: func(r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/clockings/") {
			return false
		}
		n++
		return n%20 == 0
	}})
	steps := 1
	for ; w.feed.Step(context.Background()) != nil && steps < 10; steps++ {
	}
	if w.checkpoint().Repair {
		t.Errorf("not repaired after %d passes, each with 19 answers in 20", steps)
	}
	w.judge()
}

// A feed that could not repair its stream was shown as healthy between two tries, whenever the delta had moved on.
func TestRegression_HealthyBeforeTheRepair(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	ids := w.company(20)
	w.settle()
	w.loseTail(10)
	w.crash()
	w.sim.Fail(protimetest.Fault{Kind: protimetest.Status, Match: func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/clockings/") }})
	for i := range 3 {
		w.sim.Update("clockings", ids[0], map[string]any{"timeOfDayInMinutes": i})
		if err := w.feed.Step(context.Background()); err == nil {
			t.Fatal("the step went well, though no record could be asked for")
		}
		if s := w.feed.Status(); s.Ready() {
			t.Fatalf("ready after step %d, with a repair to be made: %+v", i, s)
		}
	}
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

// A chain held a record twice. Its tail arrived late, behind a chain of another attempt that had put that record at just
// the position where the first of the two had been meant to be: an old version was stored after a newer one.
func TestRegression_RecordTwiceInAStalledChain(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	a := w.feed.out.(faultyLog).appendLog.(*appender)
	if err := a.reset(false, false); err != nil {
		t.Fatal(err)
	}
	msg := func(id, version string, prev uint64) message {
		return message{Entry: store.Entry{ID: id, Version: version}, prev: prev, data: []byte(`{}`), origin: OriginDelta}
	}
	stalled := []message{msg("1", "A", 0), msg("1", "B", 1)}
	ctx := context.Background()
	if form := a.choose(stalled, 0); form == formChain {
		// What the chain's second message does behind another attempt's first.
		if _, err := a.Append(ctx, []message{msg("1", "C", 0)}, 0); err != nil {
			t.Fatal(err)
		}
		if err := a.send(ctx, formChain, stalled[1:], 1); err == nil {
			t.Error("version B of record 1 was stored behind version C")
		}
	}
	if form := a.choose([]message{msg("1", "A", 0), msg("2", "A", 0)}, 0); form != formChain {
		t.Errorf("records that are new go as %s, want a chain", form)
	}
}

// A bucket that came back from a backup while the connection was lost had positions again that the watch believed to have
// shown: an instance saw its own heartbeats, and a holder that there was not any more. Nobody followed the feed.
func TestRegression_WatchOfABucketFromABackup(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	looks, err := w.nc.SubscribeSync("$JS.EVENT.ADVISORY.CONSUMER.CREATED.KV_" + Bucket + ".*")
	if err != nil {
		t.Fatal(err)
	}
	a := w.join("a", "", beatSoon)
	waitFor(t, "a to follow", a.holds)
	for range 2 { // to watch, and to purge what members have left behind
		if _, err := looks.NextMsg(10 * time.Second); err != nil {
			t.Fatalf("a does not watch the bucket: %v", err)
		}
	}
	if err := a.nc.ForceReconnect(); err != nil {
		t.Fatal(err)
	}
	if _, err := looks.NextMsg(10 * time.Second); err != nil {
		t.Errorf("a does not look at the whole bucket again when it has reconnected: %v", err)
	}
}

// A cursor was refused while the lease could not be written: that ended the feed, as if its store could not be, and with it the
// membership, so that every other feed of the process was given away.
func TestRegression_RestartThatCannotBeRecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logs := new(logBuffer)
		f := idle(logs)
		f.lease = &lease{until: forNow, lost: true}
		ctx, cancel := context.WithCancel(t.Context())
		tries := 0
		err := f.loop(ctx, func(context.Context) error {
			if tries++; tries == 3 {
				cancel()
			}
			f.at.Cursor, f.at.Origin, f.sound = "c", OriginDelta, true
			return onCursor(apiErr(http.StatusGone, 0))
		})
		if err != nil || tries != 3 {
			t.Errorf("after %d steps: got %v, want it to go on", tries, err)
		}
		if s := f.Status(); s.State != StateRetrying || !strings.Contains(s.Error, errLost.Error()) {
			t.Errorf("status %+v, want it retrying, and why", s)
		}
	})
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

// Two instances that had deleted each other took the lease from one another as fast as they could, until each sent its
// next heartbeat and found out.
func TestRegression_DeadUntilTheNextHeartbeat(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.company(5)
	a, b := w.pair(beatNever)
	w.bury("a")
	w.bury("b")
	for _, i := range []*instance{a, b} {
		waitFor(t, i.name+" to say what happened", func() bool { return strings.Contains(i.logs.String(), "taken for dead") })
	}
	waitFor(t, "one to follow again", func() bool { return a.holds() != b.holds() })
	w.company(5)
	w.current(a, b)
}

// After a bucket was put back from a backup, a member was taken for dead because its heartbeat had the revision of an earlier
// one.
func TestRegression_RevisionCountedTwice(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	m := &membership{members: map[string]seen[memberRecord]{}}
	beat := func(at time.Time) (revision uint64) {
		w.leased(forNow) // which makes the bucket
		value, err := json.Marshal(memberRecord{Name: "a", Heartbeat: time.Second, At: at})
		if err != nil {
			t.Fatal(err)
		}
		bucket := kv(t, w.nc)
		if _, err := bucket.Put(t.Context(), memberPrefix+"a", value); err != nil {
			t.Fatal(err)
		}
		entry, err := bucket.Get(t.Context(), memberPrefix+"a")
		if err != nil {
			t.Fatal(err)
		}
		m.see(entry)
		m.see(entry) // as when the whole bucket is looked at again
		return entry.Revision()
	}
	first := beat(time.Now().Add(-time.Hour))
	silent := m.members["a"]
	silent.at = time.Now().Add(-time.Hour)
	m.members["a"] = silent
	if err := w.js.DeleteKeyValue(t.Context(), Bucket); err != nil {
		t.Fatal(err)
	}
	if again := beat(time.Now()); again != first {
		t.Fatalf("revision %d, want %d once more", again, first)
	}
	if since := time.Since(m.members["a"].at); since > time.Minute {
		t.Errorf("silent for %s although it has just sent a heartbeat", since)
	}
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

// The watch of the bucket says that it has shown all that there is when it has shown as many keys as there were, be some of them the
// same one written again. A newcomer did not know the holder of a lease then, and took the lease from under it.
func TestRegression_HolderThatTheWatchHasNotShown(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.leased(forNow) // which makes the bucket
	bucket, key := kv(t, w.nc), leaseKey(w.feed.name)
	holder := memberRecord{Name: "a", Feeds: []string{w.feed.name}, Heartbeat: time.Minute}
	value, err := json.Marshal(holder)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bucket.Put(t.Context(), memberPrefix+"a", value); err != nil {
		t.Fatal(err)
	}
	revision, err := bucket.PutString(t.Context(), key, `{"holder":"a","name":"a","term":7}`)
	if err != nil {
		t.Fatal(err)
	}
	fleet, err := NewFleet(FleetConfig{NATS: w.nc, Store: w.store})
	if err != nil {
		t.Fatal(err)
	}
	fleet.feeds = map[string]*Feed{w.feed.name: w.feed}
	m := &membership{
		Fleet: fleet, kv: bucket, id: "b", log: slog.New(slog.DiscardHandler), held: map[string]*holding{}, due: forNow(),
		members: map[string]seen[memberRecord]{},
		leases:  map[string]seen[leaseRecord]{key: {record: leaseRecord{Holder: "a", Name: "a", Term: 7}, revision: revision}},
	}
	for range 2 {
		m.act(t.Context())
	}
	if entry, err := bucket.Get(t.Context(), key); err != nil || entry.Revision() != revision {
		t.Errorf("the lease was written: %s, %v", entry.Value(), err)
	}
	if s := w.feed.Status(); s.State != StateStandby || s.Holder != "a" {
		t.Errorf("status %+v, want it to stand by for a", s)
	}
}

// An append in hand, the save behind it and leaving the others took up to twelve seconds where NATS answers late and then not at all.
func TestRegression_StopTakesTooLong(t *testing.T) {
	if all := appendTimeout + saveTimeout + leaveTimeout; all >= 10*time.Second {
		t.Errorf("a graceful stop may wait for %s, want less than 10 s", all)
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

// Through a narrow connection a whole run did not get in the time that an append has. Of a batch nothing is stored then, so the
// same run was sent for ever.
func TestRegression_NarrowConnection(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{PageSize: 2 * maxRun})
	w.sim.Fill("clockings", 2*maxRun, 200)
	w.faults.set(func(n int) (int, error) {
		if n > maxRun/4 {
			return 0, context.DeadlineExceeded
		}
		return n, nil
	}, nil)
	if err := w.feed.Step(t.Context()); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v, want an append that is too large", err)
	}
	w.step()
	w.judge()
	w.faults.set(func(n int) (int, error) {
		if n != maxRun {
			t.Errorf("a run of %d, want %d: the connection is as wide as ever", n, maxRun)
		}
		return n, nil
	}, nil)
	w.sim.Touch("clockings", maxRun, 200)
	w.step()
	w.judge()
}

// Every second request was not answered after an outage that had cost the lease: it went to a subscription that nobody had any more.
func TestRegression_RequestsAfterAnOutage(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.company(3)
	a := w.join("a", "", beatSoon)
	waitFor(t, "a to follow", a.holds)
	w.restart(func() {
		waitFor(t, "a to leave", func() bool { return strings.Contains(a.feeds[0].Status().Error, "join the other instances") })
	})
	waitFor(t, "a to follow again", a.holds)
	for range 20 {
		if _, err := RequestStatus(t.Context(), w.nc, w.tenant, "clockings"); err != nil {
			t.Fatal(err)
		}
	}
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
