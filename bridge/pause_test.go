package bridge

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"clockbridge/protime/protimetest"
	"clockbridge/store"
)

// pauseFeed pauses the clockings, and waits until i shows it. Like a person, it asks again where a busy machine has lost the lease
// for a moment.
func (w *world) pauseFeed(i *instance) (until time.Time) {
	w.t.Helper()
	waitFor(w.t, i.name+" to take the pause", func() bool {
		var err error
		until, err = RequestPause(context.Background(), w.nc, w.tenant, "clockings")
		return err == nil
	})
	waitFor(w.t, i.name+" to show the pause", i.paused)
	return until
}

func (w *world) resumeFeed() {
	w.t.Helper()
	waitFor(w.t, "somebody to resume", func() bool {
		_, err := RequestResume(context.Background(), w.nc, w.tenant, "clockings")
		return err == nil
	})
}

// paused reports whether i has shown the pause, in its log at last.
func (i *instance) paused() bool {
	return i.feeds[0].Status().State == StatePaused && strings.Contains(i.logs.String(), `msg="feed paused"`)
}

// idles fails if i asks the API for anything, or the stream grows, while i beats twice, which is many polls.
func (w *world) idles(i *instance) {
	w.t.Helper()
	w.sim.ResetRequests()
	before := len(w.messages())
	watch, err := kv(w.t, w.nc).Watch(w.t.Context(), memberPrefix+"*", jetstream.UpdatesOnly())
	if err != nil {
		w.t.Fatal(err)
	}
	defer watch.Stop()
	for beats := 0; beats < 2; {
		if e := <-watch.Updates(); e != nil {
			if m, ok := decodeMember(e.Value()); ok && m.Name == i.name {
				beats++
			}
		}
	}
	if n := w.sim.RequestCount(); n != 0 {
		w.t.Errorf("%s sent %d requests to the API while the feed was paused", i.name, n)
	}
	if n := len(w.messages()); n != before {
		w.t.Errorf("%d messages were appended while the feed was paused", n-before)
	}
}

// TestPause: a paused feed is held and does nothing, which shows everywhere; a restart changes nothing about that; resumed, it goes on
// with the same delta.
func TestPause(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	ids := w.company(30)
	a := w.join("a", "", beatSoon)
	waitFor(t, "a to follow", a.holds)
	fetched := a.feeds[0].Status().FetchedAt
	until := w.pauseFeed(a)
	s := a.feeds[0].Status()
	if s.Ready() || s.Holder != "a" || s.Position != 30 || !strings.Contains(s.Advice, until.Format(time.RFC3339)) {
		t.Errorf("status %+v, want it not ready, held by a at 30, and the advice to name %s", s, until)
	}
	if d := until.Sub(fetched); d < 72*time.Hour-time.Second || d > 72*time.Hour+time.Minute {
		t.Errorf("it can be resumed until %s after the last answer, want 72h", d)
	}
	if n := strings.Count(a.logs.String(), "state=paused"); n != 1 {
		t.Errorf("%d log lines tell of the pause, want 1:\n%s", n, a.logs)
	}
	shows(t, scrape(t, a.feeds[0]), map[string]float64{`clockbridge_feed_state{state="paused"}`: 1, `clockbridge_feed_state{state="healthy"}`: 0})
	w.bustle(ids, 0)
	w.idles(a)

	again, err := RequestPause(t.Context(), w.nc, w.tenant, "clockings")
	if err != nil || !again.Equal(until) {
		t.Errorf("paused again: %v, %v, want %v as before", again, err, until)
	}
	a.crash()
	b := w.join("a", a.path, beatSoon)
	waitFor(t, "the pause to outlast a crash", b.paused)
	if now := b.feeds[0].Status(); !now.Since.Equal(s.Since) || now.Position != 30 {
		t.Errorf("after a restart: paused since %s at %d, want %s and 30", now.Since, now.Position, s.Since)
	}
	w.idles(b)
	b.stop()
	c := w.join("a", a.path, beatSoon)
	waitFor(t, "the pause to outlast a stop", c.paused)

	w.resumeFeed()
	waitFor(t, "it to follow again", c.holds)
	if s := c.feeds[0].Status(); s.Advice != "" {
		t.Errorf("resumed: %+v", s)
	}
	w.current(c)
	c.stop()
	d := w.join("a", a.path, beatSoon)
	waitFor(t, "the pause to be forgotten", d.holds)
	if n := w.starts(); n != 0 {
		t.Errorf("%d deltas were started since the pause, want none", n)
	}
}

// TestPause_takeover: whoever takes a paused feed over, with an empty store, keeps it paused.
func TestPause_takeover(t *testing.T) {
	for _, how := range []string{"Stop", "Crash"} {
		t.Run(how, func(t *testing.T) {
			w := newWorld(t, startServer(t), protimetest.Options{})
			ids := w.company(30)
			a, b := w.pair(beatSoon)
			until := w.pauseFeed(a)
			since := a.feeds[0].Status().Since
			w.bustle(ids, 0)
			if how == "Stop" {
				a.stop()
			} else {
				a.crash()
			}
			waitFor(t, "b to hold the paused feed", b.paused)
			if s := b.feeds[0].Status(); s.Holder != "b" || !s.Since.Equal(since) || s.Position != 30 {
				t.Errorf("status %+v, want it held by b at 30, paused since %s", s, since)
			}
			if again := w.pauseFeed(b); again.After(until) {
				t.Errorf("b says until %v, a said until %v", again, until)
			}
			w.idles(b)
			w.resumeFeed()
			waitFor(t, "b to follow", b.holds)
			w.current(b)
			if n := w.starts(); n != 0 {
				t.Errorf("%d deltas were started since the pause, want none", n)
			}
		})
	}
}

// TestPause_atOnce: a feed need not be well to be paused, and what it waits for need not come.
func TestPause_atOnce(t *testing.T) {
	for _, test := range []struct {
		name  string
		fault protimetest.Fault
		state State // before the pause
	}{
		{"Unanswered", protimetest.Fault{Kind: protimetest.Slow, Delay: time.Hour}, StateStarting},
		{"Retrying", protimetest.Fault{Kind: protimetest.Status, Status: 503}, StateRetrying},
		{"Unauthorized", protimetest.Fault{Kind: protimetest.Status, Status: 403}, StateUnauthorized},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t, startServer(t), protimetest.Options{})
			w.company(30)
			var asked atomic.Bool
			test.fault.Match = func(r *http.Request) bool {
				if r.Method == http.MethodGet {
					asked.Store(true)
				}
				return r.Method == http.MethodGet
			}
			mend := w.sim.Fail(test.fault)
			a := w.join("a", "", beatSoon)
			waitFor(t, "a to be "+string(test.state), func() bool {
				return asked.Load() && a.feeds[0].Status().State == test.state
			})
			if until := w.pauseFeed(a); !until.IsZero() {
				t.Errorf("it can be resumed until %s, but has no delta yet", until)
			}
			if s := a.feeds[0].Status(); s.Error != "" || s.Attempts != 0 || !s.RetryAt.IsZero() {
				t.Errorf("status %+v still tells of a failure", s)
			}
			w.idles(a)
			mend()
			w.resumeFeed()
			w.current(a)
		})
	}
}

// TestPause_walk: a pause in the middle of the first listing, a takeover, and the rest of the listing.
func TestPause_walk(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{PageSize: 100})
	records := 4 * maxRun // a whole run is stored while the next two at most are read
	w.company(records)
	var walker *Feed
	joined, held := make(chan struct{}), make(chan struct{}, 1)
	mend := w.sim.Fail(protimetest.Fault{Kind: protimetest.Slow, Delay: time.Hour, Match: func(r *http.Request) bool {
		<-joined
		hold := r.Method == http.MethodGet && walker.Status().Position >= maxRun
		if hold {
			select {
			case held <- struct{}{}:
			default:
			}
		}
		return hold
	}})
	a := w.join("a", "", beatSlow)
	walker = a.feeds[0]
	close(joined)
	<-held
	w.pauseFeed(a)
	b := w.join("b", "", beatSlow)
	a.stop()
	waitFor(t, "b to hold the paused feed", b.paused)
	if n := len(w.messages()); n == 0 || n == records {
		t.Fatalf("%d messages: not paused in the middle", n)
	}
	mend()
	w.resumeFeed()
	waitFor(t, "b to follow", b.holds)
	w.current(b)
	if n := w.starts(); n != 1 {
		t.Errorf("%d deltas were started, want one", n)
	}
}

// TestPause_refuses: what a paused feed would have to act for is refused; a feed that no lease belongs to cannot be paused, since
// nobody would know after its end.
func TestPause_refuses(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	ids := w.company(3)
	a := w.join("a", "", beatNever)
	waitFor(t, "a to follow", a.holds)
	w.pauseFeed(a)
	for verb, err := range map[string]error{
		verbResync: RequestResync(t.Context(), w.nc, w.tenant, "clockings", false),
		verbSync:   RequestSync(t.Context(), w.nc, w.tenant, "clockings"),
		verbRepair: RequestRepair(t.Context(), w.nc, w.tenant, "clockings", ids),
		verbVerify: RequestVerify(t.Context(), w.nc, w.tenant, "clockings"),
	} {
		if err == nil || !strings.Contains(err.Error(), "paused") {
			t.Errorf("%s: got %v, want it refused because of the pause", verb, err)
		}
	}
	a.stop()

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.feed.Run(ctx) }()
	waitFor(t, "the feed to follow", func() bool { return w.feed.Status().State == StateHealthy })
	if _, err := RequestPause(t.Context(), w.nc, w.tenant, "clockings"); err == nil || !strings.Contains(err.Error(), errUnleased.Error()) {
		t.Errorf("without a lease: got %v, want %v", err, errUnleased)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestFeed_expires: a delta lasts from the last answer that anybody got; what is not known is not said.
func TestFeed_expires(t *testing.T) {
	f := idle(new(logBuffer))
	answered := time.Date(2026, 11, 20, 9, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		name string
		at   store.Checkpoint
		own  time.Time // last answer to this process
		want time.Time
	}{
		{"ByTheRecord", store.Checkpoint{Cursor: "c", Answered: answered}, time.Time{}, answered.Add(DeltaLife)},
		{"ByTheStatus", store.Checkpoint{Cursor: "c", Answered: answered}, answered.Add(time.Hour), answered.Add(time.Hour + DeltaLife)},
		{"LongAgo", store.Checkpoint{Cursor: "c", Answered: answered}, answered.Add(-time.Hour), answered.Add(DeltaLife)},
		{"Unknown", store.Checkpoint{Cursor: "c"}, time.Time{}, time.Time{}},
		{"NoDelta", store.Checkpoint{Answered: answered}, answered, time.Time{}},
	} {
		f.status.update(func(s *Status) { s.FetchedAt = test.own })
		if got := f.expires(&lease{record: leaseRecord{Checkpoint: test.at}}); !got.Equal(test.want) {
			t.Errorf("%s: got %s, want %s", test.name, got, test.want)
		}
	}
}

// TestLease_pause: a pause and a checkpoint that are saved at the same time are both in the record.
func TestLease_pause(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	l := w.leased(forNow)
	since := time.Now().UTC()
	paused := make(chan error, 1)
	go func() { paused <- l.pause(since) }()
	at := w.checkpoint()
	for at.Round = 1; at.Round < 20; at.Round++ {
		if err := l.save(at); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-paused; err != nil {
		t.Fatal(err)
	}
	entry, err := kv(t, w.nc).Get(t.Context(), l.key)
	if err != nil {
		t.Fatal(err)
	}
	if r := decodeLease(entry.Value()); !r.Paused.Equal(since) || r.Checkpoint.Round != 19 {
		t.Errorf("the record says %+v", r)
	}
	next := w.leased(forNow)
	if err := l.pause(time.Time{}); !errors.Is(err, errLost) {
		t.Errorf("the former holder resumes: %v, want errLost", err)
	}
	if working, done := next.working(t.Context()); working.Err() == nil {
		t.Error("the next holder begins to work")
	} else {
		done()
	}
}
