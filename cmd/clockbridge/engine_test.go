package main

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"clockbridge/bridge"
	"clockbridge/protime/protimetest"
	"clockbridge/store"
)

// fullDisk is a store that can be read and, for one feed, not be written.
type fullDisk struct {
	feedStore
	feed string
}

var errDisk = errors.New("no space left on device")

func (s fullDisk) Commit(feed string, from, to store.Checkpoint, entries []store.Entry) error {
	if feed == s.feed {
		return errDisk
	}
	return s.feedStore.Commit(feed, from, to, entries)
}

// testEngine follows clockings and people of a simulated tenant, with the store behind wrap.
func testEngine(t *testing.T, wrap func(feedStore) feedStore) (*engine, *server.Server, *nats.Conn) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	sim := protimetest.NewServer(protimetest.Options{Tenant: "acme"})
	t.Cleanup(sim.Close)
	sim.Fill("clockings", 10, 200)
	ns, err := startEmbedded(t.TempDir(), server.RANDOM_PORT, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Shutdown(); ns.WaitForShutdown() })
	nc, err := connect(natsConfig{URL: ns.ClientURL()}, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	st, err := store.Open(filepath.Join(t.TempDir(), "clockbridge.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	e, err := newEngine(&config{Tenants: []tenantConfig{{
		Name: "acme", ClientID: "demo", secret: func() (string, error) { return "demo", nil },
		Collections: []string{"clockings", "people"}, Since: lastYear, PollInterval: 20 * time.Millisecond,
		APIURL: sim.URL, AuthURL: sim.URL, UserAgent: "test/1 (Test)",
	}}}, nc, wrap(st), log, nil)
	if err != nil {
		t.Fatal(err)
	}
	return e, ns, nc
}

// A store that cannot be written ends every feed, and the error says so: the process must end.
func TestEngine_run_ErrStore(t *testing.T) {
	e, _, _ := testEngine(t, func(s feedStore) feedStore { return fullDisk{s, "acme/clockings"} })
	ended := make(chan error, 1)
	go func() { ended <- e.run(t.Context()) }()
	select {
	case err := <-ended:
		if !errors.Is(err, bridge.ErrStore) || !errors.Is(err, errDisk) {
			t.Errorf("got %v, want ErrStore and what the disk said", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("still running: %+v", e.status())
	}
	if got := e.status()[0].State; got != bridge.StateStopped {
		t.Errorf("state %s, want stopped", got)
	}
}

// Feeds end in time when they are told to, with NATS there or gone.
func TestEngine_run_stop(t *testing.T) {
	for _, test := range []struct {
		name   string
		before func(*server.Server, *nats.Conn) bool
	}{
		{"NATS there", func(*server.Server, *nats.Conn) bool { return true }},
		{"NATS gone", func(s *server.Server, nc *nats.Conn) bool {
			s.Shutdown()
			return poll(10*time.Second, func() bool { return !nc.IsConnected() })
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			e, ns, nc := testEngine(t, func(s feedStore) feedStore { return s })
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			ended := make(chan error, 1)
			go func() { ended <- e.run(ctx) }()
			healthy := poll(20*time.Second, func() bool { s := e.status(); return s[0].Ready() && s[1].Ready() })
			if !healthy || !test.before(ns, nc) {
				t.Fatalf("not under way: %+v", e.status())
			}
			stop()
			select {
			case err := <-ended:
				if err != nil {
					t.Errorf("got %v, want no error", err)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("still running after 10 s")
			}
		})
	}
}
