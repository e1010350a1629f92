package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"clockbridge/bridge"
)

// feeds shows what it holds.
type feeds []bridge.Status

func (f feeds) status() []bridge.Status { return f }

func TestStatusHandler(t *testing.T) {
	healthy := bridge.Status{Tenant: "acme", Collection: "people", State: bridge.StateHealthy}
	broken := bridge.Status{
		Tenant: "acme", Collection: "clockings", State: bridge.StateUnauthorized,
		Error: "<script>alert(1)</script>\nsecond line", Advice: "ask the administrator",
	}
	verified := func(r bridge.VerifyReport) feeds {
		return feeds{{Tenant: "acme", Collection: "clockings", State: bridge.StateHealthy, LastVerify: &r}}
	}
	for _, test := range []struct {
		name, method, path string
		feeds              feeds
		status             int
		want               string
	}{
		{"ready when every feed is", "GET", "/readyz", feeds{healthy, healthy}, 200, "acme/people healthy\n"},
		{"not ready when one is not", "GET", "/readyz", feeds{healthy, broken}, 503,
			"acme/people healthy\nacme/clockings unauthorized: <script>alert(1)</script>; second line (ask the administrator)\n"},
		{"alive all the same", "GET", "/healthz", feeds{broken}, 200, "ok\n"},
		{"JSON", "GET", "/status.json", feeds{broken}, 200, `"state": "unauthorized"`},
		{"version in JSON", "GET", "/status.json", feeds{healthy}, 200, `"version": "1.2"`},
		{"page says that all is well", "GET", "/", feeds{healthy}, 200, "Every feed is healthy."},
		{"page escapes what the API said", "GET", "/", feeds{healthy, broken}, 200, "&lt;script&gt;alert(1)&lt;/script&gt;"},
		{"page says that nothing was verified", "GET", "/", feeds{healthy}, 200, "not yet"},
		{"page says that the stream is exact", "GET", "/", verified(bridge.VerifyReport{Records: 3}), 200, "<br>exact"},
		{"page says how the stream differs", "GET", "/", verified(bridge.VerifyReport{Missing: 1, Phantom: 2}), 200, "missing 1, stale 0, phantom 2, ahead 0"},
		{"page says why it was not verified", "GET", "/", verified(bridge.VerifyReport{Error: "no <answer>"}), 200, "no &lt;answer&gt;"},
		{"what was verified in JSON", "GET", "/status.json", verified(bridge.VerifyReport{Missing: 1}), 200, `"missing": 1`},
		{"metrics", "GET", "/metrics", feeds{healthy}, 200, "clockbridge_test 1\n"},
		{"nothing can be written", "POST", "/status.json", feeds{healthy}, 405, ""},
		{"nothing else is there", "GET", "/debug/pprof/", feeds{healthy}, 404, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			registry := prometheus.NewRegistry()
			gauge := prometheus.NewGauge(prometheus.GaugeOpts{Name: "clockbridge_test"})
			gauge.Set(1)
			registry.MustRegister(gauge)
			recorder := httptest.NewRecorder()
			statusHandler("1.2", test.feeds, registry).ServeHTTP(recorder, httptest.NewRequest(test.method, test.path, nil))
			if recorder.Code != test.status || !strings.Contains(recorder.Body.String(), test.want) {
				t.Errorf("%s %s: %d %q, want %d and %q in it", test.method, test.path, recorder.Code, recorder.Body, test.status, test.want)
			}
		})
	}
}

func TestServeHTTP(t *testing.T) {
	url, stop, err := serveHTTP("127.0.0.1:0", "1.2", feeds{}, prometheus.NewRegistry())
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
	_, _, err = serveHTTP(strings.TrimPrefix(url, "http://"), "1.2", feeds{}, prometheus.NewRegistry())
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
