package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Bucket is the JetStream key-value bucket where the processes that share feeds meet.
const Bucket = "CLOCKBRIDGE"

// DefaultHeartbeat is the time between two signs of life of a process that shares feeds.
const DefaultHeartbeat = 5 * time.Second

// Of a heartbeat: how long a member may act behind the last one that was acknowledged, and after how long without one
// the others take it for dead. The first must be the smaller, and takeover is promised within three.
const (
	actTenths  = 20
	deadTenths = 25
	sendTenths = 5 // what a heartbeat may take
	tryTenths  = 2 // pause before one that failed is sent again
)

func tenths(heartbeat time.Duration, n int) time.Duration { return heartbeat * time.Duration(n) / 10 }

// MemberStore remembers as which member the process that had the store open last was known; *store.Store is one.
type MemberStore interface {
	SwapMember(id string) (previous string, err error)
}

// FleetConfig describes one process among those that share feeds.
type FleetConfig struct {
	NATS      *nats.Conn
	Store     MemberStore
	Name      string        // shown as the holder of its feeds; "" = host and process id
	Heartbeat time.Duration // 0 = DefaultHeartbeat
	Replicas  int           // of the bucket, if it is created; 0 = 1
	Logger    *slog.Logger  // nil = none
}

// Fleet shares feeds among processes: each feed is followed by one of them, which holds its lease, and the others stand
// by. They meet in a JetStream key-value bucket, where everything is written by compare-and-set:
//
//   - A key for each member, written anew at every heartbeat. Whoever sees one stand still for too long deletes it; the
//     member that sees its own deleted has no lease any more and joins again under another id.
//   - A key for each feed, its lease, which names the member that holds it and carries the checkpoint. A lease is free when it
//     names nobody, or nobody that is a member.
//
// Every member reckons from the same keys who is to hold what, gives away what it holds too much of, and takes what is
// free and its own. No clock is compared with another's: how long a key stood still is told by whoever looks at it.
type Fleet struct {
	cfg   FleetConfig
	js    jetstream.JetStream
	until atomic.Pointer[time.Time]

	want    atomic.Pointer[map[string]*Feed] // what Follow was given last, by name
	changed chan struct{}                    // holds one value when that is news
	feeds   map[string]*Feed                 // what is acted upon; owned by the goroutine of Run
}

// NewFleet checks cfg. It does not touch the network or the store.
func NewFleet(cfg FleetConfig) (*Fleet, error) {
	switch {
	case cfg.NATS == nil || cfg.Store == nil:
		return nil, errors.New("a fleet needs a NATS connection and a store")
	case cfg.Heartbeat < 0:
		return nil, fmt.Errorf("heartbeat %s: must not be negative", cfg.Heartbeat)
	}
	if cfg.Heartbeat == 0 {
		cfg.Heartbeat = DefaultHeartbeat
	}
	if cfg.Name == "" {
		host, err := os.Hostname()
		if err != nil {
			host = "unknown"
		}
		cfg.Name = fmt.Sprintf("%s:%d", host, os.Getpid())
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	js, err := jetstream.New(cfg.NATS)
	if err != nil {
		return nil, fmt.Errorf("open JetStream: %w", err)
	}
	f := &Fleet{cfg: cfg, js: js, changed: make(chan struct{}, 1)}
	f.safeUntil(time.Time{})
	return f, nil
}

// Follow replaces the feeds while Run runs. Those that are not given again are stopped, and their leases given back; those
// that are, being the same *Feed, are left alone.
func (f *Fleet) Follow(feeds []*Feed) {
	want := make(map[string]*Feed, len(feeds))
	for _, feed := range feeds {
		want[feed.name] = feed
		feed.recall()
	}
	f.want.Store(&want)
	select {
	case f.changed <- struct{}{}:
	default:
	}
}

func (f *Fleet) safeUntil(t time.Time) { f.until.Store(&t) }

// Run follows each of the feeds while this process holds its lease, until ctx ends, and then returns nil: every append in
// hand is finished, and every lease given back. It returns an error only when a store cannot be written.
func (f *Fleet) Run(ctx context.Context, feeds []*Feed) error {
	f.Follow(feeds)
	retry := newRetry()
	for {
		f.feeds = *f.want.Load()
		err := f.serve(ctx, retry.Reset)
		switch {
		case errors.Is(err, ErrStore):
			return err
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, errDead):
			f.cfg.Logger.Warn("taken for dead by the others, joining again", "do", adviceLease)
			continue
		}
		wait := min(retry.NextBackOff(), f.cfg.Heartbeat)
		for _, feed := range f.feeds {
			p := feed.plan(err, wait)
			feed.fail(p, err)
			wait = p.wait
		}
		select {
		case <-ctx.Done():
		case <-f.changed:
		case <-time.After(wait):
		}
	}
}

// errDead means that the others have deleted this member: its leases may be in other hands.
var errDead = errors.New("no heartbeat reached the others in time")

// serve is one membership, from joining to leaving.
func (f *Fleet) serve(ctx context.Context, joined func()) error {
	m, err := f.join(ctx)
	if err != nil {
		return fmt.Errorf("join the other instances in bucket %s: %w", Bucket, withPermission(f.cfg.NATS, err))
	}
	joined()
	err = m.stay(ctx)
	f.safeUntil(time.Time{})
	return errors.Join(err, m.leave())
}
