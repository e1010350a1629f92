package bridge

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Pauses of verifyEvery, where the setting is longer.
const (
	verifyFirst = 5 * time.Minute  // after the feed is taken up: a takeover is a good moment to look, and a process that is restarted every day must look too
	verifyAgain = 15 * time.Minute // after one that failed
	verifyReady = time.Minute      // while the feed has a listing to walk, or does not follow
)

// beside starts what goes on beside the feed while it is followed. The function that it returns ends it.
func (f *Feed) beside(ctx context.Context) (stop func()) {
	stopServing := f.serve()
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.verifyEvery(ctx)
	}()
	return func() {
		stopServing()
		cancel()
		<-done
	}
}

// askToVerify lets verifyEvery verify the feed at once, or once more when it is through with what it is at.
func (f *Feed) askToVerify() error {
	switch s := f.Status(); {
	case verifiable(s):
	case s.State == StateHealthy:
		return errors.New("the feed reads a listing: verify it when that has ended")
	default:
		return fmt.Errorf("the feed is %s: verify it when it is healthy", s.State)
	}
	select {
	case f.verifyNow <- struct{}{}:
	default:
	}
	return nil
}

// verifiable reports whether a feed has brought everything that a verification would miss.
func verifiable(s Status) bool { return s.State == StateHealthy && s.Phase == OriginDelta }

// verifyEvery verifies the feed now and then, and when it is asked to, until ctx ends. It shares nothing with the feed but the API
// and the stream, and so delays it no more than any other reader would.
func (f *Feed) verifyEvery(ctx context.Context) {
	failures := 0 // in a row
	for wait := verifyFirst; ; {
		asked, err := f.untilVerify(ctx, wait)
		if err != nil {
			return
		}
		if !asked && !verifiable(f.Status()) {
			wait = verifyReady
			continue
		}
		r, err := Verify(ctx, VerifyConfig{
			Tenant: f.cfg.Tenant, Collection: f.cfg.Collection, Filter: f.cfg.Filter(time.Now().UTC()),
			Source: f.cfg.Source, NATS: f.cfg.NATS, Patience: f.cfg.VerifyPatience, Dir: f.cfg.VerifyDir,
			Privacy: f.cfg.Privacy,
		})
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			failures, wait = failures+1, verifyAgain
			f.unverified(err, failures)
			continue
		}
		failures, wait = 0, f.cfg.VerifyEvery
		f.verified(r)
	}
}

// unverified shows that a verification came to no end.
func (f *Feed) unverified(err error, failures int) {
	f.status.verify(VerifyReport{At: time.Now().UTC(), Error: err.Error()})
	if !sparse(failures) {
		return
	}
	args := []any{"error", err.Error(), "attempts", failures}
	if f.cfg.VerifyEvery > 0 {
		args = append(args, "next_try", min(verifyAgain, f.cfg.VerifyEvery))
	}
	f.log.Warn("stream not verified", append(args, "do", adviceVerifyAgain)...)
}

// untilVerify waits for the next verification. It reports whether somebody asked for it.
func (f *Feed) untilVerify(ctx context.Context, wait time.Duration) (asked bool, err error) {
	wait = min(wait, f.cfg.VerifyEvery)
	if f.cfg.VerifyEvery == 0 {
		wait = forever
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false, ctx.Err()
	case <-f.verifyNow:
		return true, nil
	case <-timer.C:
		return false, nil
	}
}

// verified shows what a verification found.
func (f *Feed) verified(r VerifyReport) {
	f.status.verify(r)
	if r.Differs() {
		f.log.Warn("stream differs from the API", "missing", r.Missing, "stale", r.Stale, "phantom", r.Phantom, "ahead", r.Ahead,
			"unchecked", r.Unchecked, "records", r.Records, "do", fmt.Sprintf(adviceVerify, f.cfg.Tenant, f.cfg.Collection))
		return
	}
	f.log.Info("stream verified", "records", r.Records, "subjects", r.Subjects, "took", r.Took.Round(time.Millisecond))
}

const (
	adviceVerify      = "see each of them, and repair: clockbridge verify --repair --tenant %s --collections %s"
	adviceVerifyAgain = "nothing yet: it is tried again; if it lasts, look at what the error names"
)
