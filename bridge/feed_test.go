package bridge

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"clockbridge/protime"
	"clockbridge/protime/protimetest"
)

// TestAlternatives runs a feed against every reading of what the API's documentation leaves open.
func TestAlternatives(t *testing.T) {
	readings := map[string]protimetest.Options{
		"Default":                {},
		"ScopeMissingIs401":      {ScopeMissingIs401: true},
		"BadTokenIs400":          {BadTokenIs400: true},
		"DeltaPerClient":         {DeltaPerClient: true},
		"LenientLinks":           {LenientLinks: true},
		"EmptyPages":             {EmptyPages: true},
		"NoRepeat":               {NoRepeat: true},
		"DeltaPages":             {DeltaPages: true, PageSize: 3},
		"ShuffleEveryVersion":    {ShuffleEveryVersion: true},
		"ShuffledPages":          {ShuffleEveryVersion: true, DeltaPages: true, PageSize: 2},
		"DeleteMoreFields":       {DeleteMoreFields: true},
		"DeleteNoVersion":        {DeleteNoVersion: true},
		"GetDeletedNotFound":     {GetDeletedNotFound: true},
		"OneRecordAPage":         {PageSize: 1},
		"RandomConflict":         {ConflictChance: 0.2},
		"Maintenance":            {UnavailableChance: 0.2},
		"MaintenanceRetryAfter":  {UnavailableChance: 0.2, RetryAfter: "60"},
		"ConflictAndMaintenance": {ConflictChance: 0.1, UnavailableChance: 0.1, EmptyPages: true},
	}
	srv := startServer(t)
	for name, o := range readings {
		t.Run(name, func(t *testing.T) {
			o.Seed = 11
			w := newWorld(t, srv, o)
			ids := w.company(25)
			w.settle()
			for round := range 3 {
				w.bustle(ids, round)
				w.settle()
			}
			w.sim.Expire("clockings")
			w.bustle(ids, 4)
			w.settle()
			w.judge()
		})
	}
}

// TestFeed_Faults: whatever the API does once, nothing is lost or guessed.
func TestFeed_Faults(t *testing.T) {
	faults := []protimetest.Fault{
		{Kind: protimetest.Status, Status: 500}, {Kind: protimetest.Status, Status: 503, RetryAfter: "1"},
		{Kind: protimetest.Status, Status: 429, RetryAfter: "60"}, {Kind: protimetest.Status, Status: 408},
		{Kind: protimetest.Status, Status: 409}, {Kind: protimetest.Status, Status: 404}, {Kind: protimetest.Status, Status: 414},
		{Kind: protimetest.Cut, After: 0}, {Kind: protimetest.Cut, After: 500},
		{Kind: protimetest.WrongContent}, {Kind: protimetest.WrongContent, ContentType: "application/json", Body: "{}"},
		{Kind: protimetest.WrongContent, ContentType: "application/json", Body: ""}, {Kind: protimetest.NoValue}, {Kind: protimetest.NoLink},
		{Kind: protimetest.Garbage}, {Kind: protimetest.TokenDeath}, {Kind: protimetest.Gone},
	}
	srv := startServer(t)
	for i, fault := range faults {
		t.Run(fmt.Sprintf("%d_%s_%d", i, fault.Kind, fault.Status), func(t *testing.T) {
			w := newWorld(t, srv, protimetest.Options{PageSize: 10})
			fault.Times = 1
			ids := w.company(25)
			w.sim.Fail(fault) // in the listing
			w.settle()
			w.judge()
			before := w.checkpoint()
			w.bustle(ids, 1)
			w.sim.Fail(fault) // in a delta
			err := w.feed.Step(context.Background())
			if fault.Kind != protimetest.TokenDeath && err == nil {
				t.Error("step succeeded")
			}
			if now := w.checkpoint(); err != nil && now.Cursor != before.Cursor {
				t.Errorf("the cursor moved from %q to %q past a bad answer", before.Cursor, now.Cursor)
			}
			w.settle()
			w.judge()
		})
	}
}

func TestFeed_UnreadableChanges(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.company(3)
	w.settle()
	large := strings.Repeat("x", 2<<20)
	page := `{"value":[
		{"changeType":"InsertOrUpdate","data":{"changeVersion":"0000090300000000000A","status":"no id"}},
		{"changeType":"InsertOrUpdate","data":{"id":1,"status":"no version"}},
		{"changeType":"Moved","data":{"id":2,"changeVersion":"0000090300000000000B"}},
		{"data":{"id":3,"changeVersion":"0000090300000000000B"}},
		{"changeType":"InsertOrUpdate"}, null, 7,
		{"changeType":"Delete","data":{"id":424242}},
		{"changeType":"InsertOrUpdate","data":{"id":4,"changeVersion":"0000090300000000000C","remark":"` + large + `"}},
		{"changeType":"InsertOrUpdate","data":{"id":5,"changeVersion":"0000090300000000000D","status":"fine"}}
		],"deltaLink":"/connector/protimeapi/api/v1/delta/clockings?deltaToken=x"}`
	serve := func() {
		w.sim.Fail(protimetest.Fault{Kind: protimetest.WrongContent, ContentType: "application/json", Body: page, Times: 1})
		cursor := w.checkpoint().Cursor
		w.step()
		// The page's own deltaLink is made up; go back to the one before.
		at := w.checkpoint()
		to := at
		to.Cursor = cursor
		if err := w.store.Commit(w.feed.name, at, to, nil); err != nil {
			t.Fatal(err)
		}
		w.crash()
	}
	serve()
	var aside []stored
	for _, m := range w.messages() {
		if m.subject == SubjectPrefix(w.tenant, "clockings")+".invalid" {
			aside = append(aside, m)
		}
	}
	if len(aside) != 9 {
		t.Fatalf("%d changes kept aside, want 9", len(aside))
	}
	reasons := []string{"no id", "no changeVersion", `"Moved"`, `unknown change type ""`, "no id", "unknown change type", "", "no changeVersion", "larger than the server's max payload"}
	for i, m := range aside {
		if got := m.header.Get(headerReason); got == "" || !strings.Contains(got, reasons[i]) {
			t.Errorf("reason %d is %q, want one about %q", i, got, reasons[i])
		}
	}
	if got, want := string(aside[1].data), `{"id":1,"status":"no version"}`; got != want {
		t.Errorf("kept %s, want %s", got, want)
	}
	if last := w.messages()[len(w.messages())-1]; last.id != "5" {
		t.Errorf("the last message is of record %s, want 5: the feed goes on", last.id)
	}
	// The same page again, as after a crash: nothing twice, not even here.
	n := len(w.messages())
	serve()
	if got := len(w.messages()); got != n {
		t.Errorf("the same page again published %d messages", got-n)
	}
}

// TestFeed_DeleteWithoutVersion: it follows whatever is known of the record, be it from the same page.
func TestFeed_DeleteWithoutVersion(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.company(1)
	w.settle()
	page := `{"value":[
		{"changeType":"InsertOrUpdate","data":{"id":7,"changeVersion":"0000090300000000000A"}},
		{"changeType":"InsertOrUpdate","data":{"id":7,"changeVersion":"0000090300000000000B"}},
		{"changeType":"Delete","data":{"id":7}}
		],"deltaLink":"/connector/protimeapi/api/v1/delta/clockings?deltaToken=x"}`
	w.sim.Fail(protimetest.Fault{Kind: protimetest.WrongContent, ContentType: "application/json", Body: page, Times: 1})
	w.step()
	msgs := w.messages()
	if last := msgs[len(msgs)-1]; len(msgs) != 4 || last.id != "7" || !last.deleted || last.version != "0000090300000000000B" {
		t.Errorf("%d messages, the last is %+v; want 4, the last the deletion of version 0000090300000000000B", len(msgs), last)
	}
}

// TestFeed_Regress: a restored database must not silence a feed.
func TestFeed_Regress(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	ids := w.company(10)
	w.settle()
	w.sim.Regress()
	w.sim.Update("clockings", ids[2], map[string]any{"timeOfDayInMinutes": 7})
	w.step()
	w.feed.recovered()
	if s := w.feed.Status(); s.State != StateStale || s.Stale != 1 {
		t.Fatalf("status = %+v, want state stale after 1 stale change", s)
	}
	w.feed.Resync(true)
	w.settle()
	w.feed.recovered()
	if s := w.feed.Status(); s.State != StateHealthy {
		t.Errorf("status after the resync = %+v, want healthy", s)
	}
	msgs := w.messages()
	if len(msgs) != 11 {
		t.Fatalf("%d messages, want the 10 and the one that differs", len(msgs))
	}
	truth := w.sim.Truth("clockings")[ids[2]]
	if last := msgs[10]; last.id != ids[2] || last.version != truth.Version || last.origin != OriginResync {
		t.Errorf("last message is %+v, want version %s of record %s from a resync", last, truth.Version, ids[2])
	}
	w.sim.Update("clockings", ids[2], map[string]any{"timeOfDayInMinutes": 8})
	w.settle()
	if got := len(w.messages()); got != 12 {
		t.Errorf("%d messages after one more change, want 12", got)
	}
}

func TestFeed_FilterChanged(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.company(10)
	w.settle()
	// A window that moves by itself is not a change of the setting.
	w.cfg.Filter = func(now time.Time) string {
		if now.After(w.checkpoint().Begun) {
			return "date ge '2026-02-01'"
		}
		return filterAll
	}
	w.reopen()
	w.settle()
	if got := w.feed.Status().Resyncs; got != 0 {
		t.Errorf("%d resyncs although the setting is the same", got)
	}
	w.cfg.Filter = func(time.Time) string { return "date ge '2026-03-01'" }
	w.reopen()
	w.settle()
	if s := w.feed.Status(); s.Resyncs != 1 || s.LastResync != "filter changed" {
		t.Errorf("%d resyncs, the last because %q; want 1, because the filter changed", s.Resyncs, s.LastResync)
	}
	if got := len(w.messages()); got != 10 {
		t.Errorf("%d messages, want 10: nothing differs", got)
	}
	w.judge()
}

func TestFeed_Misconfigured(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.cfg.Filter = func(time.Time) string { return "date ge '2019-01-01'" }
	w.reopen()
	err := w.feed.Step(context.Background())
	if p := w.feed.plan(err, 0); p.state != StateMisconfigured || !strings.Contains(err.Error(), "1 January") {
		t.Errorf("plan %+v for %v, want misconfigured with the API's reason", p, err)
	}
}

func TestFeed_ForeignStream(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.dropStream()
	cfg := streamConfig(w.stream(), SubjectPrefix(w.tenant, "clockings"), 1)
	cfg.Retention = jetstream.WorkQueuePolicy
	if _, err := w.js.CreateStream(context.Background(), cfg); err != nil {
		t.Fatal(err)
	}
	err := w.feed.Step(context.Background())
	if p := w.feed.plan(err, 0); p.state != StateMisconfigured || !strings.Contains(err.Error(), "retention") {
		t.Errorf("plan %+v for %v, want misconfigured with the setting's name", p, err)
	}
	s, err := w.js.Stream(context.Background(), w.stream())
	if err != nil || s.CachedInfo().Config.Retention != jetstream.WorkQueuePolicy {
		t.Errorf("the stream was changed: %v", err)
	}
}

// TestFeed_Limits: where the stream drops old messages, their absence is no loss.
func TestFeed_Limits(t *testing.T) {
	limits := map[string]func(*jetstream.StreamConfig){
		"MaxMsgs":           func(c *jetstream.StreamConfig) { c.MaxMsgs = 5 },
		"MaxMsgsPerSubject": func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 1 },
		"MaxBytes":          func(c *jetstream.StreamConfig) { c.MaxBytes = 4096 },
		"MaxAge":            func(c *jetstream.StreamConfig) { c.MaxAge = 100 * time.Millisecond },
	}
	srv := startServer(t)
	for name, limit := range limits {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, srv, protimetest.Options{})
			w.dropStream()
			cfg := streamConfig(w.stream(), SubjectPrefix(w.tenant, "clockings"), 1)
			limit(&cfg)
			if _, err := w.js.CreateStream(context.Background(), cfg); err != nil {
				t.Fatal(err)
			}
			ids := w.company(30)
			w.settle()
			for round := range 4 {
				w.bustle(ids, round)
				w.crash()
				w.settle()
			}
			if name == "MaxAge" {
				waitFor(t, "all messages to age out", func() bool { return len(w.messages()) == 0 })
				w.bustle(ids, 5)
				w.crash()
				w.settle()
			}
			if got := w.feed.Status().Lost; got > 0 || strings.Contains(w.logs.String(), "lost acknowledged") {
				t.Errorf("%d records taken for lost\n%s", got, w.logs)
			}
		})
	}
}

// TestFeed_GracefulStop: a stop in mid-append finishes the append and commits it.
func TestFeed_GracefulStop(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{PageSize: 10})
	w.company(200)
	ctx, cancel := context.WithCancel(context.Background())
	w.faults.set(func(int) (int, error) { cancel(); return 0, nil }, nil)
	done := make(chan error, 1)
	go func() { done <- w.feed.Run(ctx) }()
	select {
	case err := <-done:
		if err != nil {
			t.Fatalf("run: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("run does not end within 10 s")
	}
	msgs, at := w.messages(), w.checkpoint()
	if len(msgs) == 0 || at.Position != msgs[len(msgs)-1].seq {
		t.Errorf("checkpoint at %d, stream holds %d messages", at.Position, len(msgs))
	}
	w.faults.clear()
	w.crash()
	w.settle()
	w.judge()
}

// TestFeeds_AreIndependent: one feed that fails delays no other.
func TestFeeds_AreIndependent(t *testing.T) {
	srv := startServer(t)
	good, bad := newWorld(t, srv, protimetest.Options{}), newWorld(t, srv, protimetest.Options{})
	good.cfg.PollInterval = 10 * time.Millisecond
	good.reopen()
	bad.sim.Fail(protimetest.Fault{Kind: protimetest.Slow, Delay: time.Hour})
	badCfg := bad.cfg
	badCfg.Store, badCfg.NATS = good.cfg.Store, good.cfg.NATS // one store, one connection, as in the program
	badFeed, err := NewFeed(badCfg)
	if err != nil {
		t.Fatal(err)
	}
	good.company(20)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- badFeed.Run(ctx) }()
	go func() { done <- good.feed.Run(ctx) }()
	waitFor(t, "the good feed", func() bool { return good.feed.Status().Published == 20 })
	good.sim.Insert("clockings", clocking(1, 1))
	waitFor(t, "one more change", func() bool { return good.feed.Status().Published == 21 })
	if s := badFeed.Status(); s.Ready() {
		t.Errorf("the other feed is %s", s.State)
	}
	cancel()
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestFeed_AnyCollection(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	client, err := protime.NewClient(protime.Config{
		Tenant: w.tenant, ClientID: "demo", Secret: func() (string, error) { return "demo", nil },
		Scopes: []string{protime.ReadScope("people")}, APIURL: "https://x.protime.test", AuthURL: "https://auth.protime.test",
		UserAgent: "clockbridge-test/1 (Example)", Transport: w.sim.Transport(),
	})
	if err != nil {
		t.Fatal(err)
	}
	id := w.sim.Insert("people", map[string]any{"firstName": "An"})
	cfg := w.cfg
	cfg.Collection, cfg.Source, cfg.Filter = "people", client, nil
	f, err := NewFeed(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Step(context.Background()); err != nil {
		t.Fatal(err)
	}
	s, err := w.js.Stream(context.Background(), StreamName(w.tenant, "people"))
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.GetLastMsgForSubject(context.Background(), Subject(w.tenant, "people", id))
	if err != nil || m.Header.Get("ce-type") != "eu.myprotime.people.upserted" || !strings.Contains(string(m.Data), `"firstName":"An"`) {
		t.Errorf("message %+v, %v", m, err)
	}
}

func TestMessage_Contract(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	id := w.company(1)[0]
	w.settle()
	w.sim.Remove("clockings", id)
	w.settle()
	msgs := w.messages()
	version := msgs[0].version
	want := map[string]string{
		"ce-specversion": "1.0", "ce-id": w.tenant + "/clockings/" + id + "/" + version,
		"ce-source": "https://" + w.tenant + ".protime.test/connector/protimeapi/api/v1/clockings",
		"ce-type":   "eu.myprotime.clockings.upserted", "ce-subject": id, "content-type": "application/json",
		"ce-datacontenttype": "application/json",
		"ce-changeversion":   version, "ce-origin": "snapshot",
	}
	for k, v := range want {
		if got := msgs[0].header.Get(k); got != v {
			t.Errorf("header %s is %q, want %q", k, got, v)
		}
	}
	if _, err := time.Parse(time.RFC3339, msgs[0].header.Get("ce-time")); err != nil {
		t.Error(err)
	}
	if m := msgs[1]; m.header.Get("ce-type") != "eu.myprotime.clockings.deleted" || m.origin != OriginDelta || m.subject != Subject(w.tenant, "clockings", id) {
		t.Errorf("deletion is %+v", m)
	}
}
