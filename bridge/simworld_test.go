package bridge

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
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

// route is a process's way to the API and the token endpoint.
type route struct {
	p   *process
	api http.RoundTripper
}

// How long protime's own transport waits for a connection, TLS included, and for an answer to begin.
const (
	connectTimeout = 20 * time.Second
	headerTimeout  = 2 * time.Minute
)

func (r route) RoundTrip(req *http.Request) (*http.Response, error) {
	s, ctx := r.p.m.s, req.Context()
	token := strings.HasPrefix(req.URL.Path, "/tenants/")
	bad := s.apiFails(token)
	connect := s.shape.latency
	if bad == "slow" {
		connect = connectTimeout * 3 / 4
	}
	if err := sleep(ctx, connect); err != nil {
		return nil, err
	}
	if err := r.p.wait(ctx); err != nil {
		return nil, err
	}
	switch bad {
	case "refused":
		return nil, errors.New("connection refused")
	case "silent":
		if err := sleep(ctx, headerTimeout); err != nil {
			return nil, err
		}
		return nil, errors.New("timeout awaiting response headers")
	}
	if !token && (strings.Contains(req.URL.Path, "/delta/") || req.URL.Query().Has("delta") || req.URL.Query().Has("deltaToken")) {
		s.asked(r.p, r.p.feed.lease.term())
	}
	resp, err := r.api.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if err := sleep(ctx, s.shape.latency); err != nil {
		resp.Body.Close()
		return nil, err
	}
	resp.Body = routedBody{ctx, r.p, resp.Body}
	return resp, nil
}

type routedBody struct {
	ctx context.Context
	p   *process
	io.ReadCloser
}

func (b routedBody) Read(data []byte) (int, error) {
	if err := b.p.wait(b.ctx); err != nil {
		return 0, err
	}
	return b.ReadCloser.Read(data)
}

// link is a process's connection to the nats-server: as a socket, it takes what is written without waiting, and brings it
// to the other end unless the network is held up.
type link struct {
	far net.Conn

	mu       sync.Mutex
	cond     *sync.Cond
	in, out  []byte
	held     bool
	allowed  int  // bytes that may go out all the same
	closed   bool // by the process
	broken   bool // by the server or the network
	deadline time.Time
	born     time.Time
}

// Dial makes process a nats.CustomDialer.
func (p *process) Dial(string, string) (net.Conn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	srv := p.m.s.reachable()
	if srv == nil || p.dead || p.cut || p.ice != nil {
		return nil, errors.New("connection refused")
	}
	far, err := srv.InProcessConn()
	if err != nil {
		return nil, err
	}
	l := &link{far: far, born: time.Now()}
	l.cond = sync.NewCond(&l.mu)
	p.links = append(p.links, l)
	go l.receive()
	go l.send()
	return l, nil
}

func (l *link) receive() {
	buf := make([]byte, 32<<10)
	for {
		n, err := l.far.Read(buf)
		l.mu.Lock()
		l.in = append(l.in, buf[:n]...)
		l.broken = l.broken || err != nil
		l.cond.Broadcast()
		l.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (l *link) send() {
	defer l.far.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		for !l.broken && (l.held && l.allowed == 0 || len(l.out) == 0 && (l.held || !l.closed)) {
			l.cond.Wait()
		}
		if l.broken || len(l.out) == 0 {
			return
		}
		out := l.out
		if l.held {
			out = out[:min(len(out), l.allowed)]
			l.allowed -= len(out)
		}
		l.out = l.out[len(out):]
		l.mu.Unlock()
		_, err := l.far.Write(out)
		l.mu.Lock()
		if err != nil {
			l.broken = true
			l.cond.Broadcast()
		}
	}
}

func (l *link) Read(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		switch {
		case l.closed:
			return 0, net.ErrClosed
		case !l.deadline.IsZero() && !time.Now().Before(l.deadline):
			return 0, os.ErrDeadlineExceeded
		case !l.held && len(l.in) > 0:
			n := copy(b, l.in)
			l.in = l.in[n:]
			return n, nil
		case !l.held && l.broken:
			return 0, io.EOF
		}
		l.cond.Wait()
	}
}

func (l *link) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		return 0, net.ErrClosed
	case l.broken && !l.held:
		return 0, io.ErrClosedPipe
	}
	l.out = append(l.out, b...)
	l.cond.Broadcast()
	return len(b), nil
}

// hold stops both directions, or lets them go on. A connection that is only being made is ended instead: nats.go makes it
// under a lock, for which others would wait without the clock moving on.
func (l *link) hold(held bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if held && l.born.Equal(time.Now()) {
		l.broken = true
	} else {
		l.held = held
	}
	l.allowed = 0
	l.cond.Broadcast()
}

// holdBehind is hold, but that some more bytes go out.
func (l *link) holdBehind(bytes int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held, l.allowed = true, bytes
	l.cond.Broadcast()
}

// cut ends the connection from outside.
func (l *link) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.broken, l.held, l.out = true, false, nil
	l.far.Close()
	l.cond.Broadcast()
}

func (l *link) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.cond.Broadcast()
	return nil
}

func (l *link) SetReadDeadline(t time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.deadline = t
	if !t.IsZero() {
		time.AfterFunc(time.Until(t), l.cond.Broadcast)
	}
	return nil
}

func (l *link) SetDeadline(t time.Time) error  { return l.SetReadDeadline(t) }
func (*link) SetWriteDeadline(time.Time) error { return nil } // no write waits
func (*link) LocalAddr() net.Addr              { return simAddr{} }
func (*link) RemoteAddr() net.Addr             { return simAddr{} }

type simAddr struct{}

func (simAddr) Network() string { return "simulated" }
func (simAddr) String() string  { return "simulated" }

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
