package main

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"clockbridge/bridge"
	"clockbridge/protime/protimetest"
)

// waitPage waits until one of the pages answers so, and shows the text.
func (s *site) waitPage(path string, code int, text string) {
	s.t.Helper()
	got, body := 0, ""
	ok := poll(30*time.Second, func() bool {
		got, body = s.page(path)
		return got == code && strings.Contains(body, text)
	})
	if !ok {
		s.t.Fatalf("waited 30 s for %d and %q from %s, which answers %d:\n%s", code, text, path, got, body)
	}
}

// alive fails the test if the process does not say that it works.
func (s *site) alive(when string) {
	s.t.Helper()
	if code, body := s.page("/healthz"); code != http.StatusOK || body != "ok\n" {
		s.t.Errorf("%s: /healthz answers %d %q, want ok: a restart would help nobody", when, code, body)
	}
}

// With a real NATS that is stopped and a real API that is switched off, /readyz says so, /healthz that the process works all the same,
// and both are right again afterwards.
func TestHealth_away(t *testing.T) {
	s := newSite(t, false, func(sim *protimetest.Server) { sim.Fill("clockings", 10, 200) })
	s.waitPage("/readyz", http.StatusOK, "acme/clockings healthy\nacme/people healthy\n")
	s.alive("at first")

	s.stopAPI()
	s.waitPage("/readyz", http.StatusServiceUnavailable, "acme/clockings retrying: fetch changes: ")
	s.waitPage("/status.json", http.StatusOK, `"ready": false`)
	s.waitPage("/", http.StatusOK, "2 of 2 feeds are not up to date")
	s.alive("without the API")
	s.startAPI()
	s.waitPage("/readyz", http.StatusOK, "acme/clockings healthy")
	s.alive("with the API again")

	s.stopNATS()
	disconnected := poll(10*time.Second, func() bool { return !s.engine.nc.IsConnected() })
	if code, body := s.page("/readyz"); !disconnected || code != http.StatusServiceUnavailable || !strings.HasPrefix(body, "NATS reconnecting\n") {
		t.Errorf("without NATS, at once: %d %q", code, body)
	}
	s.waitPage("/readyz", http.StatusServiceUnavailable, "acme/people retrying: ")
	s.waitPage("/status.json", http.StatusOK, `"nats": "reconnecting"`)
	s.waitPage("/", http.StatusOK, "No connection to NATS")
	s.alive("without NATS")
	s.startNATS()
	s.waitPage("/readyz", http.StatusOK, "acme/people healthy\n")
	s.alive("with NATS again")

	// With both away nothing is known, and nothing is called well.
	s.stopNATS()
	s.stopAPI()
	s.waitPage("/readyz", http.StatusServiceUnavailable, "acme/clockings retrying: ")
	s.alive("without both")
	s.startAPI()
	s.startNATS()
	s.waitPage("/readyz", http.StatusOK, "acme/clockings healthy")
}

// A process that can do nothing any more says so: its feeds have ended, its connection is gone for good, its store cannot be written.
func TestHealth_broken(t *testing.T) {
	broken := func(t *testing.T, e *engine, want string) {
		t.Helper()
		answer := get(handler(t, e), "/healthz")
		if answer.Code != http.StatusServiceUnavailable || !strings.Contains(answer.Body.String(), want) {
			t.Errorf("/healthz answers %d %q, want %q", answer.Code, answer.Body, want)
		}
	}
	t.Run("feeds ended", func(t *testing.T) {
		e, _, _ := testEngine(t, func(s feedStore) feedStore { return fullDisk{s, "acme/clockings"} })
		if answer := get(handler(t, e), "/healthz"); answer.Code != http.StatusOK {
			t.Errorf("before it runs: %d %q", answer.Code, answer.Body)
		}
		if err := e.run(t.Context()); err == nil {
			t.Fatal("a store that cannot be written ends nothing")
		}
		broken(t, e, "no feed is followed any more: ")
		broken(t, e, errDisk.Error())
	})
	t.Run("a feed has stopped, the others have not yet", func(t *testing.T) {
		e, _, _ := testEngine(t, func(s feedStore) feedStore { return fullDisk{s, "acme/clockings"} })
		if err := e.run(t.Context()); err == nil {
			t.Fatal("a store that cannot be written ends nothing")
		}
		e.ended = nil
		broken(t, e, "acme/clockings has stopped: ")
	})
	t.Run("connection closed", func(t *testing.T) {
		e, _, nc := testEngine(t, func(s feedStore) feedStore { return s })
		nc.Close()
		broken(t, e, "the NATS connection was closed for good")
	})
	t.Run("stopped", func(t *testing.T) {
		e, _, _ := testEngine(t, func(s feedStore) feedStore { return s })
		ended := make(chan error, 1)
		ctx, stop := context.WithCancel(t.Context())
		go func() { ended <- e.run(ctx) }()
		if !poll(20*time.Second, func() bool { return e.status()[0].State == bridge.StateHealthy }) {
			t.Fatalf("not under way: %+v", e.status())
		}
		if answer := get(handler(t, e), "/healthz"); answer.Code != http.StatusOK {
			t.Errorf("while it runs: %d %q", answer.Code, answer.Body)
		}
		stop()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		broken(t, e, "no feed is followed any more: stopped")
	})
}
