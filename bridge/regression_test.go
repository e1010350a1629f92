package bridge

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"clockbridge/protime/protimetest"
	"clockbridge/store"
)

// Each of these is named after what once went wrong.

// A request that nobody answered had no deadline: the feed stood still in state starting, without a word.
func TestRegression_UnansweredRequestHangs(t *testing.T) {
	nc := connectRestricted(t, &server.SubjectPermission{Deny: []string{"$JS.API.STREAM.MSG.GET.>"}})
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

// Where a stream had no leader for a moment, each message of a chain was answered with that nobody was there. Each of those answers, a
// thousand of them, was then taken for that of a later append, which was stored all the same.
func TestRegression_AnswersToAnEarlierAppend(t *testing.T) {
	srv := startServer(t)
	nc := srv.connect(t)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	a := &appender{nc: nc, codec: newCodec("acme", "answers", "https://x/answers")}
	defer a.close()
	msgs := make([]message, 100)
	for i := range msgs {
		msgs[i] = message{Entry: store.Entry{ID: fmt.Sprint(i), Version: "A"}, data: []byte(`{}`), origin: OriginDelta}
	}
	if err := a.reset(false, false); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Append(t.Context(), msgs, 0); !errors.Is(err, nats.ErrNoResponders) {
		t.Fatalf("got %v, want nobody to be there", err)
	}
	if _, err := js.CreateStream(t.Context(), streamConfig(StreamName("acme", "answers"), a.codec.prefix, 1)); err != nil {
		t.Fatal(err)
	}
	if err := a.reset(false, false); err != nil {
		t.Fatal(err)
	}
	if position, err := a.Append(t.Context(), msgs, 0); err != nil || position != 100 {
		t.Errorf("the next append ends at %d: %v", position, err)
	}
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

// A feed whose checkpoint was put back, as by a lease's record from a backup, took the pages that it had followed before for a
// listing that leads back to itself, and followed none of them any more.
func TestRegression_TrailOfAnotherCursor(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.step()
	home := w.checkpoint()
	page := func(link string) string { return `{"value":[],` + link + `}` }
	next := map[string]string{"": "a", "a": "b", "b": "c"}
	ended := false
	w.cfg.Source = scripted{Source: w.cfg.Source, page: func(cursor string) string {
		_, token, _ := strings.Cut(cursor, "page=")
		to, ok := next[token]
		switch {
		case ok:
			return page(`"nextLink":"` + apiRoot + "delta/clockings?page=" + to + `"`)
		case ended:
			return page(`"deltaLink":"` + apiRoot + `delta/clockings?deltaToken=y"`)
		}
		return "the page in front of the end does not come"
	}}
	w.reopen()
	if err := w.feed.Step(t.Context()); err == nil || !strings.HasSuffix(w.checkpoint().Cursor, "page=c") {
		t.Fatalf("got %v at %q, want an error at the last page", err, w.checkpoint().Cursor)
	}
	if err := w.store.Commit(w.feed.name, w.checkpoint(), home, nil); err != nil {
		t.Fatal(err)
	}
	w.feed.sound, ended = false, true
	if err := w.feed.Step(t.Context()); err != nil {
		t.Errorf("the same pages once more: %v", err)
	}
}

// An append that was still on its way when the stream was deleted and written anew fitted behind the same record's message there, and
// stored it a second time: only in a chain did messages name more than their position.
func TestRegression_LateAppendInARecreatedStream(t *testing.T) {
	for _, form := range forms(t, newLane(t, startServer(t))) {
		t.Run(form.String(), func(t *testing.T) {
			l, ctx := newLane(t, startServer(t)), t.Context()
			all := records(1, 2)
			if _, err := l.Append(ctx, all[1:], 0); err != nil {
				t.Fatal(err)
			}
			for l.failed = range maxCertain {
				if err := l.send(ctx, form, all[1:], 1); !errors.Is(err, errRefused) {
					t.Errorf("record 2 once more, behind %d appends that failed: %v, want %v", l.failed, err, errRefused)
				}
			}
			if got := l.holds(); got != 1 {
				t.Errorf("the stream holds %d messages, want 1", got)
			}
		})
	}
}
