package protime

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// pipes is a network of one server, inside a synctest bubble.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
}

func (p pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}
func (p pipes) Close() error   { close(p.done); return nil }
func (p pipes) Addr() net.Addr { return &net.TCPAddr{} }
func (p pipes) dial(context.Context, string, string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	p.conns <- theirs
	return ours, nil
}

func TestClient_Fetch_stalls(t *testing.T) {
	for name, test := range map[string]struct {
		pauses []time.Duration // the server's, before each further part of a body that never ends
		idle   time.Duration   // what the caller does between the first two reads
		want   time.Duration   // when the page is given up
		says   string
	}{
		"AtOnce":                {nil, 0, time.Minute, "no byte for 1m0s"},
		"AliveThenSilent":       {[]time.Duration{50 * time.Second, 50 * time.Second, 50 * time.Second}, 0, 210 * time.Second, "no byte for 1m0s"},
		"OnePauseTooLong":       {[]time.Duration{50 * time.Second, 70 * time.Second}, 0, 110 * time.Second, "no byte for 1m0s"},
		"OwnTimeDoesNotCount":   {[]time.Duration{time.Hour + 50*time.Second}, time.Hour, time.Hour + 110*time.Second, "no byte for 1m0s"},
		"OwnTimeGivesNoRespite": {[]time.Duration{2 * time.Hour}, time.Hour, time.Hour + time.Minute, "no byte for 1m0s"},
		"DripByDrip":            {slices.Repeat([]time.Duration{50 * time.Second}, 1000), 0, 650 * time.Second, "72 bytes in 10m50s"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				network := pipes{make(chan net.Conn), make(chan struct{})}
				server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("Content-Type", "application/json")
					if isToken(r) {
						io.WriteString(w, `{"access_token":"x"}`)
						return
					}
					io.WriteString(w, `{"value":[{"changeType":"Delete"}`)
					w.(http.Flusher).Flush()
					for _, pause := range test.pauses {
						select {
						case <-time.After(pause):
						case <-r.Context().Done():
						}
						io.WriteString(w, `,{}`)
						w.(http.Flusher).Flush()
					}
					<-r.Context().Done()
				})}
				go server.Serve(network)
				defer server.Close()
				config := testConfig(&http.Transport{DialContext: network.dial})
				config.APIURL, config.AuthURL = "http://acme", "http://auth"
				c, err := NewClient(config)
				if err != nil {
					t.Fatal(err)
				}
				defer c.CloseIdleConnections()
				start := time.Now()
				p, err := c.Fetch(t.Context(), after)
				if err != nil {
					t.Fatal(err)
				}
				defer p.Close()
				if _, err := p.Next(); err != nil {
					t.Fatal(err)
				}
				time.Sleep(test.idle)
				for err == nil {
					_, err = p.Next()
				}
				var bad *PageError
				if !errors.As(err, &bad) || !strings.Contains(err.Error(), test.says) {
					t.Errorf("got %v, want a stall", err)
				}
				if got := time.Since(start); got != test.want {
					t.Errorf("gave up after %v, want %v", got, test.want)
				}
			})
		})
	}
}

// Some transports answer a read with their own words when the request's context ends.
func TestStallReader_Read_tellsTheCause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		r := newStallReader(ctx, cancel, io.NopCloser(readFunc(func([]byte) (int, error) {
			<-ctx.Done()
			return 0, errors.New("stream reset")
		})), time.Second)
		defer r.Close()
		if _, err := r.Read(nil); err == nil || err.Error() != "no byte for 1s" {
			t.Errorf("got %v, want no byte for 1s", err)
		}
	})
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(b []byte) (int, error) { return f(b) }

func TestClient_Fetch_endsWithItsContext(t *testing.T) {
	c, _ := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, `{"value":[1`)
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	p, err := c.Fetch(ctx, after)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	cancel()
	for err == nil {
		_, err = p.Next()
	}
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	if _, err := c.Fetch(ctx, after); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}
