package bridge

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"net/http"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"clockbridge/protime"
)

// Pauses of Run. Where the API or a setting refuses, only a person can help, so there is no hurry.
const (
	retryFirst    = 500 * time.Millisecond
	retryMax      = time.Minute
	retryAfterMax = 15 * time.Minute // of what the API may ask for
	retryRefused  = 5 * time.Minute
	maxRefusals   = 3 // of one cursor in a row, before it is given up
)

// Run calls Step until ctx ends, and then returns nil: at every poll interval while all is well, and after a pause
// when something failed. It returns an error only when the store cannot be written; the process must end then.
func (f *Feed) Run(ctx context.Context) error {
	defer f.out.close()
	defer f.beside(ctx)()
	return f.loop(ctx, f.Step)
}

// hold is Run under a lease.
func (f *Feed) hold(ctx context.Context, l *lease) error {
	f.lease, f.sound, f.unheard, f.refusals, f.restarts, f.rest, f.whole = l, false, 0, 0, 0, "", false
	f.forgetting.drop()
	f.status.held(l)
	defer f.status.released()
	return f.Run(ctx)
}

// standBy shows that another process follows the feed: holder, or whoever will be.
func (f *Feed) standBy(holder string) {
	if holder != "" && f.resync.Swap(nil) != nil {
		f.log.Warn("resync not begun, another instance follows the feed", "holder", holder, "do", "ask that one")
	}
	if f.status.standBy(holder) && holder != "" { // while nobody is known to be, the line of the lease that went says it all
		f.log.Info("standing by", "state", StateStandby, "holder", holder)
	}
}

// recall shows how old the cursor is that the store holds: while NATS cannot be reached after a start, nothing else tells.
func (f *Feed) recall() {
	if at, err := f.cfg.Store.Checkpoint(f.name); err == nil { // else the first Step says what is wrong with the store
		f.status.answered(at.Answered)
	}
}

func (f *Feed) loop(ctx context.Context, step func(context.Context) error) error {
	retry, again := newRetry(), newRetry()
	for {
		if !f.standStill(ctx) {
			return nil
		}
		cursor, began := f.at.Cursor, time.Now()
		working, done := f.lease.working(ctx)
		err := step(working)
		interrupted := working.Err() != nil
		done()
		if errors.Is(err, ErrStore) {
			return f.stopped(err)
		}
		if interrupted {
			continue
		}
		if f.at.Cursor != cursor && !f.astray() {
			retry.Reset()
			f.refusals = 0
		}
		if err == nil {
			retry.Reset()
			again.Reset()
			f.refusals, f.restarts = 0, 0
			f.cfg.Metrics.polled(time.Since(began))
			f.recovered()
			if !f.wait(ctx, f.cfg.PollInterval) {
				return nil
			}
			continue
		}
		wait := retry.NextBackOff()
		p := f.plan(err, wait)
		if p.restart != "" {
			failed := f.restart(p.restart, false)
			switch {
			case errors.Is(failed, ErrStore):
				return f.stopped(failed)
			case failed != nil: // the cursor is still refused at the next Step
				err, p = failed, f.plan(failed, wait)
			default:
				if f.restarts++; f.restarts == 1 {
					continue
				}
				p = plan{state: StateRetrying, advice: adviceRestarts, wait: min(again.NextBackOff(), retryMax)}
			}
		}
		f.fail(p, err)
		if p.state == StateConflict || p.state == StateMisconfigured {
			f.forgetting.end(err) // whoever asked is to know that a person must act first
		}
		if !f.wait(ctx, p.wait) {
			return nil
		}
	}
}

// stopped shows an error of the store, and returns it.
func (f *Feed) stopped(err error) error {
	f.fail(plan{state: StateStopped, advice: adviceStore}, err)
	return err
}

func newRetry() *backoff.ExponentialBackOff {
	return backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(retryFirst),
		backoff.WithMultiplier(2),
		backoff.WithMaxInterval(retryMax),
		backoff.WithMaxElapsedTime(0))
}

// wait waits, unless Run is woken before. It reports whether to go on.
func (f *Feed) wait(ctx context.Context, pause time.Duration) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
	case <-f.wake:
	}
	return true
}

// plan is what to do about an error.
type plan struct {
	state   State
	advice  string        // what a person can do
	wait    time.Duration // before the next Step
	restart string        // instead of waiting: give up the delta, for this reason
}

// retries reports whether it is tried again.
func (p plan) retries() bool { return p.wait > 0 && p.wait != forever }

// plan is the table of failures; backoff is how long to wait where nothing else is said.
func (f *Feed) plan(err error, wait time.Duration) plan {
	var (
		cursor *cursorError
		api    *protime.APIError
		token  *protime.TokenError
		setup  *StreamError
	)
	onCursor := errors.As(err, &cursor)
	retrying := plan{state: StateRetrying, advice: adviceRetry, wait: min(wait, retryMax)}
	switch {
	case errors.Is(err, ErrConflict):
		return plan{state: StateConflict, advice: adviceConflict, wait: forever}
	case errors.As(err, &setup):
		return plan{state: StateMisconfigured, advice: adviceStream, wait: retryRefused}
	case errors.Is(err, errLapsed), errors.Is(err, errLost):
		retrying.advice = adviceLease
		return retrying
	case errors.Is(err, nats.ErrPermissionViolation):
		return plan{state: StateMisconfigured, advice: advicePermission, wait: retryRefused}
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		retrying.advice = adviceJetStream
		return retrying
	case errors.Is(err, protime.ErrSecret):
		return plan{state: StateUnauthorized, advice: adviceSecret, wait: retryRefused}
	case errors.As(err, &token):
		if token.Code == "invalid_scope" {
			return plan{state: StateUnauthorized, advice: f.adviceOnScope(), wait: retryRefused}
		}
		if refused(token.Status) || token.Status == http.StatusBadRequest {
			return plan{state: StateUnauthorized, advice: adviceCredentials, wait: retryRefused}
		}
		retrying.wait = max(retrying.wait, min(token.RetryAfter, retryAfterMax))
		return retrying
	case errors.Is(err, protime.ErrCircle):
		retrying.advice = adviceCircle
		return retrying
	case !errors.As(err, &api):
		return retrying
	case refused(api.Status):
		return plan{state: StateUnauthorized, advice: f.adviceOnScope(), wait: retryRefused}
	case onCursor && cursor.start && (api.Status == http.StatusBadRequest || api.Status == http.StatusNotFound || api.Status == http.StatusRequestURITooLong):
		return plan{state: StateMisconfigured, advice: f.adviceOnStart(api.Status), wait: retryRefused}
	case onCursor && !cursor.start && api.Status == http.StatusGone:
		return plan{restart: resyncExpired}
	case onCursor && !cursor.start && refusesCursor(api.Status):
		if f.refusals++; f.refusals >= maxRefusals {
			f.refusals = 0
			return plan{restart: fmt.Sprintf(resyncRefused, api.Status)}
		}
	}
	retrying.wait = max(retrying.wait, min(api.RetryAfter, retryAfterMax))
	return retrying
}

func (f *Feed) adviceOnScope() string {
	return fmt.Sprintf(adviceScope, protime.ReadScope(f.cfg.Collection))
}

// adviceOnStart tells a filter that is refused from one that is missing: a collection that is not known gets none by itself.
func (f *Feed) adviceOnStart(status int) string {
	if status == http.StatusBadRequest && f.at.Filter == "" {
		return adviceNoFilter
	}
	return adviceFilter
}

const forever = time.Duration(1<<63 - 1)

func refused(status int) bool {
	return status == http.StatusUnauthorized || status == http.StatusForbidden
}

// cursorRefusals are the statuses with which the API may refuse a cursor, beside 410.
var cursorRefusals = []int{http.StatusBadRequest, http.StatusNotFound, http.StatusConflict, http.StatusRequestURITooLong}

func refusesCursor(status int) bool { return slices.Contains(cursorRefusals, status) }

// fail shows an error: in the status at once, in the log when it begins, when its state changes, and then sparsely.
func (f *Feed) fail(p plan, err error) {
	attempts, changed := f.status.failed(p, err)
	if p.retries() {
		f.cfg.Metrics.retried(p.state)
	}
	if changed || sparse(attempts) {
		args := []any{"state", p.state, "error", err.Error(), "attempts", attempts, "do", p.advice}
		if p.retries() {
			args = append(args, "next_try", p.wait.Round(time.Millisecond))
		}
		f.log.Warn("feed not healthy", args...)
	}
}

// sparse reports whether the n-th failure in a row is worth a line: the first is, and then ever fewer.
func sparse(n int) bool { return bits.OnesCount(uint(n)) == 1 }

// recovered shows that a Step has ended well.
func (f *Feed) recovered() {
	was, attempts, since := f.status.healthy()
	state := f.status.snapshot().State
	switch {
	case state == StateStale && was != StateStale:
		f.log.Warn("feed shows only stale changes", "state", state, "do", adviceStale)
	case attempts > 0 || was == StateStale && state != was:
		f.log.Info("feed recovered", "state", state, "attempts", attempts, "after", since.Round(time.Second), "position", f.at.Position)
	case was == StateStarting:
		f.log.Info("feed follows", "state", state, "position", f.at.Position)
	}
}

// What a person can do, by state. The status, the log and the README say the same.
const (
	adviceRetry       = "nothing yet: it is tried again; if it lasts, check the network, the API's status page and NATS"
	adviceRestarts    = "somebody or something ends the delta again and again: look for another program that follows this collection"
	adviceCircle      = "report it to the API's vendor: its pages lead in a circle or bring nothing new; the feed goes on by itself once they end"
	adviceCredentials = "check tenant, client id and client secret; a rotated secret file is read again at the next try"
	adviceSecret      = "correct the setting of the client secret's file, or the file: it must exist, be readable for the user that clockbridge runs as, and not be empty; then: clockbridge sync-now"
	adviceScope       = "ask the tenant's administrator to grant the client the scope %s"
	adviceFilter      = "correct the since date, filter or collection: see the API's reasons in the error"
	adviceNoFilter    = "the API may want a filter here: set filters (in the file, by collection) or PROTIME_FILTER; see the API's reasons in the error"
	adviceStream      = "correct the stream's configuration, or remove the stream if nobody needs it: the feed creates and fills it again"
	advicePermission  = "allow this NATS user to publish $JS.API.>, $JS.FC.>, $KV.CLOCKBRIDGE.> and the feed's subjects, and to subscribe _INBOX.>"
	adviceLease       = "nothing yet: another instance may have taken the feed over; if it lasts, check the network between this instance and NATS"
	adviceJetStream   = "switch JetStream on for this server and account"
	advicePaused      = "resume it: clockbridge resume"
	advicePausedUntil = "resume it: clockbridge resume; until %s it goes on with the same delta, later with a resync"
	adviceConflict    = "find the other writer (a second clockbridge, a publisher, a source) and stop it; remove its messages (nats stream rmm), then: clockbridge sync-now"
	adviceStale       = "the API reports only changes older than those published, as after a restored database: ask the vendor; clockbridge resync --trust-api takes the API's present state"
	adviceStore       = "free disk space or repair the disk of the data directory, then start again"
)
