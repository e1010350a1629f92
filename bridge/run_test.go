package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"

	"clockbridge/protime"
	"clockbridge/store"
)

// idle is a feed without a network: for what Run makes of the errors of Step.
func idle(logs *logBuffer) *Feed {
	cfg := Config{Tenant: "acme", Collection: "clockings", Store: noStore{}, PollInterval: DefaultPollInterval,
		Logger: slog.New(slog.NewTextHandler(logs, nil)), Metrics: NewMetrics("acme", "clockings")}
	f := &Feed{cfg: cfg, name: "acme/clockings", log: cfg.Logger, stream: &stream{name: "S"}, wake: make(chan struct{}, 1)}
	f.status = newStatus(cfg, "S")
	f.at.Cursor = "c"
	return f
}

type noStore struct{ Store }

func (noStore) Commit(string, store.Checkpoint, store.Checkpoint, []store.Entry) error { return nil }

func apiErr(status int, after time.Duration) error {
	return &protime.APIError{Status: status, Code: "Code", Message: "message", RetryAfter: after}
}

func onCursor(err error) error { return &cursorError{err: err} }
func onStart(err error) error  { return &cursorError{start: true, err: err} }

// TestPlan is the design's table of failures.
func TestPlan(t *testing.T) {
	const b = 2 * time.Second // what backoff says
	tests := []struct {
		name string
		err  error
		want plan
	}{
		{"NetworkError", onCursor(errors.New("connection refused")), plan{state: StateRetrying, wait: b}},
		{"408", onCursor(apiErr(408, 0)), plan{state: StateRetrying, wait: b}},
		{"409", onCursor(apiErr(409, 0)), plan{state: StateRetrying, wait: b}},
		{"429", onCursor(apiErr(429, 0)), plan{state: StateRetrying, wait: b}},
		{"429RetryAfter", onCursor(apiErr(429, time.Minute)), plan{state: StateRetrying, wait: time.Minute}},
		{"429RetryAfterCapped", onCursor(apiErr(429, time.Hour)), plan{state: StateRetrying, wait: 15 * time.Minute}},
		{"503", onCursor(apiErr(503, 0)), plan{state: StateRetrying, wait: b}},
		{"NATSUnreachable", errDisconnected, plan{state: StateRetrying, wait: b}},
		{"Refused", fmt.Errorf("append: %w", errRefused), plan{state: StateRetrying, wait: b}},
		{"PageMalformed", onCursor(&protime.PageError{Reason: "cut"}), plan{state: StateRetrying, wait: b}},
		{"LinkElsewhere", onCursor(&protime.LinkError{Reason: "other host"}), plan{state: StateRetrying, wait: b}},
		{"TokenEndpointDown", onCursor(&protime.TokenError{Status: 503}), plan{state: StateRetrying, wait: b}},
		{"TokenEndpointBusy", onCursor(&protime.TokenError{Status: 429, RetryAfter: time.Minute}), plan{state: StateRetrying, wait: time.Minute}},
		{"TokenRefused400", onCursor(&protime.TokenError{Status: 400, Code: "invalid_client"}), plan{state: StateUnauthorized, wait: retryRefused}},
		{"TokenRefused401", onCursor(&protime.TokenError{Status: 401}), plan{state: StateUnauthorized, wait: retryRefused}},
		{"SecretUnreadable", onCursor(&protime.TokenError{Err: fmt.Errorf("%w: permission denied", protime.ErrSecret)}), plan{state: StateUnauthorized, wait: retryRefused}},
		{"ScopeRefused", onCursor(&protime.TokenError{Status: 400, Code: "invalid_scope"}), plan{state: StateUnauthorized, wait: retryRefused}},
		{"PermissionMissing", fmt.Errorf("append: %w", nats.ErrPermissionViolation), plan{state: StateMisconfigured, wait: retryRefused}},
		{"401", onCursor(apiErr(401, 0)), plan{state: StateUnauthorized, wait: retryRefused}},
		{"403", onStart(apiErr(403, 0)), plan{state: StateUnauthorized, wait: retryRefused}},
		{"410", onCursor(apiErr(410, 0)), plan{restart: "expired"}},
		{"410WhileStarting", onStart(apiErr(410, 0)), plan{state: StateRetrying, wait: b}},
		{"FilterRefused", onStart(apiErr(400, 0)), plan{state: StateMisconfigured, wait: retryRefused}},
		{"CollectionUnknown", onStart(apiErr(404, 0)), plan{state: StateMisconfigured, wait: retryRefused}},
		{"404OnRecord", fmt.Errorf("get record 7: %w", apiErr(404, 0)), plan{state: StateRetrying, wait: b}},
		{"Conflict", fmt.Errorf("%w: x", ErrConflict), plan{state: StateConflict, wait: forever}},
		{"StreamUnfit", &StreamError{Stream: "S", Problems: []string{"x"}}, plan{state: StateMisconfigured, wait: retryRefused}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := idle(new(logBuffer)).plan(tt.err, b)
			if got.restart == "" && got.advice == "" {
				t.Error("plan gives no advice")
			}
			got.advice = ""
			if got != tt.want {
				t.Errorf("plan = %+v, want %+v", got, tt.want)
			}
		})
	}
	for _, status := range []int{400, 404, 409, 414} {
		t.Run(fmt.Sprintf("%dThreeTimesOnACursor", status), func(t *testing.T) {
			f := idle(new(logBuffer))
			for range 2 {
				if p := f.plan(onCursor(apiErr(status, 0)), b); p.restart != "" {
					t.Fatalf("cursor given up too early: %+v", p)
				}
			}
			if p := f.plan(onCursor(apiErr(status, 0)), b); p.restart != fmt.Sprintf("cursor refused with %d", status) {
				t.Errorf("third refusal: %+v, want a restart", p)
			}
		})
	}
}

func TestRun_BacksOffAndRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logs := new(logBuffer)
		f := idle(logs)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var pauses []time.Duration
		last := time.Now()
		n := 0
		err := f.loop(ctx, func(context.Context) error {
			pauses = append(pauses, time.Since(last))
			last = time.Now()
			switch n++; {
			case n <= 12:
				return onCursor(apiErr(http.StatusServiceUnavailable, 0))
			case n == 15:
				cancel()
			}
			return nil
		})
		if err != nil {
			t.Fatalf("loop: %v", err)
		}
		for i, p := range pauses[1:13] {
			if limit := min(retryFirst<<i*3/2, retryMax); p > limit || p < min(retryFirst<<i/2, retryMax/2) {
				t.Errorf("pause %d is %s, want at most %s and at least a third of it", i+1, p, limit)
			}
		}
		for i, p := range pauses[13:] {
			if p != DefaultPollInterval {
				t.Errorf("pause %d while healthy is %s, want %s", i+1, p, DefaultPollInterval)
			}
		}
		if got := strings.Count(logs.String(), "feed not healthy"); got != 4 {
			t.Errorf("%d lines for 12 failures, want 4 (the 1st, 2nd, 4th, 8th):\n%s", got, logs)
		}
		if got := strings.Count(logs.String(), "feed recovered"); got != 1 {
			t.Errorf("%d lines on recovery, want 1:\n%s", got, logs)
		}
		if s := f.Status(); s.State != StateHealthy || s.Error != "" || s.Attempts != 0 {
			t.Errorf("status after recovery: %+v", s)
		}
	})
}

// TestPromise6NeverStopsSilently: whatever is not healthy shows in status, readiness and one log line.
func TestPromise6NeverStopsSilently(t *testing.T) {
	tests := map[State]error{
		StateRetrying:      onCursor(errors.New("connection refused")),
		StateUnauthorized:  onCursor(apiErr(403, 0)),
		StateMisconfigured: onStart(apiErr(400, 0)),
		StateConflict:      fmt.Errorf("%w: a foreign message", ErrConflict),
		StateStopped:       fmt.Errorf("%w: disk full", ErrStore),
	}
	for state, failure := range tests {
		t.Run(string(state), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				logs := new(logBuffer)
				f := idle(logs)
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- f.loop(ctx, func(context.Context) error { return failure }) }()
				synctest.Wait()
				s := f.Status()
				if s.State != state || s.Ready() || s.Error != failure.Error() || s.Advice == "" {
					t.Errorf("status = %+v, want state %s, not ready, with error and advice", s, state)
				}
				if got := strings.Count(logs.String(), "state="+string(state)); got != 1 {
					t.Errorf("%d log lines name the state, want 1:\n%s", got, logs)
				}
				cancel()
				err := <-done
				if fatal := state == StateStopped; fatal != (err != nil) {
					t.Errorf("loop returned %v", err)
				}
			})
		})
	}
	t.Run("stale", func(t *testing.T) {
		logs := new(logBuffer)
		f := idle(logs)
		f.status.judged(tally{stale: 3})
		f.status.passed(true)
		f.recovered()
		if s := f.Status(); s.State != StateStale || s.Ready() || s.Advice == "" {
			t.Errorf("status = %+v, want state stale, not ready, with advice", s)
		}
		if !strings.Contains(logs.String(), "only stale changes") {
			t.Errorf("no log line tells of stale changes:\n%s", logs)
		}
		f.status.judged(tally{fresh: 1})
		f.status.passed(true)
		f.recovered()
		if s := f.Status(); !s.Ready() {
			t.Errorf("status after a fresh change = %+v, want ready", s)
		}
	})
}

func TestRun_EndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := idle(new(logBuffer))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- f.loop(ctx, func(context.Context) error { return nil }) }()
		synctest.Wait()
		began := time.Now()
		cancel()
		if err := <-done; err != nil || time.Since(began) != 0 {
			t.Errorf("loop returned %v after %s, want nil at once", err, time.Since(began))
		}
	})
}
