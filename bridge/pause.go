package bridge

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Errors of requests to a feed that is paused, or cannot be.
var (
	errPaused   = errors.New("the feed is paused: resume it first")
	errUnleased = errors.New("the feed is followed without a lease, which would carry the pause to the next start")
)

// pause lets nobody follow the feed from since on, across restarts and takeovers, or lets them again if that is zero. When it
// returns nil, whoever becomes the holder knows. The Step in hand is interrupted; an append of it is finished.
func (l *lease) pause(since time.Time) error {
	if l == nil {
		return errUnleased
	}
	err := l.write(func(r *leaseRecord) {
		if since.IsZero() || r.Paused.IsZero() {
			r.Paused = since
		}
	})
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.interrupt != nil && !l.record.Paused.IsZero() {
		l.interrupt()
	}
	return nil
}

// paused returns since when nobody is to follow the feed, the zero time if somebody is.
func (l *lease) paused() time.Time {
	if l == nil {
		return time.Time{}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.record.Paused
}

// working returns a context for one Step: it ends when the feed is paused.
func (l *lease) working(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	if l == nil {
		return ctx, cancel
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.interrupt = cancel
	if !l.record.Paused.IsZero() {
		cancel()
	}
	return ctx, cancel
}

// standStill waits while the feed is paused: it is held, and neither asks the API for changes nor appends any. It reports whether to go on.
func (f *Feed) standStill(ctx context.Context) bool {
	for paused := false; ; paused = true {
		since := f.lease.paused()
		switch {
		case ctx.Err() != nil:
			return false
		case since.IsZero():
			if paused {
				f.status.resumed()
				f.log.Info("feed resumed", "position", f.Status().Position)
			}
			return true
		}
		f.handOver()
		f.showPause(since)
		f.wait(ctx, forever)
	}
}

// handOver puts the checkpoint into the lease's record, which a walk does only now and then: a pause may end in other hands.
func (f *Feed) handOver() {
	if !f.sound || !f.at.Newer(f.lease.checkpoint()) {
		return
	}
	if err := f.lease.save(f.at); err != nil {
		f.sound = false // what the record holds now is to be found out first
		f.log.Debug("checkpoint not handed over", "error", err.Error())
	}
}

func (f *Feed) showPause(since time.Time) {
	if at := f.lease.checkpoint(); at.Newer(f.at) {
		f.status.moved(at, nil) // a new holder has not looked at the stream
	}
	advice, expires := advicePaused, f.expires(f.lease)
	if !expires.IsZero() {
		advice = fmt.Sprintf(advicePausedUntil, expires.Format(time.RFC3339))
	}
	if f.status.paused(since, advice) {
		f.log.Warn("feed paused", "state", StatePaused, "since", since, "do", advice)
	}
}

// expires returns until when a feed that asks for nothing can go on with its delta, the zero time if it has none or nobody knows.
func (f *Feed) expires(l *lease) time.Time {
	at := l.checkpoint()
	if at.Cursor == "" {
		return time.Time{}
	}
	last := f.Status().FetchedAt
	if at.Answered.After(last) {
		last = at.Answered
	}
	if last.IsZero() {
		return time.Time{}
	}
	return last.Add(DeltaLife).Truncate(time.Second)
}
