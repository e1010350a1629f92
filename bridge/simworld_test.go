package bridge

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/nats-io/nats-server/v2/server"
	_ "github.com/nats-io/nats-server/v2/server/ats" // its clock is set here
	"github.com/nats-io/nats.go"

	"clockbridge/protime"
	"clockbridge/store"
)

// This file is what a simulated history happens to: machines with a disk, their processes, and the network between them,
// the API and a nats-server. All of it is real but for three things: the API is protimetest's, the network is link and
// route below, and time is that of the testing/synctest bubble.
//
// The nats-server is the real one, embedded, and lives in the bubble as well: in-process connections wait in a way
// that synctest understands. A stand-in would be quicker, but whether positions fence is a property of this server, and
// what it does with half a batch or behind a hole nobody should have to write down twice. It ticks every second for the
// sake of its logs and statistics, which would be most of the work of a virtual week, so quiet stops that.

// The server reckons the age of caches by a clock of its own, which ticks ten times a second. Here it shows what it is
// set to, and since it has a user already, no goroutine is started to move it.
var (
	//go:linkname accessTime github.com/nats-io/nats-server/v2/server/ats.utime
	accessTime atomic.Int64
	//go:linkname accessTimeUsers github.com/nats-io/nats-server/v2/server/ats.refs
	accessTimeUsers atomic.Int64
)

// quiet stops what the server does at intervals for its logs and for other servers.
func quiet(s *server.Server) {
	field := func(of any, name string) any {
		f := reflect.ValueOf(of).Elem().FieldByName(name)
		return reflect.NewAt(f.Type(), unsafe.Pointer(f.UnsafeAddr())).Interface() //nolint:gosec // there is no other way to them
	}
	*field(s, "rateLimitLoggingCh").(*chan time.Duration) <- 1e6 * time.Hour
	sys := reflect.ValueOf(field(s, "sys")).Elem().Interface()
	(*field(sys, "stmr").(**time.Timer)).Stop()
	(*field(sys, "sweeper").(**time.Timer)).Stop()
}

// startNATS starts the server of a bubble; files are in dir.
func startNATS(dir string) (*server.Server, error) {
	srv, err := server.NewServer(&server.Options{
		DontListen: true, NoSigs: true, NoLog: true, JetStream: true, StoreDir: dir, JetStreamMaxMemory: 1 << 28, JetStreamMaxStore: 1 << 34,
		PingInterval: 1e4 * time.Hour, SyncInterval: 1e4 * time.Hour,
	})
	if err != nil {
		return nil, err
	}
	srv.Start()
	if !srv.ReadyForConnections(time.Minute) {
		return nil, errors.New("the simulated nats-server does not start")
	}
	quiet(srv)
	return srv, nil
}

// machine is one place where clockbridge runs: a disk, and a process that is started again whenever it has ended.
type machine struct {
	s      *simulation
	name   string
	path   string // of the store
	orders chan order
	gone   chan struct{}

	mu sync.Mutex
	up *process // nil = it is down
}

// order ends a machine's process.
type order struct {
	graceful bool
	down     time.Duration // until it is started again
	tamper   string        // with the store meanwhile: "keep" a copy, put the "old" one back, "delete" it
}

func (m *machine) process() *process {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.up
}

// live is the machine's life until the simulation is over.
func (m *machine) live() {
	defer close(m.gone)
	for {
		p, err := m.boot()
		if err != nil {
			m.s.fail("%s does not start: %v", m.name, err)
			return
		}
		m.mu.Lock()
		m.up = p
		m.mu.Unlock()
		m.s.disturb()
		var o order
		over := false
		select {
		case o = <-m.orders:
		case o = <-p.struck:
		case <-p.done:
			if !errors.Is(p.err, ErrStore) {
				m.s.fail("%s ended by itself: %v", m.name, p.err)
			}
		case <-m.s.over:
			over, o.graceful = true, true
		}
		if o.graceful {
			m.stop(p)
		}
		m.mu.Lock()
		m.up = nil
		m.mu.Unlock()
		p.kill()
		if over {
			return
		}
		m.s.note("%s is down (graceful %v) for %s, store: %s", m.name, o.graceful, o.down.Round(time.Millisecond), o.tamper)
		if err := m.tamper(o.tamper); err != nil {
			m.s.fail("%s: %v", m.name, err)
		}
		select {
		case <-time.After(o.down):
		case <-m.s.mend:
		}
		m.s.note("%s starts", m.name)
	}
}

// stop is SIGTERM.
func (m *machine) stop(p *process) {
	p.thaw()
	began := time.Now()
	p.cancel()
	select {
	case <-p.done:
	case <-time.After(time.Minute):
	}
	if took := time.Since(began); took > 10*time.Second {
		m.s.fail("%s took %s to stop, want at most 10 s", m.name, took)
	}
}

func (m *machine) tamper(how string) error {
	old := m.path + ".old"
	switch how {
	case "keep":
		return copyFile(m.path, old)
	case "old":
		if _, err := os.Stat(old); err != nil {
			return nil
		}
		m.s.forget()
		return copyFile(old, m.path)
	case "delete":
		m.s.forget()
		return os.Remove(m.path)
	}
	return nil
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o600)
}

// process is one run of clockbridge.
type process struct {
	m      *machine
	nc     *nats.Conn
	store  *store.Store
	feed   *Feed
	cancel context.CancelFunc
	struck chan order
	done   chan struct{}
	err    error // of Run, once done is closed

	mu    sync.Mutex
	dead  bool
	ice   chan struct{} // closed when a frozen process goes on; nil = it is not frozen
	cut   bool          // the network between it and NATS drops everything
	links []*link
	stuck *link // the connection that alone is held up
	fuse  *fuse
}

// fuse lets one of the next writes fail.
type fuse struct {
	after int // writes before that one
	way   string
	dies  bool // and the process with it
	down  time.Duration
	late  time.Duration // of "append late": how long messages are on their way
	bytes int           // of "append late": what arrives at once
	ends  bool          // of "append late": the delta ends, so that the next attempt is another
}

// Ways in which a write fails. An append that is late is still on its way when the process has given it up, or has died, and
// goes on over another connection.
var fuseWays = []string{"append lost", "append kept", "append partly", "append late", "append late", "commit lost", "commit kept"}

func (m *machine) boot() (*process, error) {
	s := m.s
	p := &process{m: m, struck: make(chan order, 1), done: make(chan struct{})}
	var err error
	if p.store, err = store.Open(m.path); err != nil {
		return nil, err
	}
	client, err := protime.NewClient(protime.Config{
		Tenant: simTenant, ClientID: "demo", Secret: func() (string, error) { return "demo", nil },
		Scopes: []string{protime.ReadScope("clockings")},
		APIURL: "https://" + simTenant + ".protime.test", AuthURL: "https://auth.protime.test",
		UserAgent: "clockbridge-simulation/1 (Example)", Transport: route{p, s.api.Transport()},
	})
	if err != nil {
		return nil, err
	}
	// As cmd does it, but that days without a server cost fewer tries.
	p.nc, err = nats.Connect("nats://127.0.0.1", nats.Name(m.name), nats.MaxReconnects(-1), nats.RetryOnFailedConnect(true),
		nats.ReconnectBufSize(-1), nats.Timeout(5*time.Second), nats.PingInterval(max(2*time.Minute, s.shape.poll)), nats.SetCustomDialer(p),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { s.note("    %s: %v", m.name, err) }), nats.CustomReconnectDelay(func(attempts int) time.Duration {
			return min(2*time.Second<<min(attempts, 8), 2*time.Minute)
		}))
	if err != nil {
		return nil, err
	}
	log := slog.New(&simLog{s: s, p: p})
	st := simStore{p.store, p}
	p.feed, err = NewFeed(Config{
		Tenant: simTenant, Collection: "clockings", Source: client, Store: st, NATS: p.nc, PollInterval: s.shape.poll,
		Filter: s.shape.filter, Logger: log,
	})
	if err != nil {
		return nil, err
	}
	p.feed.out = simAppends{p.feed.out, p}
	run := p.feed.Run
	if s.shape.heartbeat > 0 {
		fleet, err := NewFleet(FleetConfig{NATS: p.nc, Store: st, Name: m.name, Heartbeat: s.shape.heartbeat, Logger: log})
		if err != nil {
			return nil, err
		}
		run = func(ctx context.Context) error { return fleet.Run(ctx, []*Feed{p.feed}) }
	}
	var ctx context.Context
	ctx, p.cancel = context.WithCancel(context.Background())
	go func() {
		defer close(p.done)
		p.err = run(ctx)
	}()
	return p, nil
}

// die is a power cut: from now on nothing that the process does reaches anything.
func (p *process) die() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dead = true
	p.m.s.disturb()
	if p.ice != nil {
		close(p.ice)
		p.ice = nil
	}
}

// kill ends what is left of a process.
func (p *process) kill() {
	p.die()
	p.cancel()
	p.nc.Close()
	<-p.done
	p.store.Close()
	p.thaw() // what was on its way may arrive, if the network lets it
}

// freeze is SIGSTOP.
func (p *process) freeze() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead || p.ice != nil {
		return
	}
	p.ice = make(chan struct{})
	p.m.s.disturb()
	p.holdLinks()
}

// thaw is SIGCONT.
func (p *process) thaw() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ice != nil {
		close(p.ice)
		p.ice = nil
		p.m.s.disturb()
	}
	p.holdLinks()
}

// partition drops all packets between the process and NATS, or lets them through again. As TCP would, the connection
// brings later what was dropped.
func (p *process) partition(cut bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = cut
	p.m.s.disturb()
	p.holdLinks()
}

func (p *process) holdLinks() {
	for _, l := range p.links {
		l.hold(p.cut || p.ice != nil || l == p.stuck)
	}
}

// jam holds up the present connection behind some more bytes, and that one alone: the next is quicker.
func (p *process) jam(bytes int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.links) > 0 {
		p.stuck = p.links[len(p.links)-1]
		p.stuck.holdBehind(bytes)
	}
}

func (p *process) unjam() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stuck = nil
	p.holdLinks()
}

// cutLinks ends all connections.
func (p *process) cutLinks() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.links {
		l.cut()
	}
	p.links = nil
}

func (p *process) frozen() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ice != nil
}

var errPower = errors.New("the power is off")

// wait returns when the process is not frozen, with an error if it is dead.
func (p *process) wait(ctx context.Context) error {
	for {
		p.mu.Lock()
		ice, dead := p.ice, p.dead
		p.mu.Unlock()
		switch {
		case dead:
			return errPower
		case ice == nil:
			return ctx.Err()
		}
		<-ice // a frozen process does not see that its time is up
	}
}

// strike returns the fuse if it is the turn of this write to fail.
func (p *process) strike(kind string) *fuse {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.fuse
	if f == nil {
		return nil
	}
	if f.after > 0 {
		f.after--
		return nil
	}
	if !strings.HasPrefix(f.way, kind) {
		return nil
	}
	p.fuse = nil
	p.m.s.note("%s: %s", p.m.name, f.way)
	return f
}

// burnt ends what the fuse began: the process is dead, if the fuse said so.
func (p *process) burnt(f *fuse) error {
	if f.dies {
		p.die()
		p.struck <- order{down: f.down}
	}
	return errBoom
}

// simAppends is a process's way to the stream.
type simAppends struct {
	appendLog
	p *process
}

func (a simAppends) Append(ctx context.Context, msgs []message, at uint64) (uint64, error) {
	if err := a.p.wait(ctx); err != nil {
		return 0, err
	}
	keep := len(msgs)
	f := a.p.strike("append")
	if f != nil {
		switch f.way {
		case "append lost":
			return 0, a.p.burnt(f)
		case "append partly":
			keep /= 2
		case "append late":
			a.p.jam(f.bytes % (len(msgs) * 800))
			a.p.m.s.later(f.late, a.p.unjam)
			if f.ends {
				a.p.m.s.api.Expire("clockings")
			}
		}
	}
	term := a.p.feed.lease.term()
	position, err := a.appendLog.Append(ctx, msgs[:keep], at)
	if err == nil && keep > 0 {
		a.p.m.s.appended(a.p, term, msgs[:keep], at)
	}
	if f != nil {
		if f.way == "append late" && !f.dies {
			a.p.nc.ForceReconnect()
		}
		return 0, a.p.burnt(f)
	}
	return position, err
}

// simStore is a process's way to its disk.
type simStore struct {
	*store.Store
	p *process
}

func (s simStore) Checkpoint(feed string) (store.Checkpoint, error) {
	if err := s.p.wait(context.Background()); err != nil {
		return store.Checkpoint{}, err
	}
	return s.Store.Checkpoint(feed)
}

func (s simStore) Commit(feed string, from, to store.Checkpoint, entries []store.Entry) error {
	if err := s.p.wait(context.Background()); err != nil {
		return err
	}
	f := s.p.strike("commit")
	if f != nil && f.way == "commit lost" {
		return s.p.burnt(f)
	}
	err := s.Store.Commit(feed, from, to, entries)
	if err == nil {
		s.p.m.s.committed(to.Position)
	}
	if f != nil {
		return s.p.burnt(f)
	}
	return err
}

func (s simStore) Reset(feed string) error {
	if err := s.p.wait(context.Background()); err != nil {
		return err
	}
	return s.Store.Reset(feed)
}

func (s simStore) SwapMember(id string) (string, error) {
	if err := s.p.wait(context.Background()); err != nil {
		return "", err
	}
	return s.Store.SwapMember(id)
}

// simLog takes in what a process logs.
type simLog struct {
	s *simulation
	p *process
}

func (l *simLog) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }

func (l *simLog) Handle(_ context.Context, r slog.Record) error {
	l.s.logged(l.p, r)
	return nil
}

func (l *simLog) WithAttrs([]slog.Attr) slog.Handler { return l }
func (l *simLog) WithGroup(string) slog.Handler      { return l }
