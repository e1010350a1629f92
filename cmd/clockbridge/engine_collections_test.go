package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"clockbridge/bridge"
	"clockbridge/protime/protimetest"
)

// Collections of one tenant side by side, one of them unheard of and with GUIDs for ids: one whose scope is refused and one
// whose delta has expired delay no other, every stream is exact once all are well, and a resync finds what was removed.
func TestEngine_collections(t *testing.T) {
	ns, err := startEmbedded(t.TempDir(), server.RANDOM_PORT, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Shutdown(); ns.WaitForShutdown() })
	sim := protimetest.NewServer(protimetest.Options{Tenant: "acme", Seed: 4, More: []protimetest.Collection{{Name: "badges", Scope: "badges", GUID: true}}})
	t.Cleanup(sim.Close)
	work := protimetest.NewWorkload(sim, "acme", protimetest.WorkloadOptions{People: 8, Seed: 4, Office: true})
	work.Backfill(10)
	var badges []string
	for i := range 20 {
		badges = append(badges, sim.Insert("badges", map[string]any{"number": fmt.Sprint(i)}))
	}
	refused := sim.Fail(protimetest.Fault{Kind: protimetest.Status, Status: http.StatusForbidden, Match: func(r *http.Request) bool {
		return strings.Contains(r.URL.Path, "/absences")
	}})

	collections := []string{"clockings", "people", "absences", "badges"}
	e, nc := testEngineAt(t, ns.ClientURL(), sim, func(s feedStore) feedStore { return s }, collections...)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	ctx, stop := context.WithCancel(t.Context())
	go func() { ended <- e.run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("the engine ended with %v", err)
		}
	})
	states := func(want ...bridge.State) bool {
		for i, s := range e.status() {
			if s.State != want[i] {
				return false
			}
		}
		return true
	}
	healthy := bridge.StateHealthy
	wait := func(what string, ok func() bool) {
		t.Helper()
		if !poll(time.Minute, ok) {
			t.Fatalf("%s: %+v", what, e.status())
		}
	}
	exact := func(collection string) {
		t.Helper()
		var v verdict
		var failed error
		if !poll(time.Minute, func() bool {
			v, failed = judge(t.Context(), js, bridge.StreamName("acme", collection), sim.Truth(collection))
			return failed == nil && v.exact()
		}) {
			t.Fatalf("%s: %+v, %v", collection, v, failed)
		}
	}
	wait("the others healthy, absences refused", func() bool { return states(healthy, healthy, bridge.StateUnauthorized, healthy) })

	for range 200 {
		work.Step()
	}
	sim.Action(func(tx *protimetest.Tx) {
		tx.Update("badges", badges[1], map[string]any{"number": "one"})
		tx.Remove("badges", badges[0])
	})
	for _, collection := range []string{"clockings", "people", "badges"} {
		exact(collection)
	}
	if !states(healthy, healthy, bridge.StateUnauthorized, healthy) {
		t.Errorf("the refusal has spread: %+v", e.status())
	}

	for _, gone := range []string{"people", "badges"} { // no dates in either: a resync looks at every record
		sim.Expire(gone)
	}
	sim.Remove("people", "1")
	sim.Remove("badges", badges[2])
	for range 100 {
		work.Step()
	}
	refused()
	for _, feed := range e.all() {
		feed.Sync()
	}
	wait("all healthy", func() bool { return states(healthy, healthy, healthy, healthy) })
	for _, collection := range collections {
		exact(collection)
	}
	for i, s := range e.status() {
		if want := s.Collection == "people" || s.Collection == "badges"; (s.Resyncs > 0) != want {
			t.Errorf("%s: %d resyncs", s.Collection, s.Resyncs)
		}
		if s.Collection != "badges" { // the one without dates and with other ids; the others have tests of their own
			continue
		}
		begun := time.Now()
		wait("asked to verify", func() bool { return bridge.RequestVerify(t.Context(), nc, "acme", s.Collection) == nil })
		wait("verified", func() bool {
			r := e.status()[i].LastVerify
			return r != nil && r.At.After(begun) && r.Error == ""
		})
		if r := e.status()[i].LastVerify; r.Differs() {
			t.Errorf("%s: %+v", s.Collection, *r)
		}
	}
}
