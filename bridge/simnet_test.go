package bridge

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

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
