package bridge

import (
	"context"
	"flag"
	"fmt"
	"iter"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"clockbridge/protime"
	"clockbridge/protime/protimetest"
)

// verify runs a verification with little patience. each tests may use to change the world in between.
func (w *world) verify(each ...func(*VerifyConfig)) (VerifyReport, []Difference) {
	w.t.Helper()
	cfg := w.verifyConfig()
	var found []Difference
	cfg.Each = func(d Difference) { found = append(found, d) }
	for _, change := range each {
		change(&cfg)
	}
	r, err := Verify(context.Background(), cfg)
	if err != nil {
		w.t.Fatalf("verify: %v", err)
	}
	return r, found
}

func (w *world) verifyConfig() VerifyConfig {
	return VerifyConfig{
		Tenant: w.tenant, Collection: "clockings", Filter: filterAll, Source: w.cfg.Source, NATS: w.nc,
		Patience: 20 * time.Millisecond, Dir: w.t.TempDir(),
	}
}

// lastOf returns the last message of a record.
func (w *world) lastOf(id string) stored {
	w.t.Helper()
	var last stored
	for _, m := range w.messages() {
		if m.id == id {
			last = m
		}
	}
	if last.seq == 0 {
		w.t.Fatalf("record %s has no message", id)
	}
	return last
}

// erase removes a record's last message from the stream, as `nats stream rmm` does.
func (w *world) erase(id string) {
	w.t.Helper()
	s, err := w.js.Stream(context.Background(), w.stream())
	if err == nil {
		err = s.DeleteMsg(context.Background(), w.lastOf(id).seq)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// forge publishes a message of a record behind the feed's back: that of a version with the data.
func (w *world) forge(id, version string, deleted bool, data []byte) {
	w.t.Helper()
	c := newCodec(w.tenant, "clockings", w.cfg.Source.CollectionURL("clockings"))
	msg := &nats.Msg{Header: nats.Header{}}
	m := message{data: data, origin: OriginDelta}
	m.ID, m.Version, m.Deleted = id, version, deleted
	c.encode(msg, &m, stampOf(1, time.Now()))
	if _, err := w.js.PublishMsg(context.Background(), msg); err != nil {
		w.t.Fatal(err)
	}
}

// kinds are the differences by record.
func kinds(found []Difference) map[string]Kind {
	by := map[string]Kind{}
	for _, d := range found {
		by[d.ID] = d.Kind
	}
	return by
}

func TestVerify(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	ids := w.company(350)
	w.settle()
	for round := range 3 {
		w.bustle(ids, round)
		w.settle()
	}
	if r, found := w.verify(); r.Differs() || len(found) > 0 || r.Records < 340 || r.Subjects < 350 || r.At.IsZero() {
		t.Fatalf("an exact stream: %+v, %v", r, found)
	}
	truth := w.sim.Truth("clockings")
	older, newer := "0000090200000000000A", "00000902FFFFFFFFFFFF"
	want := map[string]Kind{}
	for id, kind := range map[string]Kind{ids[100]: KindMissing, ids[101]: KindMissing, ids[102]: KindStale, ids[103]: KindStale, ids[104]: KindStale, ids[105]: KindPhantom, "777777": KindPhantom, ids[106]: KindAhead, ids[107]: KindMissing} {
		want[id] = kind
	}
	w.sim.Update("clockings", ids[102], map[string]any{"timeOfDayInMinutes": 1})
	w.settle()
	w.erase(ids[100])                                                    // removed by hand, and it had one message only
	w.forge(ids[101], truth[ids[101]].Version, true, []byte(`{"id":1}`)) // said to be deleted
	w.erase(ids[102])                                                    // removed by hand: an older one is left
	w.forge(ids[103], older, false, truth[ids[103]].Data)                // an older version
	w.forge(ids[104], truth[ids[104]].Version, false, []byte(`{"id":`+ids[104]+`,"date":"2026-11-20","timeOfDayInMinutes":-77}`))
	w.forge("777777", older, false, []byte(`{"id":777777,"date":"2026-11-20"}`)) // never was
	w.forge(ids[106], newer, false, truth[ids[106]].Data)
	w.forge(ids[107], older, true, []byte(`{"id":1}`))
	w.sim.Remove("clockings", ids[105]) // the feed is not told in time

	w.sim.ResetRequests()
	r, found := w.verify()
	if got := kinds(found); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v\n%v", got, want, found)
	}
	if r.Missing != 3 || r.Stale != 3 || r.Phantom != 2 || r.Ahead != 1 || r.Unchecked+r.Unsettled+r.Dropped+r.Unreadable != 0 {
		t.Errorf("report %+v", r)
	}
	for _, d := range found {
		if d.Subject != Subject(w.tenant, "clockings", d.ID) || d.API == "" || d.Stream == "" {
			t.Errorf("difference %+v", d)
		}
		now, err := Recheck(context.Background(), w.verifyConfig(), d)
		if err != nil || now != d {
			t.Errorf("Recheck: got %+v, %v, want %+v", now, err, d)
		}
	}
	for _, req := range w.sim.Requests() {
		if strings.Contains(req.Path, "/delta/") || strings.Contains(req.Query, "delta") {
			t.Errorf("%s?%s touches the delta", req.Path, req.Query)
		}
	}
}

// What the feed never publishes, or no longer looks at, is no difference.
func TestVerify_notDifferent(t *testing.T) {
	t.Run("OutsideTheFilter", func(t *testing.T) {
		w := newWorld(t, startServer(t), protimetest.Options{})
		ids := w.company(3)
		w.settle()
		w.forge("777777", "0000090200000000000A", false, []byte(`{"id":777777,"date":"2025-12-31"}`))
		w.erase(ids[0])
		r, found := w.verify(func(c *VerifyConfig) { c.Filter = "date ge '2026-11-21' and date le '2026-12-31'" })
		if r.Differs() || r.Records != 0 {
			t.Errorf("got %+v, %v", r, found)
		}
	})
	t.Run("OtherMembers", func(t *testing.T) {
		w := newWorld(t, startServer(t), protimetest.Options{})
		id := w.company(1)[0]
		w.settle()
		c := w.sim.Truth("clockings")[id]
		w.forge(id, c.Version, false, []byte(strings.Replace(string(c.Data), `"status":"Active"`, `"isOpen":true,"reason":null`, 1)))
		if r, found := w.verify(); r.Differs() {
			t.Errorf("got %+v, %v", r, found)
		}
	})
	t.Run("SoftDeleted", func(t *testing.T) {
		w := newWorld(t, startServer(t), protimetest.Options{GetDeletedNotFound: true})
		ids := w.company(2)
		w.settle()
		w.sim.SoftDelete("clockings", ids[0])
		w.settle()
		if r, found := w.verify(); r.Differs() || r.Records != 2 {
			t.Errorf("got %+v, %v", r, found)
		}
	})
	t.Run("Unreadable", func(t *testing.T) {
		w := newWorld(t, startServer(t), protimetest.Options{})
		w.company(1)
		w.sim.Insert("clockings", map[string]any{"date": "2026-11-20", "remark": strings.Repeat("x", 2<<20)})
		w.settle()
		if r, found := w.verify(); r.Differs() || r.Unreadable != 1 {
			t.Errorf("got %+v, %v", r, found)
		}
	})
	t.Run("EmptyStream", func(t *testing.T) {
		w := newWorld(t, startServer(t), protimetest.Options{})
		if r, found := w.verify(); r.Differs() {
			t.Errorf("got %+v, %v", r, found)
		}
	})
	t.Run("DroppedByALimit", func(t *testing.T) {
		w := newWorld(t, startServer(t), protimetest.Options{})
		sc := streamConfig(w.stream(), SubjectPrefix(w.tenant, "clockings"), 1)
		sc.MaxMsgs = 10
		if _, err := w.js.UpdateStream(context.Background(), sc); err != nil {
			t.Fatal(err)
		}
		w.company(30)
		w.settle()
		if r, found := w.verify(); r.Differs() || r.Dropped != 20 {
			t.Errorf("got %+v, %v", r, found)
		}
	})
}

// A message that somebody else put there is found, and does not end the verification.
func TestVerify_foreignMessage(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	ids := w.company(3)
	w.settle()
	prefix := SubjectPrefix(w.tenant, "clockings")
	for _, subject := range []string{prefix + "." + ids[0], prefix + ".999999", prefix + ".invalid"} {
		if _, err := w.js.Publish(context.Background(), subject, []byte("hello")); err != nil {
			t.Fatal(err)
		}
	}
	_, found := w.verify()
	want := map[string]Kind{ids[0]: KindStale, "999999": KindPhantom}
	if got := kinds(found); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestVerify_noStream(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	if err := w.js.DeleteStream(context.Background(), w.stream()); err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(context.Background(), w.verifyConfig()); err == nil || !strings.Contains(err.Error(), ErrNoStream.Error()) {
		t.Errorf("got %v", err)
	}
}

// While a verification runs, people clock in and out, and a feed follows: nothing of that is a difference.
func TestVerify_changesMeanwhile(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{PageSize: 20})
	ids := w.company(300)
	w.settle()
	round := 0
	step := func() {
		w.bustle(ids, round)
		round++
		if round%3 == 0 {
			w.settle()
		}
	}
	step()
	r, found := w.verify(func(c *VerifyConfig) {
		c.Patience = 200 * time.Millisecond
		c.Source = meddler{c.Source, step, func() { w.settle() }}
	})
	if r.Differs() || r.Unsettled > 0 {
		t.Errorf("after %d rounds: %+v, %v", round, r, found)
	}
	if round < 10 {
		t.Errorf("only %d rounds of changes", round)
	}
}

// meddler changes the API after every 30th record of a listing, and lets the feed follow before every single request.
type meddler struct {
	Lister
	change, follow func()
}

func (m meddler) List(ctx context.Context, collection, filter string) iter.Seq2[protime.Change, error] {
	return func(yield func(protime.Change, error) bool) {
		n := 0
		for c, err := range m.Lister.List(ctx, collection, filter) {
			if n++; n%30 == 0 {
				m.change()
			}
			if !yield(c, err) {
				return
			}
		}
	}
}

func (m meddler) Get(ctx context.Context, collection, id string) (protime.Change, error) {
	m.follow()
	return m.Lister.Get(ctx, collection, id)
}

// A difference must be the same at both looks; one that is another each time is not reported, and does not last for ever.
func TestVerify_unsettled(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	id := w.company(1)[0]
	w.settle()
	w.erase(id)
	minute := 0
	r, found := w.verify(func(c *VerifyConfig) {
		c.Source = meddler{c.Source, func() {}, func() {
			minute++
			w.sim.Update("clockings", id, map[string]any{"timeOfDayInMinutes": minute})
		}}
	})
	if len(found) > 0 || r.Unsettled != 1 || minute != maxLooks {
		t.Errorf("after %d looks: %+v, %v", minute, r, found)
	}
}

// What cannot be kept in detail is counted.
func TestVerify_limit(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	ids := w.company(30)
	w.settle()
	for _, id := range ids[:10] {
		w.erase(id)
	}
	for i := range 10 {
		w.forge(fmt.Sprint(900000+i), "0000090200000000000A", false, []byte(`{"date":"2026-11-20"}`))
	}
	r, found := w.verify(func(c *VerifyConfig) { c.Limit = 4 })
	if len(found) != 4 || r.Missing != 4 || r.Unchecked != 16 || !r.Differs() {
		t.Errorf("got %+v, %v", r, found)
	}
}

// A difference is asked about again when the patience is over, and not before.
func TestVerify_patience(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.company(1)
	w.settle()
	if r, _ := w.verify(func(c *VerifyConfig) { c.Patience = time.Hour }); r.Differs() {
		t.Errorf("got %+v", r)
	}
	w.erase("19250")
	const patience = 300 * time.Millisecond
	if r, _ := w.verify(func(c *VerifyConfig) { c.Patience = patience }); r.Missing != 1 || r.Took < patience {
		t.Errorf("got %+v after %s", r, r.Took)
	}
}

// A listing that breaks off is walked again, and nothing that it showed counts twice.
func TestVerify_brokenListing(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{PageSize: 500})
	w.sim.Fill("clockings", 2*maxRun+200, 200)
	w.settle()
	w.erase("19260")
	pages := 0
	w.sim.Fail(protimetest.Fault{Kind: protimetest.Cut, After: 100, Times: 1, Match: func(r *http.Request) bool {
		if strings.Contains(r.URL.RawQuery, "continuationToken") {
			pages++
		}
		return pages == 4
	}})
	if r, found := w.verify(); r.Records != 2*maxRun+200 || r.Missing != 1 || len(found) != 1 || pages != 4 {
		t.Errorf("after %d pages: %+v, %v", pages, r, found)
	}
}

// Trouble that passes is sat out; what only a person can end is not.
func TestVerify_faults(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{PageSize: 10})
	ids := w.company(50)
	w.settle()
	w.erase(ids[7])
	again := func(r *http.Request) bool { return strings.Contains(r.URL.RawQuery, "continuationToken") }
	w.sim.Fail(protimetest.Fault{Kind: protimetest.Status, Status: 503, Times: 1, Match: again})
	w.sim.Fail(protimetest.Fault{Kind: protimetest.Status, Status: 400, Times: 1, Match: again}) // a continuation token that expired, perhaps
	w.sim.Fail(protimetest.Fault{Kind: protimetest.Status, Status: 404, Body: "<html>no such route</html>", Times: 1, Match: func(r *http.Request) bool {
		return strings.HasSuffix(r.URL.Path, "/"+ids[7])
	}})
	r, found := w.verify()
	if len(found) != 1 || r.Missing != 1 || r.Records != 50 {
		t.Errorf("got %+v, %v", r, found)
	}
	began := time.Now()
	cfg := w.verifyConfig()
	cfg.Filter = "date ge 2026"
	if _, err := Verify(context.Background(), cfg); err == nil || !strings.Contains(err.Error(), "400") {
		t.Errorf("a filter that is refused: got %v", err)
	}
	w.sim.Fail(protimetest.Fault{Kind: protimetest.Status, Status: 403})
	if _, err := Verify(context.Background(), w.verifyConfig()); err == nil || !strings.Contains(err.Error(), "403") {
		t.Errorf("a scope that is missing: got %v", err)
	}
	if took := time.Since(began); took > retryFirst {
		t.Errorf("what is refused for good was tried again: %s", took)
	}
}

func TestWindows(t *testing.T) {
	today := time.Date(2026, 11, 20, 9, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		name, collection, filter, latest string
		first, last                      string
		n                                int
	}{
		{"Open", "clockings", "date ge '2025-01-01'", "", "date ge '2025-01-01' and date le '2025-01-31'", "date ge '2027-12-01' and date le '2027-12-31'", 36},
		{"FromTheMiddle", "clockings", "date ge '2027-10-17'", "2026-01-01", "date ge '2027-10-17' and date le '2027-10-31'", "date ge '2028-12-01' and date le '2028-12-31'", 15},
		{"LaterRecords", "absences", "date ge '2026-12-31'", "2028-05-01", "date ge '2026-12-31' and date le '2026-12-31'", "date ge '2029-12-01' and date le '2029-12-31'", 37},
		{"AbsurdRecord", "absences", "date ge '2036-12-01'", "9999-12-31", "date ge '2036-12-01' and date le '2036-12-31'", "", 1},
		{"WithAnEnd", "counters", "(date ge '2026-01-15' and date le '2026-02-03') and status eq 'x'", "2030-01-01",
			"(date ge '2026-01-15' and date le '2026-01-31') and status eq 'x'", "(date ge '2026-02-01' and date le '2026-02-03') and status eq 'x'", 2},
		{"OneDay", "clockings", "date ge '2026-02-28' and date le '2026-02-28'", "", "date ge '2026-02-28' and date le '2026-02-28'", "", 1},
		{"Assignments", "assignments", "date ge '2027-12-01'", "2026-01-01", "from ge '2027-12-01' and from le '2027-12-31'", "", 13},
		{"NoDates", "people", "", "", "", "", 1},
		{"OneDate", "clockings", "date eq '2026-01-01'", "", "date eq '2026-01-01'", "", 1},
		{"NoSuchDate", "clockings", "date ge '2026-02-31'", "", "date ge '2026-02-31'", "", 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := windows(test.collection, test.filter, today, test.latest)
			if len(got) != test.n || got[0] != test.first || test.last != "" && got[len(got)-1] != test.last {
				t.Errorf("got %d windows, %q", len(got), got)
			}
		})
	}
}

func TestContradict(t *testing.T) {
	for _, test := range []struct {
		a, b string
		want bool
	}{
		{`{"id":1,"date":"x"}`, `{ "date": "x", "id": 1 }`, false},
		{`{"id":1,"isOpen":true}`, `{"id":1}`, false},
		{`{"id":1,"a":null}`, `{"id":1,"a":3}`, false},
		{`{"person":{"id":1,"externalReferences":{"x":"1"}}}`, `{"person":{"id":1}}`, false},
		{`{"id":1}`, `{"id":2}`, true},
		{`{"id":1}`, `{"id":"1"}`, true},
		{`{"id":1.0}`, `{"id":1}`, true},
		{`{"person":{"id":1}}`, `{"person":{"id":2}}`, true},
		{`{"person":{"id":1}}`, `{"person":1}`, true},
		{`{"person":1}`, `{"person":{"id":1}}`, true},
		{`{"a":[1,2]}`, `{"a":[1]}`, true},
		{`{"a":[1,2]}`, `{"a":[1,3]}`, true},
		{`{"a":[1,{"b":1}]}`, `{"a":[1,{"c":1}]}`, false},
		{`{"a":[1]}`, `{"a":1}`, true},
		{`{"a":1}`, `{"a":[1]}`, true},
		{`{"id":1}`, `hello`, true},
		{`hello`, `hello`, false},
	} {
		if got := contradict([]byte(test.a), []byte(test.b)); got != test.want {
			t.Errorf("%s and %s: got %t, want %t", test.a, test.b, got, test.want)
		}
	}
}

var verifyRecords = flag.Int("verify-records", 30_000, "records in the stream of TestVerify_large")

// TestVerify_large: on a long stream a message removed by hand, a stale one and a phantom are found, and repaired.
func TestVerify_large(t *testing.T) {
	n := *verifyRecords
	w := newWorld(t, startServer(t), protimetest.Options{PageSize: 1000})
	w.sim.Fill("clockings", n, 200)
	w.settle()
	id := func(i int) string { return fmt.Sprint(19250 + i) }
	s, err := w.js.Stream(context.Background(), w.stream())
	if err != nil {
		t.Fatal(err)
	}
	if got := s.CachedInfo().State.Msgs; got != uint64(n) {
		t.Fatalf("the stream holds %d messages, want %d", got, n)
	}
	if err := s.DeleteMsg(context.Background(), uint64(n/2)); err != nil {
		t.Fatal(err)
	}
	w.forge(id(n/3), "0000090200000000000A", false, []byte(`{"date":"2026-11-20"}`))
	w.forge("777777777", "0000090200000000000A", false, []byte(`{"date":"2026-11-20"}`))
	r, found := w.verify()
	want := map[string]Kind{id(n/2 - 1): KindMissing, id(n / 3): KindStale, "777777777": KindPhantom}
	if got := kinds(found); !reflect.DeepEqual(got, want) || r.Records != n || r.Subjects != n {
		t.Fatalf("got %v, want %v; %+v", got, want, r)
	}
	if err := w.feed.Repair(slices.Collect(maps.Keys(want))); err != nil {
		t.Fatal(err)
	}
	w.settle()
	if r, found := w.verify(); r.Differs() {
		t.Errorf("after the repair: %v", found)
	}
	info, err := s.Info(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if got, want := info.State.Msgs, uint64(n-1+2+3); got != want {
		t.Errorf("the stream holds %d messages, want %d: two were forged and three repaired", got, want)
	}
}
