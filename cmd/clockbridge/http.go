package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"clockbridge/bridge"
)

// statusPage is what GET /status.json answers. The README says what each field means.
type statusPage struct {
	Version string          `json:"version"`
	Ready   bool            `json:"ready"`
	NATS    string          `json:"nats"`
	Feeds   []bridge.Status `json:"feeds"`
}

// watched is what the pages are about; *engine is one.
type watched interface{ state() engineState }

// ready reports whether every feed does its work, here or elsewhere. A feed between two polls does not know yet that NATS is away.
func (s engineState) ready() bool {
	for _, f := range s.feeds {
		if !f.Ready() {
			return false
		}
	}
	return s.nats == natsConnected
}

// Bounds of a request. A stream of events has its own: see live.
const (
	readTimeout  = 10 * time.Second
	writeTimeout = 30 * time.Second
	stopTimeout  = 2 * time.Second // for answers that are under way at the end
)

// serveHTTP starts the read-only HTTP server: a status page, health, readiness and metrics. The function that it returns
// ends it.
func serveHTTP(addr, version string, w watched, metrics prometheus.Gatherer) (url string, stop func() error, err error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return "", nil, fmt.Errorf("serve status page: %w; choose another address with CLOCKBRIDGE_HTTP_ADDR", err)
	}
	return "http://" + l.Addr().String(), serveOn(l, version, w, metrics), nil
}

func serveOn(l net.Listener, version string, w watched, metrics prometheus.Gatherer) (stop func() error) {
	live := newLive(version, w)
	server := &http.Server{
		Handler:     statusHandler(version, w, live, metrics),
		ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: time.Minute,
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.Serve(l) //nolint:errcheck // it ends with Shutdown or Close
	}()
	return func() error {
		live.stop()
		ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		err := server.Shutdown(ctx)
		if errors.Is(err, context.DeadlineExceeded) {
			err = server.Close()
		}
		<-done
		return err
	}
}

func statusHandler(version string, w watched, live *live, metrics prometheus.Gatherer) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(rw http.ResponseWriter, _ *http.Request) {
		if err := w.state().broken; err != nil {
			plain(rw, http.StatusServiceUnavailable, oneLine(err.Error())+"\n")
			return
		}
		plain(rw, http.StatusOK, "ok\n")
	})
	mux.HandleFunc("GET /readyz", func(rw http.ResponseWriter, _ *http.Request) {
		s := w.state()
		code := http.StatusOK
		if !s.ready() {
			code = http.StatusServiceUnavailable
		}
		plain(rw, code, s.text())
	})
	mux.HandleFunc("GET /status.json", func(rw http.ResponseWriter, _ *http.Request) {
		s := w.state()
		p := statusPage{Version: version, Ready: s.ready(), NATS: s.nats}
		for _, f := range s.feeds {
			p.Feeds = append(p.Feeds, f.Status)
		}
		rw.Header().Set("Content-Type", "application/json")
		encoder := json.NewEncoder(rw)
		encoder.SetIndent("", "  ")
		encoder.Encode(p) //nolint:errcheck // the client is gone
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /{$}", func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", "text/html; charset=utf-8")
		render(rw, "page", newPage(version, w.state(), time.Now(), r.URL.Query().Has("still")))
	})
	mux.Handle("GET /events", live)
	mux.Handle("GET /page/", assets())
	return guarded(mux)
}

// text says how every feed is, a line each, and first what concerns them all.
func (s engineState) text() string {
	var b strings.Builder
	if s.nats != natsConnected {
		fmt.Fprintf(&b, "NATS %s\n", s.nats)
	}
	for _, f := range s.feeds {
		fmt.Fprintf(&b, "%s/%s %s", f.Tenant, f.Collection, f.State)
		if f.Error != "" {
			fmt.Fprintf(&b, ": %s", oneLine(f.Error))
		}
		if f.Advice != "" {
			fmt.Fprintf(&b, " (%s)", f.Advice)
		}
		fmt.Fprintln(&b)
	}
	return b.String()
}

func oneLine(s string) string { return strings.ReplaceAll(s, "\n", "; ") }

func plain(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	io.WriteString(w, text) //nolint:errcheck // the client is gone
}

// guarded lets a browser load nothing from elsewhere, run nothing that stands in a page, show no page inside another one, and keep
// nothing: what is true now is not true for long.
func guarded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "+
			"base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		next.ServeHTTP(w, r)
	})
}
