package main

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"clockbridge/bridge"
)

// state is an engine that stands still.
func (s engineState) state() engineState { return s }

// feeds is an engine whose feeds are in those states.
func feeds(all ...bridge.Status) engineState {
	s := engineState{nats: natsConnected}
	for _, f := range all {
		s.feeds = append(s.feeds, feedState{Status: f})
	}
	return s
}

// handler answers for an engine until the test ends.
func handler(t *testing.T, w watched) http.Handler {
	t.Helper()
	registry := prometheus.NewRegistry()
	gauge := prometheus.NewGauge(prometheus.GaugeOpts{Name: "clockbridge_test"})
	gauge.Set(1)
	registry.MustRegister(gauge)
	live := newLive("1.2", w)
	t.Cleanup(live.stop)
	return statusHandler("1.2", w, live, registry)
}

func get(h http.Handler, path string) *httptest.ResponseRecorder {
	recorder := httptest.NewRecorder()
	h.ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, path, nil))
	return recorder
}

func TestStatusHandler(t *testing.T) {
	healthy := bridge.Status{Tenant: "acme", Collection: "people", State: bridge.StateHealthy}
	broken := bridge.Status{
		Tenant: "acme", Collection: "clockings", State: bridge.StateUnauthorized,
		Error: "<script>alert(1)</script>\nsecond line", Advice: "ask the administrator",
	}
	verified := func(r bridge.VerifyReport) engineState {
		return feeds(bridge.Status{Tenant: "acme", Collection: "clockings", State: bridge.StateHealthy, LastVerify: &r})
	}
	apart := feeds(healthy)
	apart.nats = "reconnecting"
	dead := feeds(healthy)
	dead.broken = errors.New("no feed is followed any more:\nstore cannot be written")
	for _, test := range []struct {
		name, method, path string
		engine             engineState
		status             int
		want               string
	}{
		{"ready when every feed is", "GET", "/readyz", feeds(healthy, healthy), 200, "acme/people healthy\n"},
		{"not ready when one is not", "GET", "/readyz", feeds(healthy, broken), 503,
			"acme/people healthy\nacme/clockings unauthorized: <script>alert(1)</script>; second line (ask the administrator)\n"},
		{"not ready without NATS", "GET", "/readyz", apart, 503, "NATS reconnecting\nacme/people healthy\n"},
		{"alive all the same", "GET", "/healthz", feeds(broken), 200, "ok\n"},
		{"alive without NATS", "GET", "/healthz", apart, 200, "ok\n"},
		{"not alive when no feed is followed", "GET", "/healthz", dead, 503, "no feed is followed any more:; store cannot be written\n"},
		{"NATS in JSON", "GET", "/status.json", apart, 200, "\"ready\": false,\n  \"nats\": \"reconnecting\""},
		{"JSON", "GET", "/status.json", feeds(broken), 200, `"state": "unauthorized"`},
		{"version in JSON", "GET", "/status.json", feeds(healthy), 200, `"version": "1.2"`},
		{"what was verified in JSON", "GET", "/status.json", verified(bridge.VerifyReport{Missing: 1}), 200, `"missing": 1`},
		{"metrics", "GET", "/metrics", feeds(healthy), 200, "clockbridge_test 1\n"},
		{"nothing can be written", "POST", "/status.json", feeds(healthy), 405, ""},
		{"nothing else is there", "GET", "/debug/pprof/", feeds(healthy), 404, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			recorder := httptest.NewRecorder()
			handler(t, test.engine).ServeHTTP(recorder, httptest.NewRequest(test.method, test.path, nil))
			if recorder.Code != test.status || !strings.Contains(recorder.Body.String(), test.want) {
				t.Errorf("%s %s: %d %q, want %d and %q in it", test.method, test.path, recorder.Code, recorder.Body, test.status, test.want)
			}
		})
	}
}

func TestServeHTTP(t *testing.T) {
	url, stop, err := serveHTTP("127.0.0.1:0", "1.2", feeds(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get(url + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "ok\n" {
		t.Errorf("got %q, %v, want ok", body, err)
	}
	_, _, err = serveHTTP(strings.TrimPrefix(url, "http://"), "1.2", feeds(), prometheus.NewRegistry())
	if err == nil || !strings.Contains(err.Error(), "CLOCKBRIDGE_HTTP_ADDR") {
		t.Errorf("second server on the same address: %v, want what to do", err)
	}
	if err := stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	if resp, err := http.Get(url + "/healthz"); err == nil {
		resp.Body.Close()
		t.Error("it answers after it was stopped")
	}
}
