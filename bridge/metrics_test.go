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

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"

	"clockbridge/protime/protimetest"
	"clockbridge/store"
)

// scrape is what Prometheus sees of feeds: of counters and gauges the value, of histograms how much they have counted. Keys
// are such as clockbridge_feed_state{state="healthy"}, without tenant and collection.
func scrape(t testing.TB, feeds ...*Feed) map[string]float64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(NewCollector(func() []*Feed { return feeds }))
	problems, err := testutil.GatherAndLint(registry)
	if err != nil || len(problems) > 0 {
		t.Errorf("metrics are not in Prometheus' conventions: %v %v", problems, err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				if l.GetName() != "tenant" && l.GetName() != "collection" {
					labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
				}
			}
			key := family.GetName()
			if len(labels) > 0 {
				key += "{" + strings.Join(labels, ",") + "}"
			}
			values[key] += value(m)
		}
	}
	return values
}

func value(m *dto.Metric) float64 {
	return m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
}

// shows compares what is scraped with what is wanted of it; -1 means that the series is not there.
func shows(t testing.TB, got map[string]float64, want map[string]float64) {
	t.Helper()
	for key, value := range want {
		v, ok := got[key]
		if value == -1 && ok || value != -1 && (!ok || v != value) {
			t.Errorf("%s is %v (there: %t), want %v", key, v, ok, value)
		}
	}
}

func TestMetrics(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	shows(t, scrape(t, w.feed), map[string]float64{
		`clockbridge_feed_state{state="starting"}`:                               1,
		`clockbridge_feed_state{state="healthy"}`:                                0,
		`clockbridge_feed_lease_held`:                                            0,
		`clockbridge_feed_position`:                                              0,
		`clockbridge_feed_cursor_age_seconds`:                                    -1,
		`clockbridge_feed_cursor_expires_in_seconds`:                             -1,
		`clockbridge_feed_last_change_timestamp_seconds`:                         -1,
		`clockbridge_verify_differences{kind="missing"}`:                         -1,
		`clockbridge_verify_timestamp_seconds`:                                   -1,
		`clockbridge_published_changes_total{origin="snapshot",type="upserted"}`: 0,
		`clockbridge_published_changes_total{origin="repair",type="deleted"}`:    0,
		`clockbridge_skipped_changes_total{reason="same"}`:                       0,
		`clockbridge_skipped_changes_total{reason="stale"}`:                      0,
		`clockbridge_unreadable_changes_total`:                                   0,
		`clockbridge_retries_total{state="retrying"}`:                            0,
		`clockbridge_resyncs_total{reason="expired"}`:                            0,
		`clockbridge_resyncs_total{reason="cursor refused with 404"}`:            0,
		`clockbridge_losses_total`:                                               0,
		`clockbridge_lost_records_total`:                                         0,
		`clockbridge_api_requests_total{code="200",endpoint="token"}`:            0,
		`clockbridge_api_request_duration_seconds{endpoint="api"}`:               0,
		`clockbridge_poll_duration_seconds`:                                      0,
		`clockbridge_append_duration_seconds`:                                    0,
	})
	ids := w.company(4)
	w.settle()
	w.sim.Remove("clockings", ids[0])
	w.settle()
	w.sim.Expire("clockings")
	w.settle()
	w.feed.recovered()
	got := scrape(t, w.feed)
	shows(t, got, map[string]float64{
		`clockbridge_published_changes_total{origin="snapshot",type="upserted"}`: 4,
		`clockbridge_published_changes_total{origin="delta",type="deleted"}`:     1,
		`clockbridge_resyncs_total{reason="expired"}`:                            1,
		`clockbridge_append_duration_seconds`:                                    2,
		`clockbridge_feed_state{state="healthy"}`:                                1,
		`clockbridge_feed_state{state="starting"}`:                               0,
		`clockbridge_feed_position`:                                              5,
	})
	if same := got[`clockbridge_skipped_changes_total{reason="same"}`]; same < 3 {
		t.Errorf("%v changes skipped, want at least the three that the resync showed unchanged", same)
	}
	if age := got["clockbridge_feed_cursor_age_seconds"]; age < 0 || age > 20 {
		t.Errorf("the cursor is %v s old, want next to nothing", age)
	}
	if at := got["clockbridge_feed_last_change_timestamp_seconds"]; time.Since(time.Unix(int64(at), 0)) > 20*time.Second {
		t.Errorf("the last change was stored at %v, want a moment ago", at)
	}
}

func TestMetrics_Requested(t *testing.T) {
	f := idle(new(logBuffer))
	f.cfg.Metrics.Requested(true, 401, time.Second)
	f.cfg.Metrics.Requested(false, 0, time.Minute)
	shows(t, scrape(t, f), map[string]float64{
		`clockbridge_api_requests_total{code="401",endpoint="token"}`: 1,
		`clockbridge_api_requests_total{code="none",endpoint="api"}`:  1,
		`clockbridge_api_request_duration_seconds{endpoint="token"}`:  1,
		`clockbridge_api_request_duration_seconds{endpoint="api"}`:    1,
	})
}

// What fails is counted by the state that it leads to, if it is tried again, and a pass that ends well by its time.
func TestMetrics_loop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := idle(new(logBuffer))
		ctx, cancel := context.WithCancel(t.Context())
		n := 0
		err := f.loop(ctx, func(context.Context) error {
			switch n++; n {
			case 1, 2:
				return onCursor(errors.New("connection refused"))
			case 3:
				return onCursor(apiErr(http.StatusForbidden, 0))
			case 5:
				cancel()
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		f.fail(plan{state: StateConflict, wait: forever}, ErrConflict)
		shows(t, scrape(t, f), map[string]float64{
			`clockbridge_retries_total{state="retrying"}`:     2,
			`clockbridge_retries_total{state="unauthorized"}`: 1,
			`clockbridge_retries_total{state="conflict"}`:     -1,
			`clockbridge_feed_state{state="conflict"}`:        1,
			`clockbridge_poll_duration_seconds`:               1, // the last one was interrupted
		})
	})
}

// TestMetrics_lost: what the stream has lost is counted once for the loss and once for each record.
func TestMetrics_lost(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.company(7)
	w.settle()
	if err := w.js.DeleteStream(context.Background(), w.stream()); err != nil {
		t.Fatal(err)
	}
	w.crash()
	w.settle()
	shows(t, scrape(t, w.feed), map[string]float64{
		`clockbridge_losses_total`:                                             1,
		`clockbridge_lost_records_total`:                                       7,
		`clockbridge_published_changes_total{origin="repair",type="upserted"}`: 7,
	})
}

// TestCollector_hangs: an age is reckoned when it is asked for, so that it grows while nothing happens.
func TestCollector_hangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := idle(new(logBuffer))
		f.status.fetched()
		f.recovered()
		<-time.After(60*time.Hour + 17*time.Minute + 1500*time.Millisecond)
		shows(t, scrape(t, f), map[string]float64{
			"clockbridge_feed_cursor_age_seconds":        60*3600 + 17*60 + 1.5,
			"clockbridge_feed_cursor_expires_in_seconds": 11*3600 + 42*60 + 58.5,
		})
		<-time.After(13 * time.Hour)
		shows(t, scrape(t, f), map[string]float64{"clockbridge_feed_cursor_expires_in_seconds": -3600 - 17*60 - 1.5})
	})
}

// TestCollector_restart: the age of a cursor does not begin anew when its process does, be the API or NATS away.
func TestCollector_restart(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.company(3)
	w.settle()
	at := w.checkpoint()
	to := at
	to.Answered = time.Now().UTC().Add(-50 * time.Hour)
	if err := w.store.Commit(w.feed.name, at, to, nil); err != nil {
		t.Fatal(err)
	}
	aged := func(what string, f *Feed) {
		t.Helper()
		if age := scrape(t, f)["clockbridge_feed_cursor_age_seconds"]; age < 50*3600 || age > 51*3600 {
			t.Errorf("%s: the cursor is %v s old, want 50 h", what, age)
		}
	}
	cancel := w.sim.Fail(protimetest.Fault{Kind: protimetest.Status, Status: http.StatusServiceUnavailable})
	w.crash()
	if err := w.feed.Step(t.Context()); err == nil {
		t.Fatal("the API is away, and a step ended well")
	}
	aged("API away", w.feed)

	w.crash()
	fleet, err := NewFleet(FleetConfig{NATS: w.nc, Store: w.store})
	if err != nil {
		t.Fatal(err)
	}
	fleet.Follow([]*Feed{w.feed})
	aged("NATS away", w.feed)

	cancel()
	w.crash()
	w.settle()
	if age := scrape(t, w.feed)["clockbridge_feed_cursor_age_seconds"]; age > 20 {
		t.Errorf("the cursor is %v s old after an answer, want next to nothing", age)
	}
	if age := time.Since(w.checkpoint().Answered); age > 20*time.Second {
		t.Errorf("the checkpoint's cursor is %s old after an answer, want next to nothing", age)
	}
}

// TestFeed_moved_answered: an API that names the same cursor again and again makes a checkpoint an hour, and no more.
func TestFeed_moved_answered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := idle(new(logBuffer))
		same := run{next: "c", latest: true}
		f.at = f.moved(same, 1)
		<-time.After(answeredEvery - 1)
		if to := f.moved(same, 1); to != f.at {
			t.Errorf("got %+v, want what it was: %+v", to, f.at)
		}
		<-time.After(1)
		if to := f.moved(same, 1); to.Answered.Sub(f.at.Answered) != answeredEvery {
			t.Errorf("answered at %s, want %s later than %s", to.Answered, answeredEvery, f.at.Answered)
		}
		if !onlyCursor(f.at, f.moved(same, 1)) {
			t.Error("an answer alone is no reason to write the store")
		}
	})
}

// TestCollector_standby: of two instances one holds the lease, and the other's old numbers hide nothing.
func TestCollector_standby(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.company(20)
	a, b := w.pair(beatNever)
	b.feeds[0].status.verify(VerifyReport{Missing: 3}) // of an earlier time, say
	b.feeds[0].status.fetched()
	shows(t, scrape(t, a.feeds...), map[string]float64{
		`clockbridge_feed_lease_held`:             1,
		`clockbridge_feed_state{state="healthy"}`: 1,
		`clockbridge_feed_position`:               20,
	})
	shows(t, scrape(t, b.feeds...), map[string]float64{
		`clockbridge_feed_lease_held`:                    0,
		`clockbridge_feed_state{state="standby"}`:        1,
		`clockbridge_feed_position`:                      -1,
		`clockbridge_feed_cursor_age_seconds`:            -1,
		`clockbridge_verify_differences{kind="missing"}`: -1,
	})
	a.stop()
	waitFor(t, "b to follow", b.holds)
	shows(t, scrape(t, a.feeds...), map[string]float64{`clockbridge_feed_lease_held`: 0})
	shows(t, scrape(t, b.feeds...), map[string]float64{
		`clockbridge_feed_lease_held`:                    1,
		`clockbridge_verify_differences{kind="missing"}`: -1,
	})
}

// TestCollector_lapsed: a lease that could not be renewed is not held, whatever the feed is busy with.
func TestCollector_lapsed(t *testing.T) {
	f := idle(new(logBuffer))
	until := time.Now().Add(time.Hour)
	f.status.held(&lease{until: func() time.Time { return until }})
	shows(t, scrape(t, f), map[string]float64{`clockbridge_feed_lease_held`: 1})
	until = time.Now()
	shows(t, scrape(t, f), map[string]float64{`clockbridge_feed_lease_held`: 0})
}

// TestCollector_released: a lease that is still good, but not used any more, is not held.
func TestCollector_released(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	l := w.leased(forNow)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.feed.hold(ctx, l) }()
	leased := func() float64 { return scrape(t, w.feed)["clockbridge_feed_lease_held"] }
	waitFor(t, "the feed to be followed", func() bool { return leased() == 1 })
	stop()
	if err := <-ended; err != nil || leased() != 0 {
		t.Errorf("%v, and the lease held is %v, want 0", err, leased())
	}
}

// TestCollector_gone: a feed that is gone leaves nothing behind, also if it still has something to count.
func TestCollector_gone(t *testing.T) {
	f := idle(new(logBuffer))
	feeds := []*Feed{f}
	registry := prometheus.NewRegistry()
	registry.MustRegister(NewCollector(func() []*Feed { return feeds }))
	if n, err := testutil.GatherAndCount(registry); n == 0 || err != nil {
		t.Fatalf("%d series, %v", n, err)
	}
	feeds = nil
	f.cfg.Metrics.resynced(resyncExpired)
	f.moved(run{}, 0)
	if n, err := testutil.GatherAndCount(registry); n != 0 || err != nil {
		t.Errorf("%d series, %v, want none", n, err)
	}
}

// TestLog_states: a line for each change of state, few while a failure lasts, one when it is over.
func TestLog_states(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logs := new(logBuffer)
		f := idle(logs)
		read := 0
		since := func() string {
			said := logs.String()[read:]
			read += len(said)
			return said
		}
		ends := func(err error) {
			if err == nil {
				f.status.passed(true)
				f.recovered()
				return
			}
			f.fail(f.plan(err, 2*time.Second), err)
		}
		down, refused := onCursor(errors.New("connection refused")), onCursor(apiErr(http.StatusForbidden, 0))
		stale := func() error { f.status.judged(tally{stale: 1}); return nil }
		for _, step := range []struct {
			name string
			err  func() error
			want string // what the one line has; "" = none
		}{
			{"starts", func() error { return nil }, `level=INFO msg="feed follows" state=healthy`},
			{"is well", func() error { return nil }, ""},
			{"fails", func() error { return down }, `level=WARN msg="feed not healthy" state=retrying error="fetch changes: connection refused" attempts=1`},
			{"fails again", func() error { return down }, `attempts=2`},
			{"fails a third time", func() error { return down }, ""},
			{"fails a fourth time", func() error { return down }, `next_try=2s`},
			{"is refused", func() error { return refused }, `msg="feed not healthy" state=unauthorized`},
			{"recovers", func() error { return nil }, `level=INFO msg="feed recovered" state=healthy attempts=5`},
			{"is stale", stale, `level=WARN msg="feed shows only stale changes" state=stale`},
			{"is stale still", stale, ""},
			{"is fresh again", func() error { f.status.judged(tally{fresh: 1}); return nil }, `level=INFO msg="feed recovered" state=healthy`},
			{"stops", func() error { return fmt.Errorf("%w: a foreign message", ErrConflict) }, `state=conflict`},
		} {
			ends(step.err())
			said := since()
			if n := strings.Count(said, "\n"); step.want == "" && n != 0 || step.want != "" && (n != 1 || !strings.Contains(said, step.want)) {
				t.Errorf("%s: want one line with %q, or none if that is empty:\n%s", step.name, step.want, said)
			}
		}
	})
}

// TestLog_standby: whoever stands by says so once, and names the holder; while there is none the lease's line has said it.
func TestLog_standby(t *testing.T) {
	logs := new(logBuffer)
	f := idle(logs)
	for _, holder := range []string{"", "b", "b", "", "c"} {
		f.standBy(holder)
	}
	if got := strings.Count(logs.String(), "\n"); got != 2 || !strings.Contains(logs.String(), "holder=b") || !strings.Contains(logs.String(), "holder=c") {
		t.Errorf("want one line for each holder:\n%s", logs)
	}
}

// TestLog_verify: a verification that fails again and again is told of ever less often, with the count and when it is tried again.
func TestLog_verify(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logs := new(logBuffer)
		f := idle(logs)
		f.cfg.VerifyEvery = 24 * time.Hour
		f.cfg.Filter = func(time.Time) string { return "" }
		f.status.healthy()
		f.status.moved(store.Checkpoint{Origin: OriginDelta}, nil)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go f.verifyEvery(ctx)
		<-time.After(verifyFirst + 9*verifyAgain + time.Second)
		if got := strings.Count(logs.String(), "stream not verified"); got != 4 || !strings.Contains(logs.String(), "attempts=8 next_try=15m0s") {
			t.Errorf("%d lines for ten failures, want 4 (the 1st, 2nd, 4th, 8th):\n%s", got, logs)
		}
	})
}
