package bridge

import (
	"context"
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
		if f.cfg.VerifyEvery > 0 {
			f.verifyEvery(ctx)
		}
	}()
	return func() {
		stopServing()
		cancel()
		<-done
	}
}

// verifyEvery verifies the feed now and then until ctx ends. It shares nothing with the feed but the API and the stream, and
// so delays it no more than any other reader would.
func (f *Feed) verifyEvery(ctx context.Context) {
	failures := 0 // in a row
	for wait := verifyFirst; sleep(ctx, min(wait, f.cfg.VerifyEvery)) == nil; {
		if s := f.Status(); !s.Ready() || s.Phase != OriginDelta {
			wait = verifyReady
			continue
		}
		r, err := Verify(ctx, VerifyConfig{
			Tenant: f.cfg.Tenant, Collection: f.cfg.Collection, Filter: f.cfg.Filter(time.Now().UTC()),
			Source: f.cfg.Source, NATS: f.cfg.NATS, Patience: f.cfg.VerifyPatience, Dir: f.cfg.VerifyDir,
		})
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			failures, wait = failures+1, verifyAgain
			f.unverified(err, failures, min(wait, f.cfg.VerifyEvery))
			continue
		}
		failures, wait = 0, f.cfg.VerifyEvery
		f.verified(r)
	}
}

// unverified shows that a verification came to no end.
func (f *Feed) unverified(err error, failures int, wait time.Duration) {
	f.status.verify(VerifyReport{At: time.Now().UTC(), Error: err.Error()})
	if sparse(failures) {
		f.log.Warn("stream not verified", "error", err.Error(), "attempts", failures, "next_try", wait, "do", adviceVerifyAgain)
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
