package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"clockbridge/store"
)

// leaseRecord is what the bucket holds of a feed: who follows it, and how far it has come, so that another process can go
// on from there with nothing but the stream.
type leaseRecord struct {
	Holder     string           `json:"holder"`          // id of a member of the fleet; "" = nobody
	Name       string           `json:"name"`            // of the holder, for people
	Since      time.Time        `json:"since"`           // when it became the holder
	Term       uint64           `json:"term"`            // counts holders
	Paused     time.Time        `json:"paused,omitzero"` // since when nobody is to follow the feed; zero = somebody is
	Checkpoint store.Checkpoint `json:"checkpoint"`
}

// memberRecord is what the bucket holds of a process that shares feeds. Each write is a heartbeat.
type memberRecord struct {
	Name      string        `json:"name"`
	Feeds     []string      `json:"feeds"`     // that it may follow
	Heartbeat time.Duration `json:"heartbeat"` // between two writes, in nanoseconds
	At        time.Time     `json:"at"`        // by the member's clock, for people
}

// Keys of the bucket.
const (
	memberPrefix = "member."
	leasePrefix  = "feed."
)

func leaseKey(feed string) string { return leasePrefix + strings.Replace(feed, "/", ".", 1) }

// leaseName is the feed of a key. Neither part of a feed's name has a dot.
func leaseName(key string) string {
	return strings.Replace(strings.TrimPrefix(key, leasePrefix), ".", "/", 1)
}

// Errors of a feed that may not act.
var (
	errLapsed = errors.New("the lease could not be renewed in time")
	errLost   = errors.New("the lease went to another process")
)

// lease is the right of one process to follow a feed, for as long as it is a member of the fleet and the record names it.
type lease struct {
	kv        jetstream.KeyValue
	key       string
	until     func() time.Time // the membership is safe until then
	heartbeat time.Duration

	writing sync.Mutex // held by one write of the record after the other

	mu        sync.Mutex
	record    leaseRecord
	revision  uint64
	saved     time.Time // when the record was last written
	lost      bool
	interrupt context.CancelFunc // of the Step in hand
}

// check reports whether the feed may act: ask the API for changes, and append. It may not from the moment on at which
// another process could have become the holder. A nil lease is that of a feed that nobody else follows.
func (l *lease) check() error {
	if l == nil {
		return nil
	}
	switch {
	case l.isLost():
		return errLost
	case !time.Now().Before(l.until()):
		return errLapsed
	}
	return nil
}

func (l *lease) isLost() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lost
}

// bound returns a context that ends when the lease lapses, unless it is renewed.
func (l *lease) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if l == nil {
		return ctx, func() {}
	}
	return context.WithDeadline(ctx, l.until())
}

// during returns a context that ends when the lease is lost, or lapses without having been renewed. It is for what may
// take longer than a lease lasts: finding a way to the API, and reading a page.
func (l *lease) during(ctx context.Context) (context.Context, context.CancelFunc) {
	if l == nil {
		return ctx, func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for l.check() == nil {
			select {
			case <-time.After(time.Until(l.until())):
			case <-ctx.Done():
				return
			}
		}
		cancel()
	}()
	return ctx, func() {
		cancel()
		<-done
	}
}

func (l *lease) term() uint64 {
	if l == nil {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.record.Term
}

// checkpoint is the record's: as the last holder left it, or as this one last saved it.
func (l *lease) checkpoint() store.Checkpoint {
	if l == nil {
		return store.Checkpoint{}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.record.Checkpoint
}

// due reports whether the record is older than a heartbeat.
func (l *lease) due() bool {
	if l == nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Since(l.saved) >= l.heartbeat
}

// lose takes in what the bucket holds at a revision. It reports whether the lease is lost by it.
func (l *lease) lose(now leaseRecord, revision uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if revision > l.revision && (now.Holder != l.record.Holder || now.Term != l.record.Term) {
		l.lost = true
	}
	return l.lost
}

// saveTimeout bounds one save: together with an append in front of it, and leaving behind it, it fits into the time that a graceful
// stop may take.
const saveTimeout = 2 * time.Second

// save puts a checkpoint into the record, if nobody else has written it. When it returns nil, whoever becomes the holder
// goes on from there.
func (l *lease) save(at store.Checkpoint) error {
	if l == nil {
		return nil
	}
	return l.write(func(r *leaseRecord) { r.Checkpoint = at })
}

// write changes the record, if nobody else has written it.
func (l *lease) write(change func(*leaseRecord)) error {
	l.writing.Lock()
	defer l.writing.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), saveTimeout) // like an append, it is not given up half-way
	defer cancel()
	l.mu.Lock() // not while an answer is waited for: check must know at any time
	next, revision, lost := l.record, l.revision, l.lost
	l.mu.Unlock()
	if lost {
		return errLost
	}
	change(&next)
	value, err := json.Marshal(next)
	if err != nil {
		return fmt.Errorf("encode lease: %w", err)
	}
	revision, err = l.kv.Update(ctx, l.key, value, revision)
	if errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
		// The answer to an earlier save may have been lost. Then the record is still this holder's, at another revision.
		if revision, err = l.present(ctx); err == nil {
			revision, err = l.kv.Update(ctx, l.key, value, revision)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.lost = l.lost || errors.Is(err, errLost)
		return fmt.Errorf("save lease %s: %w", l.key, err)
	}
	l.record, l.revision, l.saved = next, revision, time.Now()
	return nil
}

// present returns the record's revision, or errLost if it is not this holder's any more.
func (l *lease) present(ctx context.Context) (uint64, error) {
	entry, err := l.kv.Get(ctx, l.key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return 0, errLost
	}
	if err != nil {
		return 0, err
	}
	now := decodeLease(entry.Value())
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Holder != l.record.Holder || now.Term != l.record.Term {
		return 0, errLost
	}
	return entry.Revision(), nil
}

// decodeLease reads a record. One that cannot be read is one that nobody holds and that knows nothing: who becomes the
// holder goes by its own store and by the stream.
func decodeLease(value []byte) leaseRecord {
	var r leaseRecord
	if err := json.Unmarshal(value, &r); err != nil {
		return leaseRecord{}
	}
	return r
}

// decodeMember reads a member's key. A heartbeat that no program of ours has is none.
func decodeMember(value []byte) (memberRecord, bool) {
	var r memberRecord
	err := json.Unmarshal(value, &r)
	return r, err == nil && r.Heartbeat >= time.Millisecond && r.Heartbeat <= 24*time.Hour
}
