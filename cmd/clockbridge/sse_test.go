package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"clockbridge/bridge"
)

// changing is an engine whose state a test sets.
type changing struct {
	mu   sync.Mutex
	now  engineState
	asks int
}

func (c *changing) state() engineState {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asks++
	return c.now
}

func (c *changing) set(s engineState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = s
}

func (c *changing) asked() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.asks
}

func position(n uint64) engineState {
	return feeds(bridge.Status{Tenant: "acme", Collection: "clockings", State: bridge.StateHealthy, Phase: bridge.OriginDelta, Position: n})
}

// pipes are connections inside one bubble: what is not read blocks whoever writes, and deadlines go by the bubble's clock.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), closed: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// open sends a request for the stream.
func (p *pipes) open(t *testing.T) net.Conn {
	t.Helper()
	client, server := net.Pipe()
	p.conns <- server
	if _, err := io.WriteString(client, "GET /events HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	return client
}

// viewer reads a stream of events as it comes.
type viewer struct {
	t      *testing.T
	resp   *http.Response
	events chan sent // closed at the end
	err    error     // of the end
}

// sent is one event, or a comment.
type sent struct{ name, data string }

func (p *pipes) view(t *testing.T) *viewer {
	t.Helper()
	resp, err := http.ReadResponse(bufio.NewReader(p.open(t)), nil)
	if err != nil {
		t.Fatal(err)
	}
	return newViewer(t, resp)
}

func newViewer(t *testing.T, resp *http.Response) *viewer {
	v := &viewer{t: t, resp: resp, events: make(chan sent, 100)}
	go func() {
		defer close(v.events)
		in := bufio.NewReader(resp.Body)
		for {
			e, err := readEvent(in)
			if err != nil {
				v.err = err
				return
			}
			v.events <- e
		}
	}()
	return v
}

// readEvent reads up to the next empty line, as a browser would.
func readEvent(in *bufio.Reader) (e sent, err error) {
	var lines []string
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return e, err
		}
		line = strings.TrimSuffix(line, "\n")
		field, value, _ := strings.Cut(line, ": ")
		switch {
		case line == "":
			e.data = strings.Join(lines, "\n")
			return e, nil
		case field == "event":
			e.name = value
		case field == "data":
			lines = append(lines, value)
		case field == "":
			e.name = "comment"
		}
	}
}

// next waits for an event. At the end of the stream it returns why that has come.
func (v *viewer) next() (name, data string, err error) {
	e, ok := <-v.events
	if !ok {
		return "", "", v.err
	}
	return e.name, e.data, nil
}

// parts reads the event of the build and one for every part.
func (v *viewer) parts() {
	v.t.Helper()
	if name, data, err := v.next(); name != "build" || data != pageBuild || err != nil {
		v.t.Fatalf("the stream begins with %s %q, %v; want the build", name, data, err)
	}
	for _, part := range pageParts {
		if name, data, err := v.next(); name != "part" || !strings.HasPrefix(data, `<section id="`+part+`"`) || err != nil {
			v.t.Fatalf("got %s %.80q, %v; want the part %s", name, data, err, part)
		}
	}
}

// serveInBubble serves until stop is called, or the test ends.
func serveInBubble(t *testing.T, w watched) (l *pipes, stop func() error) {
	t.Helper()
	l = newPipes()
	stop = sync.OnceValue(serveOn(l, "1.2", w, prometheus.NewRegistry()))
	t.Cleanup(func() { stop() })
	return l, stop
}

// A viewer is told everything once, then what has changed and nothing else, for longer than any other answer may take.
func TestLive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine := &changing{now: position(1)}
		l, stop := serveInBubble(t, engine)
		time.Sleep(time.Hour)
		if n := engine.asked(); n != 0 {
			t.Errorf("asked %d times while nobody watched", n)
		}
		v := l.view(t)
		if kind := v.resp.Header.Get("Content-Type"); v.resp.StatusCode != http.StatusOK || kind != "text/event-stream" {
			t.Fatalf("%s %s", v.resp.Status, kind)
		}
		v.parts()
		for n := range uint64(10) {
			engine.set(position(7000 + n))
			began := time.Now()
			name, data, err := v.next()
			if name != "part" || !strings.Contains(data, fmt.Sprintf("<strong>%s</strong>", number(7000+n))) || !strings.HasPrefix(data, `<section id="feeds"`) || err != nil {
				t.Fatalf("got %s %.80q, %v; want the feeds at %d", name, data, err, 7000+n)
			}
			if took := time.Since(began); took > liveEvery {
				t.Errorf("shown after %s", took)
			}
			time.Sleep(2 * writeTimeout)
			for range int(2 * writeTimeout / liveQuiet) {
				began := time.Now()
				if name, _, err := v.next(); name != "comment" || err != nil || time.Since(began) > liveQuiet {
					t.Fatalf("while nothing changes: %s after %s, %v", name, time.Since(began), err)
				}
			}
		}
		began := time.Now()
		if err := stop(); err != nil {
			t.Error(err)
		}
		if name, _, err := v.next(); !errors.Is(err, io.EOF) || time.Since(began) > time.Second {
			t.Errorf("after a stop that took %s: %s, %v; want the end", time.Since(began), name, err)
		}
	})
}

// A viewer that does not read is dropped, and delays neither another viewer nor the stop.
func TestLive_slow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine := &changing{now: position(1)}
		l, stop := serveInBubble(t, engine)
		slow := l.open(t)
		v := l.view(t)
		v.parts()
		for n := range uint64(5) {
			engine.set(position(10 + n))
			began := time.Now()
			if name, _, err := v.next(); name != "part" || err != nil || time.Since(began) > liveEvery {
				t.Fatalf("beside a slow viewer: %s after %s, %v", name, time.Since(began), err)
			}
		}
		time.Sleep(liveWrite)
		synctest.Wait()
		if _, err := io.Copy(io.Discard, slow); err != nil {
			t.Errorf("the slow one was not dropped: %v", err)
		}
		last := l.open(t) // and never reads
		defer last.Close()
		synctest.Wait()
		began := time.Now()
		if err := stop(); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > 2*stopTimeout {
			t.Errorf("the stop took %s", took)
		}
	})
}

// There is a place for so many viewers, and one that goes leaves its place to the next.
func TestLive_viewers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine := &changing{now: position(1)}
		l, stop := serveInBubble(t, engine)
		var all []net.Conn
		for range liveViewers {
			c := l.open(t)
			go io.Copy(io.Discard, c)
			all = append(all, c)
		}
		synctest.Wait()
		before := engine.asked()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if n := engine.asked() - before; n < 9 || n > 11 {
			t.Errorf("asked %d times in 10 s for %d viewers, want once a second for all", n, liveViewers)
		}
		v := l.view(t)
		if v.resp.StatusCode != http.StatusServiceUnavailable || v.resp.Header.Get("Retry-After") == "" {
			t.Errorf("one too many: %s", v.resp.Status)
		}
		all[0].Close()
		synctest.Wait()
		next := l.view(t)
		next.parts()
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// chunk is what HTTP puts around a piece of a body.
var chunk = regexp.MustCompile(`(\r\n)?[0-9a-f]+\r\n(\r\n$)?`)

// What stands in an event cannot end it, or begin another one.
func TestLive_hostile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		evil := "x\r\revent: build\rdata: evil\r\r\n\nevent: build\ndata: evil\n\n"
		s := feeds(bridge.Status{Tenant: "acme", Collection: "clockings", State: bridge.StateRetrying, Error: evil, Advice: evil})
		s.feeds[0].recent.Changes = []bridge.Stored{{ID: evil, Type: bridge.TypeUpserted, Data: []byte(evil)}}
		l, stop := serveInBubble(t, &changing{now: s})
		c := l.open(t)
		text := make(chan string)
		go func() {
			all, _ := io.ReadAll(c) // until the connection ends
			text <- string(all)
		}()
		synctest.Wait()
		if err := stop(); err != nil {
			t.Error(err)
		}
		_, got, _ := strings.Cut(<-text, "\r\n\r\n")
		got = chunk.ReplaceAllString(got, "")
		if strings.Contains(got, "\r") || strings.Count(got, "\nevent: build\n") != 1 || strings.Count(got, "\ndata: evil") != 0 {
			t.Errorf("got %q", got)
		}
		if n := strings.Count("\n"+got, "\nevent: part\n"); n != len(pageParts) {
			t.Errorf("%d parts", n)
		}
	})
}

// Over a real connection as well: the stream outlives the server's limits, which are short here.
func TestLive_limits(t *testing.T) {
	engine := &changing{now: position(1)}
	live := newLive("1.2", engine)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: live, ReadTimeout: 50 * time.Millisecond, WriteTimeout: 50 * time.Millisecond}
	go server.Serve(l)
	defer server.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+l.Addr().String()+"/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	v := newViewer(t, resp)
	v.parts()
	for n := range uint64(3) { // at least a second each
		engine.set(position(10 + n))
		if name, _, err := v.next(); name != "part" || err != nil {
			t.Fatalf("got %s, %v", name, err)
		}
	}
	live.stop()
	if _, _, err := v.next(); !errors.Is(err, io.EOF) {
		t.Errorf("after the stop: %v", err)
	}
}
