package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"syscall"
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

// testEngine follows clockings and people of a simulated tenant, with the store behind wrap, and verifies them all the time.
func testEngine(t *testing.T, wrap func(feedStore) feedStore) (*engine, *server.Server, *nats.Conn) {
	t.Helper()
	ns, err := startEmbedded(t.TempDir(), server.RANDOM_PORT, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Shutdown(); ns.WaitForShutdown() })
	sim := protimetest.NewServer(protimetest.Options{Tenant: "acme"})
	t.Cleanup(sim.Close)
	sim.Fill("clockings", 10, 200)
	e, nc := testEngineAt(t, ns.ClientURL(), sim, wrap)
	return e, ns, nc
}

// status returns what every feed is doing.
func (e *engine) status() []bridge.Status {
	var all []bridge.Status
	for _, feed := range e.all() {
		all = append(all, feed.Status())
	}
	return all
}

// testEngineAt is testEngine between an API and a NATS server, of clockings and people or of the collections that are named.
func testEngineAt(t *testing.T, url string, sim *protimetest.Server, wrap func(feedStore) feedStore, collections ...string) (*engine, *nats.Conn) {
	t.Helper()
	if len(collections) == 0 {
		collections = []string{"clockings", "people"}
	}
	log := slog.New(slog.DiscardHandler)
	nc, err := connect(natsConfig{URL: url}, log)
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
		Collections: collections, Since: lastYear, PollInterval: 20 * time.Millisecond, VerifyEvery: 50 * time.Millisecond,
		APIURL: sim.URL, AuthURL: sim.URL, UserAgent: "test/1 (Test)",
	}}}, nc, wrap(st), log, nil)
	if err != nil {
		t.Fatal(err)
	}
	return e, nc
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

// A server that stood still while a large append was on its way to it held the connection's lock for a minute: nothing was
// noticed, and a stop took that long.
func TestRegression_StopWhileNATSReadsNothing(t *testing.T) {
	ns, err := startEmbedded(t.TempDir(), server.RANDOM_PORT, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { ns.Shutdown(); ns.WaitForShutdown() }()
	sim := protimetest.NewServer(protimetest.Options{Tenant: "acme", PageSize: 1000})
	defer sim.Close()
	for _, collection := range []string{"clockings", "people"} { // more in an append of each than the system takes off a sender's hands
		sim.Fill(collection, 1000, 16<<10)
	}
	gate := newGate(t, ns.Addr().String(), 128<<10)
	e, nc := testEngineAt(t, "nats://"+gate.addr, sim, func(s feedStore) feedStore { return s })
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	go func() {
		err := e.run(ctx)
		nc.Close()
		ended <- err
	}()
	select {
	case <-gate.shut:
	case <-time.After(20 * time.Second):
		t.Fatalf("nothing is appended: %+v", e.status())
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
}

// gate is a way to a server that shuts when some bytes have gone through it: from then on it reads nothing, and says nothing.
type gate struct {
	addr string
	shut chan struct{}
}

func newGate(t *testing.T, to string, bytes int64) *gate {
	t.Helper()
	// A small buffer on this side leaves the rest to the sender's.
	small := net.ListenConfig{Control: func(_, _ string, conn syscall.RawConn) error {
		return conn.Control(func(fd uintptr) { syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 64<<10) })
	}}
	l, err := small.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	g := &gate{addr: l.Addr().String(), shut: make(chan struct{})}
	go func() {
		in, err := l.Accept()
		if err != nil {
			return
		}
		t.Cleanup(func() { in.Close() })
		out, err := net.Dial("tcp", to)
		if err != nil {
			return
		}
		t.Cleanup(func() { out.Close() })
		go io.Copy(in, out)
		io.CopyN(out, in, bytes)
		close(g.shut)
	}()
	return g
}
