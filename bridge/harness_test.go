package bridge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"clockbridge/protime"
	"clockbridge/protime/protimetest"
	"clockbridge/store"
)

const filterAll = "date ge '2026-01-01'"

// world is one feed with everything around it: a simulated API, a real JetStream, a real store file.
type world struct {
	t      testing.TB
	tenant string
	sim    *protimetest.Server
	nats   *testServer
	nc     *nats.Conn
	js     jetstream.JetStream
	path   string // of the store
	shared bool   // the feed is followed under a lease
	cfg    Config
	store  *store.Store
	feed   *Feed
	faults *faults
	logs   *logBuffer
}

// now is what the simulator's clock shows at first, so that filters in tests do not age.
func now() time.Time { return time.Date(2026, 11, 20, 9, 0, 0, 0, time.UTC) }

// worlds numbers the tenants, so that many worlds can share a server.
var worlds atomic.Int64

func newWorld(t testing.TB, srv *testServer, opts protimetest.Options) *world {
	t.Helper()
	if opts.Now == nil {
		opts.Now = now
	}
	w := &world{t: t, tenant: fmt.Sprintf("acme-%d", worlds.Add(1)), sim: protimetest.New(opts), nats: srv, logs: new(logBuffer), faults: new(faults)}
	t.Cleanup(w.sim.Close)
	client, err := protime.NewClient(protime.Config{
		Tenant: w.tenant, ClientID: "demo", Secret: func() (string, error) { return "demo", nil },
		Scopes: []string{protime.ReadScope("clockings")},
		APIURL: "https://" + w.tenant + ".protime.test", AuthURL: "https://auth.protime.test",
		UserAgent: "clockbridge-test/1 (Example)", Transport: w.sim.Transport(),
	})
	if err != nil {
		t.Fatal(err)
	}
	w.nc = srv.connect(t)
	if w.js, err = jetstream.New(w.nc); err != nil {
		t.Fatal(err)
	}
	w.path = filepath.Join(t.TempDir(), "bridge.db")
	w.cfg = Config{
		Tenant: w.tenant, Collection: "clockings", Source: client, NATS: w.nc,
		Filter: func(time.Time) string { return filterAll },
		Logger: slog.New(slog.NewTextHandler(w.logs, nil)),
	}
	// The stream's dedup window must play no part, so it is as short as the server allows.
	sc := streamConfig(w.stream(), SubjectPrefix(w.tenant, "clockings"), 1)
	sc.Duplicates = 100 * time.Millisecond
	if _, err := w.js.CreateStream(context.Background(), sc); err != nil {
		t.Fatal(err)
	}
	w.reopen()
	return w
}

func (w *world) stream() string { return StreamName(w.tenant, "clockings") }

func (w *world) checkpoint() store.Checkpoint {
	w.t.Helper()
	at, err := w.store.Checkpoint(w.feed.name)
	if err != nil {
		w.t.Fatal(err)
	}
	return at
}

// anotherBirthday makes the checkpoint name a stream that was created at another time, as after a restore elsewhere.
func (w *world) anotherBirthday() {
	w.t.Helper()
	at := w.checkpoint()
	to := at
	to.Stream = at.Stream.Add(-time.Hour)
	if err := w.store.Commit(w.feed.name, at, to, nil); err != nil {
		w.t.Fatal(err)
	}
}

// reopen starts over as a new process would: from the files. It is how every crash ends.
func (w *world) reopen() {
	w.t.Helper()
	if w.feed != nil {
		w.feed.out.close()
	}
	if w.store != nil {
		if err := w.store.Close(); err != nil {
			w.t.Fatal(err)
		}
	}
	s, err := store.Open(w.path)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { s.Close() }) // closing twice is allowed
	w.store = s
	w.cfg.Store = faultyStore{s, w.faults}
	if w.feed, err = NewFeed(w.cfg); err != nil {
		w.t.Fatal(err)
	}
	w.feed.out = faultyLog{w.feed.out, w.faults}
	if w.shared {
		w.leased(forNow)
	}
}

// crash loses everything that only memory held.
func (w *world) crash() { w.reopen() }

// step is one Step that must succeed.
func (w *world) step() {
	w.t.Helper()
	if err := w.feed.Step(context.Background()); err != nil {
		w.t.Fatalf("step: %v", err)
	}
}

// settle steps as Run would, without its pauses, until all is well: twice, so that the second sees an idle feed.
func (w *world) settle() {
	w.t.Helper()
	var err error
	for range 40 {
		if err = w.feed.Step(context.Background()); err == nil {
			if err = w.feed.Step(context.Background()); err == nil {
				return
			}
		}
		if errors.Is(err, ErrStore) {
			w.crash()
			continue
		}
		if p := w.feed.plan(err, 0); p.restart != "" {
			if err := w.feed.restart(p.restart, false); err != nil {
				w.t.Fatalf("restart: %v", err)
			}
		}
	}
	w.t.Fatalf("the feed does not settle: %v\n%s", err, w.logs)
}

// stored is one message of the stream as a subscriber sees it.
type stored struct {
	seq     uint64
	id      string
	version string
	deleted bool
	origin  string
	data    []byte
	header  nats.Header
	subject string
}

// erased reports whether it takes the place of what was erased.
func (m stored) erased() bool { return m.deleted && m.origin == OriginErasure }

// messages reads the whole stream as a subscriber would, with nothing of the bridge's own reading code.
func (w *world) messages() []stored {
	w.t.Helper()
	return w.messagesOf("clockings")
}

func (w *world) messagesOf(collection string) []stored {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	s, err := w.js.Stream(ctx, StreamName(w.tenant, collection))
	if err != nil {
		w.t.Fatal(err)
	}
	var all []stored
	state := s.CachedInfo().State
	for seq := state.FirstSeq; seq <= state.LastSeq && state.Msgs > 0; seq++ {
		m, err := s.GetMsg(ctx, seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			w.t.Fatalf("read message %d: %v", seq, err)
		}
		all = append(all, stored{
			seq: seq, id: m.Header.Get("ce-subject"), version: m.Header.Get("ce-changeversion"),
			deleted: strings.HasSuffix(m.Header.Get("ce-type"), ".deleted"),
			origin:  m.Header.Get("ce-origin"), data: m.Data, header: m.Header, subject: m.Subject,
		})
	}
	return all
}

// judge holds the stream against the API's truth: for each record strictly increasing versions, nothing twice, the last
// message the record's present state, deletions there. allowGaps is for streams that lost messages.
func (w *world) judge() {
	w.t.Helper()
	if err := judgeStream(w.messages(), w.sim.Truth("clockings")); err != nil {
		w.t.Fatalf("%v\n%s", err, w.logs)
	}
	if msgs, at := w.messages(), w.checkpoint(); len(msgs) > 0 && at.Position != msgs[len(msgs)-1].seq {
		w.t.Fatalf("checkpoint at %d, stream ends at %d", at.Position, msgs[len(msgs)-1].seq)
	}
}

func judgeStream(msgs []stored, truth map[string]protimetest.Record) error {
	var bad []error
	last := map[string]stored{}
	for _, m := range msgs {
		if strings.HasSuffix(m.subject, ".invalid") {
			continue
		}
		if was, ok := last[m.id]; ok {
			newer := m.version > was.version || m.version == was.version && (m.deleted && !was.deleted || m.erased() && !was.erased())
			if !newer {
				bad = append(bad, fmt.Errorf("record %s: version %s (deleted %v) at %d after %s (deleted %v) at %d",
					m.id, m.version, m.deleted, m.seq, was.version, was.deleted, was.seq))
			}
		}
		last[m.id] = m
	}
	for id, r := range truth {
		m, ok := last[id]
		switch {
		case r.Removed && (!ok || m.deleted):
		case r.Removed:
			bad = append(bad, fmt.Errorf("record %s: deletion lost, last message is version %s at %d", id, m.version, m.seq))
		case !ok:
			bad = append(bad, fmt.Errorf("record %s: never published", id))
		case m.erased() && m.version == r.Version:
			// The person whom it named is forgotten.
		case m.deleted && m.version == r.Version && bytes.Contains(r.Data, []byte(`"status":"Deleted"`)):
			// An API that answers 404 for a soft-deleted record: gone, either way.
		case m.version != r.Version || m.deleted:
			bad = append(bad, fmt.Errorf("record %s: last message is %s (deleted %v) at %d, the API has %s", id, m.version, m.deleted, m.seq, r.Version))
		case !bytes.Equal(m.data, r.Data):
			bad = append(bad, fmt.Errorf("record %s: payload %s, the API has %s", id, m.data, r.Data))
		}
	}
	for id := range last {
		if _, ok := truth[id]; !ok {
			bad = append(bad, fmt.Errorf("record %s: not known to the API", id))
		}
	}
	if len(bad) > 10 {
		bad = append(bad[:10], fmt.Errorf("and %d more", len(bad)-10))
	}
	return errors.Join(bad...)
}

// faults is what goes wrong with the next writes. Each hook answers whether the write happens and what the caller is
// told, so that "failed" and "failed, but it happened" are both to be had.
type faults struct {
	mu     sync.Mutex
	append func(n int) (apply int, err error) // apply: how many of the n messages reach the stream
	commit func() (apply bool, err error)
}

var errBoom = errors.New("boom")

func (f *faults) hooks() (func(int) (int, error), func() (bool, error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.append, f.commit
}

func (f *faults) set(a func(int) (int, error), c func() (bool, error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.append, f.commit = a, c
}

func (f *faults) clear() { f.set(nil, nil) }

type faultyLog struct {
	appendLog
	f *faults
}

func (l faultyLog) Append(ctx context.Context, msgs []message, at uint64) (uint64, error) {
	hook, _ := l.f.hooks()
	if hook == nil || len(msgs) == 0 {
		return l.appendLog.Append(ctx, msgs, at)
	}
	apply, err := hook(len(msgs))
	if err == nil {
		return l.appendLog.Append(ctx, msgs, at)
	}
	if _, aerr := l.appendLog.Append(ctx, msgs[:min(apply, len(msgs))], at); aerr != nil {
		return 0, aerr
	}
	return 0, err
}

type faultyStore struct {
	*store.Store
	f *faults
}

func (s faultyStore) Commit(feed string, from, to store.Checkpoint, entries []store.Entry) error {
	if _, hook := s.f.hooks(); hook != nil {
		if apply, err := hook(); err != nil {
			if apply {
				if err := s.Store.Commit(feed, from, to, entries); err != nil {
					return err
				}
			}
			return err
		}
	}
	return s.Store.Commit(feed, from, to, entries)
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// clocking is a record for the simulator.
func clocking(person int, minutes int) map[string]any {
	return map[string]any{
		"person": map[string]any{"id": person}, "date": "2026-11-20", "timeOfDayInMinutes": minutes, "kind": "InOut",
	}
}
