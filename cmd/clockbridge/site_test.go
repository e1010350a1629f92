package main

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/prometheus/client_golang/prometheus"

	"clockbridge/protime/protimetest"
	"clockbridge/store"
)

// site is an instance with its pages, and a real API and a real NATS around it that can be switched off and on.
type site struct {
	t       testing.TB
	sim     *protimetest.Server
	apiAt   string
	api     *http.Server
	natsDir string
	natsAt  int
	nats    *server.Server

	engine *engine
	url    string
}

// newSite follows clockings and people of a simulated tenant, which fill may give a past.
func newSite(t testing.TB, showData bool, fill func(*protimetest.Server)) *site {
	t.Helper()
	s := &site{t: t, sim: protimetest.New(protimetest.Options{Tenant: "acme"}), apiAt: "127.0.0.1:0", natsDir: t.TempDir(), natsAt: server.RANDOM_PORT}
	t.Cleanup(s.sim.Close)
	fill(s.sim)
	s.startAPI()
	t.Cleanup(s.stopAPI)
	s.startNATS()
	t.Cleanup(s.stopNATS)
	s.engine, s.url = s.join(showData)
	return s
}

func (s *site) startAPI() {
	s.t.Helper()
	l, err := net.Listen("tcp", s.apiAt)
	if err != nil {
		s.t.Fatal(err)
	}
	s.apiAt, s.api = l.Addr().String(), &http.Server{Handler: s.sim, ReadHeaderTimeout: time.Minute}
	go s.api.Serve(l)
}

func (s *site) stopAPI() { s.api.Close() }

func (s *site) startNATS() {
	s.t.Helper()
	var err error
	if s.nats, err = startEmbedded(s.natsDir, s.natsAt, slog.New(slog.DiscardHandler)); err != nil {
		s.t.Fatal(err)
	}
	s.natsAt = s.nats.Addr().(*net.TCPAddr).Port
}

func (s *site) stopNATS() {
	s.nats.Shutdown()
	s.nats.WaitForShutdown()
}

// join starts another instance, until the test ends.
func (s *site) join(showData bool) (*engine, string) {
	s.t.Helper()
	log := slog.New(slog.DiscardHandler)
	nc, err := connect(natsConfig{URL: s.nats.ClientURL()}, log)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(nc.Close)
	st, err := store.Open(filepath.Join(s.t.TempDir(), "clockbridge.db"))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { st.Close() })
	e, err := newEngine(&config{heartbeat: 2 * time.Second, ShowData: showData, Tenants: []tenantConfig{{
		Name: "acme", ClientID: "demo", secret: func() (string, error) { return "demo", nil },
		Collections: []string{"clockings", "people"}, Since: lastYear, PollInterval: 50 * time.Millisecond,
		APIURL: "http://" + s.apiAt, AuthURL: "http://" + s.apiAt, UserAgent: "test/1 (Test)",
	}}}, nc, st, log, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	url, stop, err := serveHTTP("127.0.0.1:0", "1.2", e, prometheus.NewRegistry())
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- e.run(ctx) }()
	s.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			s.t.Errorf("engine: %v", err)
		}
		if err := stop(); err != nil {
			s.t.Errorf("stop: %v", err)
		}
	})
	return e, url
}

// page gets one of the pages.
func (s *site) page(path string) (code int, body string) {
	s.t.Helper()
	resp, err := http.Get(s.url + path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// sync lets every feed try again at once.
func (e *engine) sync() {
	for _, f := range e.all() {
		f.Sync()
	}
}
