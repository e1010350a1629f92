package subscribe

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"clockbridge/bridge"
	"clockbridge/protime"
	"clockbridge/protime/protimetest"
	"clockbridge/store"
)

// startServer starts JetStream in the test process.
func startServer(t testing.TB, dir string, port int) *server.Server {
	t.Helper()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: port, NoSigs: true, NoLog: true, JetStream: true, StoreDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("nats-server is not ready")
	}
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	return s
}

func connect(t testing.TB, s *server.Server) jetstream.JetStream {
	t.Helper()
	nc, err := nats.Connect(s.ClientURL(), nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond), nats.ReconnectBufSize(-1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

var tenants atomic.Int64

// world is a real feed of a simulated tenant, and a subscriber to its stream.
type world struct {
	t      testing.TB
	tenant string
	sim    *protimetest.Server
	js     jetstream.JetStream
	feed   *bridge.Feed
	stream *Stream
	close  func()
}

// newWorld makes a tenant with n clockings, which are in the stream; change edits the stream's configuration.
func newWorld(t testing.TB, js jetstream.JetStream, n int, change func(*jetstream.StreamConfig)) *world {
	t.Helper()
	w := &world{t: t, tenant: fmt.Sprintf("acme-%d", tenants.Add(1)), js: js}
	w.sim = protimetest.New(protimetest.Options{Now: func() time.Time { return time.Date(2026, 11, 20, 9, 0, 0, 0, time.UTC) }})
	client, err := protime.NewClient(protime.Config{
		Tenant: w.tenant, ClientID: "demo", Secret: func() (string, error) { return "demo", nil },
		Scopes: []string{protime.ReadScope("clockings")},
		APIURL: "https://" + w.tenant + ".protime.test", AuthURL: "https://auth.protime.test",
		UserAgent: "clockbridge-test/1 (Example)", Transport: w.sim.Transport(),
	})
	if err != nil {
		t.Fatal(err)
	}
	st, err := store.Open(filepath.Join(t.TempDir(), "bridge.db"))
	if err != nil {
		t.Fatal(err)
	}
	w.close = func() { st.Close(); w.sim.Close() }
	t.Cleanup(w.close)
	cfg := jetstream.StreamConfig{
		Name: w.name(), Subjects: []string{bridge.SubjectPrefix(w.tenant, "clockings") + ".*"}, AllowDirect: true, AllowAtomicPublish: true,
	}
	if change != nil {
		change(&cfg)
	}
	if _, err := js.CreateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	if w.feed, err = bridge.NewFeed(bridge.Config{
		Tenant: w.tenant, Collection: "clockings", Source: client, NATS: js.Conn(), Store: st,
		Filter: func(time.Time) string { return "date ge '2026-01-01'" },
	}); err != nil {
		t.Fatal(err)
	}
	for range n {
		w.insert()
	}
	w.settle()
	if w.stream, _, err = Open(t.Context(), js, Feed{w.tenant, "clockings"}); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) name() string { return bridge.StreamName(w.tenant, "clockings") }

func (w *world) insert() string {
	return w.sim.Insert("clockings", map[string]any{"person": map[string]any{"id": 1}, "date": "2026-01-15", "timeOfDayInMinutes": 510, "kind": "InOut"})
}

func (w *world) update(id string, minutes int) {
	w.sim.Update("clockings", id, map[string]any{"timeOfDayInMinutes": minutes})
}

// settle lets the feed bring what has changed into the stream.
func (w *world) settle() {
	w.t.Helper()
	for range 4 { // more than it takes to end a listing, and to poll
		if err := w.feed.Step(context.Background()); err != nil {
			w.t.Fatal(err)
		}
	}
}

// seen is what one message says, as plain a subscriber as there is reads it.
type seen struct {
	position uint64
	id       string
	version  string
	deleted  bool
	data     string
}

// all reads the whole stream message by message, with none of this package's code.
func (w *world) all() []seen {
	w.t.Helper()
	s, err := w.js.Stream(context.Background(), w.name())
	if err != nil {
		w.t.Fatal(err)
	}
	state := s.CachedInfo().State
	var all []seen
	for position := state.FirstSeq; position <= state.LastSeq; position++ {
		m, err := s.GetMsg(context.Background(), position)
		if err != nil {
			continue // dropped
		}
		all = append(all, seen{position, m.Header.Get("ce-subject"), m.Header.Get("ce-changeversion"), strings.HasSuffix(m.Header.Get("ce-type"), ".deleted"), string(m.Data)})
	}
	return all
}

// stateAt is the model: the last message of every record up to a position, in the order of positions.
func stateAt(all []seen, position uint64) []seen {
	last := map[string]seen{}
	for _, m := range all {
		if m.position <= position {
			last[m.id] = m
		}
	}
	return slices.SortedFunc(maps.Values(last), func(a, b seen) int { return int(a.position) - int(b.position) })
}

func saw(m Message) seen {
	return seen{m.Position, m.ID, m.Version, m.Deleted, string(bytes.Clone(m.Data))}
}

// export exports the present state; while is called with every record.
func (w *world) export(while func()) (uint64, []seen, error) {
	var got []seen
	position, err := w.stream.Export(w.t.Context(), func() error { got = nil; return nil }, func(m Message) error {
		got = append(got, saw(m))
		while()
		return nil
	})
	return position, got, err
}

func (w *world) exportAt(position uint64) []seen {
	w.t.Helper()
	var got []seen
	if err := w.stream.ExportAt(w.t.Context(), position, w.t.TempDir(), func(m Message) error { got = append(got, saw(m)); return nil }); err != nil {
		w.t.Fatalf("export at %d: %v", position, err)
	}
	return got
}

// consumers are those that nobody has deleted.
func (w *world) consumers() int {
	s, err := w.js.Stream(context.Background(), w.name())
	if err != nil {
		w.t.Fatal(err)
	}
	return s.CachedInfo().State.Consumers
}

func poll(limit time.Duration, ok func() bool) bool {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(limit)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			return false
		}
	}
	return true
}
