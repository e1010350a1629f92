package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"clockbridge/protime/protimetest"
	"clockbridge/store"
)

// repair has records repaired and returns the messages that this added.
func (w *world) repair(ids ...string) []stored {
	w.t.Helper()
	before := uint64(0)
	if all := w.messages(); len(all) > 0 {
		before = all[len(all)-1].seq
	}
	if err := w.feed.Repair(ids); err != nil {
		w.t.Fatal(err)
	}
	w.settle()
	added := slices.DeleteFunc(w.messages(), func(m stored) bool { return m.seq <= before })
	for _, m := range added {
		if m.origin != OriginRepair {
			w.t.Errorf("message %d has origin %s, want %s", m.seq, m.origin, OriginRepair)
		}
	}
	return added
}

// agree fails unless stream and API agree.
func (w *world) agree() {
	w.t.Helper()
	if r, found := w.verify(); r.Differs() {
		w.t.Errorf("stream and API differ: %+v, %v", r, found)
	}
	if at := w.checkpoint(); at.Repair {
		w.t.Error("the checkpoint still says that there is something to repair")
	}
}

func TestFeed_Repair(t *testing.T) {
	srv := startServer(t)
	type made struct {
		*world
		ids []string
	}
	for _, test := range []struct {
		name  string
		harm  func(made)
		added int
	}{
		{"RemovedByHand", func(w made) { w.erase(w.ids[3]) }, 1},
		{"RemovedByHandAnOlderOneIsLeft", func(w made) {
			w.sim.Update("clockings", w.ids[3], map[string]any{"timeOfDayInMinutes": 1})
			w.settle()
			w.company(1) // at its end the stream is looked at with every poll
			w.settle()
			w.erase(w.ids[3])
		}, 1},
		{"DeletionRemovedByHand", func(w made) {
			w.sim.Remove("clockings", w.ids[3])
			w.settle()
			w.company(1)
			w.settle()
			w.erase(w.ids[3])
		}, 1},
		{"Nothing", func(made) {}, 0},
		{"DeletedLongAgo", func(w made) {
			w.sim.Remove("clockings", w.ids[3])
			w.settle()
		}, 0},
		{"OlderVersionPublished", func(w made) {
			w.forge(w.ids[3], "0000090200000000000A", false, []byte(`{}`))
		}, 1},
		{"OtherDataPublished", func(w made) {
			w.forge(w.ids[3], w.lastOf(w.ids[3]).version, false, []byte(`{"timeOfDayInMinutes":-1}`))
		}, 1},
		{"Phantom", func(w made) {
			w.forge("777777", "0000090200000000000A", false, []byte(`{"date":"2026-11-20"}`))
		}, 1},
		{"LaterVersionPublished", func(w made) { // nothing can be done about it but trust the API
			w.forge(w.ids[3], "00000902FFFFFFFFFFFF", false, []byte(`{}`))
		}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t, srv, protimetest.Options{})
			ids := w.company(20)
			w.settle()
			test.harm(made{w, ids})
			w.sim.ResetRequests()
			asked := append([]string{"777777"}, ids...)
			if added := w.repair(asked...); len(added) != test.added {
				t.Errorf("%d messages were added, want %d", len(added), test.added)
			}
			if test.name != "LaterVersionPublished" {
				w.agree()
			}
			lost := w.feed.Status().Lost
			if added := w.repair(asked...); len(added) != 0 {
				t.Errorf("asked again: %d messages were added", len(added))
			}
			if now := w.feed.Status().Lost; now != lost {
				t.Errorf("asked again: %d records count as lost, want %d as before", now, lost)
			}
			if w.starts() != 0 {
				t.Error("a delta was started")
			}
		})
	}
}

// Where nothing is to be repaired, nothing is written.
func TestFeed_Repair_needless(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	ids := w.company(20)
	w.settle()
	commits := func(do func()) (n int) {
		w.faults.set(nil, func() (bool, error) { n++; return true, nil })
		defer w.faults.clear()
		do()
		return n
	}
	polls := commits(w.settle)
	if got := commits(func() { w.repair(ids...) }); got != polls {
		t.Errorf("%d commits, want the %d of the polls", got, polls)
	}
}

// A message that appears behind the feed's back is read first; what was asked for is not forgotten.
func TestFeed_Repair_behindItsBack(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	ids := w.company(3)
	w.settle()
	w.forge(ids[0], w.lastOf(ids[0]).version, false, w.lastOf(ids[0]).data) // which leaves nothing to append
	if err := w.feed.Repair(ids); err != nil {
		t.Fatal(err)
	}
	if err := w.feed.heal(context.Background()); !errors.Is(err, errRefused) {
		t.Errorf("got %v, want %v", err, errRefused)
	}
	w.settle()
	w.agree()
}

// A crash between the mark and the append leaves nothing half done.
func TestFeed_Repair_crash(t *testing.T) {
	for _, apply := range []int{0, 1} {
		t.Run(fmt.Sprint("Stored", apply), func(t *testing.T) {
			w := newWorld(t, startServer(t), protimetest.Options{})
			id := w.company(3)[1]
			w.settle()
			w.erase(id)
			w.faults.set(func(int) (int, error) { return apply, errBoom }, nil)
			if err := w.feed.Repair([]string{id}); err != nil {
				t.Fatal(err)
			}
			if err := w.feed.Step(context.Background()); !errors.Is(err, errBoom) {
				t.Fatalf("got %v", err)
			}
			w.faults.clear()
			w.crash()
			w.settle()
			w.agree()
			if n := len(w.messages()); n != 3 {
				t.Errorf("the stream holds %d messages, want 3", n)
			}
		})
	}
}

// A proxy's 404 is no deletion; whether the record is gone is found out by a listing.
func TestFeed_Repair_unproven(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	ids := w.company(3)
	w.settle()
	w.sim.Fail(protimetest.Fault{Kind: protimetest.Status, Status: 404, Body: "<html>no such route</html>", Times: 1, Match: pathEnds("/" + ids[1])})
	w.erase(ids[0])
	if err := w.feed.Repair(ids); err != nil {
		t.Fatal(err)
	}
	w.settle()
	w.agree()
	if n := len(w.messages()); n != 3 || w.starts() != 2 {
		t.Errorf("the stream holds %d messages, want 3; %d deltas were started, want 2", n, w.starts())
	}
}

func pathEnds(with string) func(*http.Request) bool {
	return func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, with) }
}

// An API in trouble ends a repair, and not the feed.
func TestFeed_Repair_trouble(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	ids := w.company(10)
	w.settle()
	w.erase(ids[8])
	fail := func(times int, of string) {
		w.sim.Fail(protimetest.Fault{Kind: protimetest.Status, Status: 503, Times: times, Match: pathEnds(of)})
	}
	fail(1, ids[2])
	if err := w.feed.Repair(ids); err != nil {
		t.Fatal(err)
	}
	w.step()
	w.agree()
	w.erase(ids[7])
	for _, id := range ids[:maxFailures] {
		fail(1, id)
	}
	if err := w.feed.Repair(ids); err != nil {
		t.Fatal(err)
	}
	w.step()
	if r, _ := w.verify(); r.Missing != 1 {
		t.Errorf("got %+v, want the repair given up", r)
	}
	if len(w.repair(ids...)) != 1 {
		t.Error("asked again: not repaired")
	}
}

func TestFeed_Repair_refuses(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	for _, ids := range [][]string{nil, {""}, {"1", invalidKey + "x"}, make([]string, MaxRepair+1)} {
		if err := w.feed.Repair(ids); err == nil {
			t.Errorf("%d ids: got no error", len(ids))
		}
	}
	for range repairsAtOnce {
		if err := w.feed.Repair([]string{"1"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.feed.Repair([]string{"1"}); !errors.Is(err, ErrBusy) {
		t.Errorf("got %v, want %v", err, ErrBusy)
	}
}

// TestControl: whoever follows a feed takes requests, and nobody else.
func TestControl(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	ids := w.company(700)
	ask := func(ids []string) error {
		return RequestRepair(context.Background(), w.nc, w.tenant, "clockings", ids)
	}
	if err := ask(ids[:1]); !errors.Is(err, ErrNobody) {
		t.Errorf("nobody follows: got %v, want %v", err, ErrNobody)
	}
	holder := w.join("one", "", beatNever)
	waitFor(t, "one to hold the feed", holder.holds)
	other := w.join("two", "", beatNever)
	waitFor(t, "two to stand by", func() bool { return other.feeds[0].Status().State == StateStandby })
	for _, id := range ids[100:110] {
		w.erase(id)
	}
	if err := ask(ids); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the repair", func() bool { return len(w.messages()) == 700 })
	w.agreeOnAll()

	subject := ControlSubject(w.tenant, "clockings", "repair")
	if strings.HasPrefix(subject, "protime.") {
		t.Errorf("%s lies inside a stream", subject)
	}
	for _, bad := range []string{"", "{}", `{"ids":[""]}`, `{"ids":[1]}`} {
		reply, err := w.nc.Request(subject, []byte(bad), time.Second)
		if err != nil || reply.Header.Get(micro.ErrorCodeHeader) != codeRefused {
			t.Errorf("request %q: got %v, %v, want it refused", bad, reply, err)
		}
	}
	reply, err := w.nc.Request("$SRV.INFO."+ControlService, nil, time.Second)
	var info micro.Info
	if err == nil {
		err = json.Unmarshal(reply.Data, &info)
	}
	var verbs []string
	for _, e := range info.Endpoints {
		verbs = append(verbs, e.Name)
	}
	if want := []string{"forget", "pause", "repair", "resume", "resync", "status", "sync-now", "verify"}; err != nil || info.Metadata["tenant"] != w.tenant || info.Metadata["collection"] != "clockings" || !slices.Equal(verbs, want) {
		t.Errorf("service info: %+v, %v, want the verbs %v", info, err, want)
	}
	var ping micro.Ping
	if reply, err := w.nc.Request("$SRV.PING."+ControlService, nil, time.Second); err != nil || json.Unmarshal(reply.Data, &ping) != nil || ping.ID != info.ID {
		t.Errorf("service ping: %+v, %v, want that of %s", ping, err, info.ID)
	}
	var stats micro.Stats
	reply, err = w.nc.Request("$SRV.STATS."+ControlService, nil, time.Second)
	if err != nil || json.Unmarshal(reply.Data, &stats) != nil {
		t.Errorf("service stats: %v, %v", reply, err)
	}
	for _, e := range stats.Endpoints {
		if e.Name == verbRepair && (e.NumRequests != 6 || e.NumErrors != 4) { // two of 350 ids each, four that were refused
			t.Errorf("%d requests and %d errors were counted, want 6 and 4", e.NumRequests, e.NumErrors)
		}
	}
	holder.stop()
	waitFor(t, "two to hold the feed", other.holds)
	if err := ask(ids[:1]); err != nil {
		t.Errorf("after a takeover: %v", err)
	}
	other.stop()
	if err := ask(ids[:1]); !errors.Is(err, ErrNobody) {
		t.Errorf("nobody follows any more: got %v, want %v", err, ErrNobody)
	}
	if _, err := w.nc.Subscribe("clockbridge.>", func(*nats.Msg) {}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := RequestRepair(ctx, w.nc, w.tenant, "clockings", ids[:1]); !errors.Is(err, ErrNobody) {
		t.Errorf("somebody listens: got %v, want %v", err, ErrNobody)
	}
}

// agreeOnAll is agree for a feed that is followed elsewhere.
func (w *world) agreeOnAll() {
	w.t.Helper()
	if r, found := w.verify(); r.Differs() {
		w.t.Errorf("stream and API differ: %+v, %v", r, found)
	}
}

// TestFeed_verifyEvery: a feed that is followed verifies itself, and shows what it found.
func TestFeed_verifyEvery(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.cfg.VerifyEvery, w.cfg.VerifyPatience, w.cfg.VerifyDir = 20*time.Millisecond, 10*time.Millisecond, t.TempDir()
	ids := w.company(30)
	i := w.join("one", "", beatNever)
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(NewCollector(func() []*Feed { return i.feeds }))
	last := func() VerifyReport {
		if r := i.feeds[0].Status().LastVerify; r != nil {
			return *r
		}
		return VerifyReport{}
	}
	waitFor(t, "a verification", func() bool { return last().Records == 30 })
	if r := last(); r.Differs() || r.At.IsZero() {
		t.Errorf("got %+v", r)
	}
	w.erase(ids[0])
	waitFor(t, "it to be found", func() bool { return last().Missing == 1 })
	waitFor(t, "a log line", func() bool {
		return strings.Contains(i.logs.String(), "clockbridge verify --repair --tenant "+w.tenant)
	})
	want := fmt.Sprintf(`
		# HELP clockbridge_verify_differences Records about which stream and API differed when they were last compared; unchecked are those beyond the limit.
		# TYPE clockbridge_verify_differences gauge
		clockbridge_verify_differences{collection="clockings",kind="ahead",tenant=%[1]q} 0
		clockbridge_verify_differences{collection="clockings",kind="missing",tenant=%[1]q} 1
		clockbridge_verify_differences{collection="clockings",kind="phantom",tenant=%[1]q} 0
		clockbridge_verify_differences{collection="clockings",kind="stale",tenant=%[1]q} 0
		clockbridge_verify_differences{collection="clockings",kind="unchecked",tenant=%[1]q} 0
	`, w.tenant)
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "clockbridge_verify_differences"); err != nil {
		t.Error(err)
	}
	if n, err := testutil.GatherAndCount(reg, "clockbridge_verify_timestamp_seconds"); n != 1 || err != nil {
		t.Errorf("%d timestamps, %v, want 1", n, err)
	}
	if err := RequestRepair(context.Background(), w.nc, w.tenant, "clockings", ids[:1]); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "it to be repaired", func() bool { return !last().Differs() })
	w.sim.Fail(protimetest.Fault{Kind: protimetest.Status, Status: 403, Match: func(r *http.Request) bool { return strings.Contains(r.URL.RawQuery, "date%20le") }})
	waitFor(t, "a failure to show", func() bool { return strings.Contains(last().Error, "403") })
	if s := i.feeds[0].Status(); !s.Ready() {
		t.Errorf("a verification that failed made the feed %s", s.State)
	}
	if n, err := testutil.GatherAndCount(reg, "clockbridge_verify_timestamp_seconds"); n != 1 || err != nil {
		t.Errorf("%d timestamps after a failure, %v, want that of the last one that came to its end", n, err)
	}
}

// TestRequestVerify: a feed that verifies itself never does so when it is asked, and shows what it found; not before it can be right.
func TestRequestVerify(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.cfg.VerifyPatience = 10 * time.Millisecond
	ids := w.company(30)
	mend := w.sim.Fail(protimetest.Fault{Kind: protimetest.Status, Status: 503})
	i := w.join("one", "", beatNever)
	waitFor(t, "one to try", func() bool { return i.feeds[0].Status().State == StateRetrying })
	ask := func() error { return RequestVerify(t.Context(), w.nc, w.tenant, "clockings") }
	if err := ask(); err == nil || !strings.Contains(err.Error(), "the feed is retrying") {
		t.Errorf("before the first listing has ended: got %v, want it refused", err)
	}
	mend()
	waitFor(t, "one to follow", i.holds)
	for missing := range 2 {
		if err := ask(); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "a verification", func() bool {
			r := i.feeds[0].Status().LastVerify
			return r != nil && r.Error == "" && r.Missing == missing
		})
		w.erase(ids[missing])
	}
}

// A feed that has a listing to walk is not verified; a verification that failed is tried again before its turn.
func TestFeed_verifyEvery_pauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := idle(new(logBuffer)) // without a network every verification fails at once
		f.cfg.VerifyEvery = 24 * time.Hour
		f.cfg.Filter = func(time.Time) string { return "" }
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go f.verifyEvery(ctx)
		f.status.healthy()
		f.status.moved(store.Checkpoint{Origin: OriginSnapshot}, nil)
		<-time.After(time.Hour + time.Second)
		if r := f.Status().LastVerify; r != nil {
			t.Fatalf("verified while it walks: %+v", r)
		}
		f.status.moved(store.Checkpoint{Origin: OriginDelta}, nil)
		<-time.After(verifyReady)
		first := f.Status().LastVerify
		if first == nil || first.Error == "" {
			t.Fatalf("got %+v, want a failure", first)
		}
		<-time.After(verifyAgain)
		if again := f.Status().LastVerify; again.At.Sub(first.At) != verifyAgain {
			t.Errorf("tried again after %s, want %s", again.At.Sub(first.At), verifyAgain)
		}
	})
}
