package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
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
	tryTenths  = 2 // pause before a heartbeat that failed is sent again
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
	feeds map[string]*Feed // by name
	until atomic.Pointer[time.Time]
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
	f := &Fleet{cfg: cfg, js: js}
	f.safeUntil(time.Time{})
	return f, nil
}

func (f *Fleet) safeUntil(t time.Time) { f.until.Store(&t) }

// Run follows each of the feeds while this process holds its lease, until ctx ends, and then returns nil: every append in
// hand is finished, and every lease given back. It returns an error only when a store cannot be written.
func (f *Fleet) Run(ctx context.Context, feeds []*Feed) error {
	f.feeds = make(map[string]*Feed, len(feeds))
	for _, feed := range feeds {
		f.feeds[feed.name] = feed
	}
	retry := newRetry()
	for {
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
		for _, feed := range feeds {
			p := feed.plan(err, wait)
			feed.fail(p, err)
			wait = p.wait
		}
		select {
		case <-ctx.Done():
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

// membership is a fleet's state from joining to leaving. It belongs to one goroutine.
type membership struct {
	*Fleet
	log *slog.Logger
	kv  jetstream.KeyValue
	id  string

	revision uint64    // of this member's key
	due      time.Time // when the next heartbeat is
	beaten   time.Time // when the last one that was acknowledged was sent

	watch   jetstream.KeyWatcher
	whole   bool      // the watch has shown all that there is
	echoed  time.Time // when it last showed this member's own key
	members map[string]seen[memberRecord]
	leases  map[string]seen[leaseRecord] // by feed

	held  map[string]*holding // by feed
	ended chan ended
}

// seen is a key as the watch showed it.
type seen[T any] struct {
	record   T
	revision uint64
	at       time.Time // when this revision was first seen here
}

// holding is a feed that is being followed here.
type holding struct {
	lease *lease
	stop  context.CancelFunc
}

type ended struct {
	feed string
	err  error
}

func (f *Fleet) join(ctx context.Context) (*membership, error) {
	if !f.cfg.NATS.IsConnected() {
		return nil, disconnected(f.cfg.NATS)
	}
	kv, err := f.js.KeyValue(ctx, Bucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		kv, err = f.js.CreateKeyValue(ctx, jetstream.KeyValueConfig{
			Bucket: Bucket, Description: "leases and checkpoints of clockbridge", History: 1, Storage: jetstream.FileStorage, Replicas: max(f.cfg.Replicas, 1),
		})
	}
	if err != nil {
		return nil, err
	}
	m := &membership{
		Fleet: f, kv: kv, id: nuid.Next(), held: map[string]*holding{}, ended: make(chan ended, len(f.feeds)),
		leases: map[string]seen[leaseRecord]{},
	}
	m.log = f.cfg.Logger.With("member", m.id)
	previous, err := f.cfg.Store.SwapMember(m.id)
	if err != nil {
		return nil, fmt.Errorf("%w: remember membership: %w", ErrStore, err)
	}
	if previous != "" {
		// It had this store open, so it has ended, and nobody needs to wait until it is missed.
		if err := kv.Delete(ctx, memberPrefix+previous); err != nil {
			return nil, err
		}
	}
	now := time.Now()
	if err := m.send(ctx); err != nil {
		return nil, err
	}
	m.alive(now)
	if err := m.look(ctx); err != nil {
		return nil, err
	}
	// Members that have left leave a marker behind each.
	if err := kv.PurgeDeletes(ctx, jetstream.DeleteMarkersOlderThan(time.Hour)); err != nil {
		m.log.Debug("markers of members that have left not removed", "error", err.Error())
	}
	return m, nil
}

// look begins to watch the bucket, or begins again.
func (m *membership) look(ctx context.Context) error {
	watch, err := m.kv.WatchAll(ctx)
	if err != nil {
		return err
	}
	if m.watch != nil {
		m.watch.Stop() //nolint:errcheck // it is of no use any more
	}
	m.watch, m.whole, m.echoed = watch, false, time.Now()
	before := m.members
	m.members = make(map[string]seen[memberRecord], len(before))
	for id, p := range before {
		p.record.Feeds = nil // not shown yet
		m.members[id] = p
	}
	return nil
}

// stay shares the feeds with the other members until ctx ends, this one is taken for dead, or something fails for good.
func (m *membership) stay(ctx context.Context) error {
	for {
		timer := time.NewTimer(time.Until(m.next()))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case entry, ok := <-m.watch.Updates():
			if !ok {
				if err := m.look(ctx); err != nil {
					return err
				}
				break
			}
			m.see(entry)
		case e := <-m.ended:
			if err := m.done(ctx, e); err != nil {
				return err
			}
		case <-timer.C:
		}
		timer.Stop()
		if err := m.beat(ctx); err != nil {
			return err
		}
		if time.Since(m.echoed) > tenths(m.cfg.Heartbeat, actTenths) && m.beaten.After(m.echoed) {
			// Heartbeats are acknowledged but not shown: what else is not?
			if err := m.look(ctx); err != nil {
				return err
			}
		}
		if m.whole && time.Now().Before(*m.until.Load()) {
			m.act(ctx)
		}
	}
}

// next is when there is something to do even if nothing happens.
func (m *membership) next() time.Time {
	next := m.due
	for id, p := range m.members {
		if dead := p.at.Add(tenths(p.record.Heartbeat, deadTenths)); id != m.id && dead.Before(next) {
			next = dead
		}
	}
	return next
}

// beat sends a heartbeat if one is due. One that fails is tried again soon; meanwhile the leases lapse.
func (m *membership) beat(ctx context.Context) error {
	now := time.Now()
	if now.Before(m.due) {
		return nil
	}
	err := m.send(ctx)
	switch {
	case errors.Is(err, errDead):
		return err
	case err != nil && time.Since(m.beaten) >= tenths(m.cfg.Heartbeat, deadTenths):
		return fmt.Errorf("heartbeat: %w", err)
	case err != nil:
		m.due = time.Now().Add(tenths(m.cfg.Heartbeat, tryTenths))
		return nil
	}
	if now.Sub(m.beaten) > tenths(m.cfg.Heartbeat, actTenths) {
		// What kept this heartbeat back may have kept back those of the others.
		for id, p := range m.members {
			p.at = now
			m.members[id] = p
		}
	}
	m.alive(now)
	return nil
}

// alive records that a heartbeat was acknowledged, and when it was sent.
func (m *membership) alive(sent time.Time) {
	m.beaten, m.due = sent, sent.Add(m.cfg.Heartbeat)
	m.safeUntil(sent.Add(tenths(m.cfg.Heartbeat, actTenths)))
}

// send writes this member's key.
func (m *membership) send(ctx context.Context) error {
	value, err := json.Marshal(memberRecord{Name: m.cfg.Name, Feeds: slices.Sorted(maps.Keys(m.feeds)), Heartbeat: m.cfg.Heartbeat, At: time.Now().UTC()})
	if err != nil {
		return fmt.Errorf("encode heartbeat: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Heartbeat)
	defer cancel()
	revision, err := m.kv.Update(ctx, memberPrefix+m.id, value, m.revision)
	if errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
		// Either the others have deleted the key, or an earlier heartbeat has arrived and its answer was lost.
		entry, gerr := m.kv.Get(ctx, memberPrefix+m.id)
		switch {
		case errors.Is(gerr, jetstream.ErrKeyNotFound):
			return errDead
		case gerr != nil:
			return gerr
		}
		revision, err = m.kv.Update(ctx, memberPrefix+m.id, value, entry.Revision())
	}
	if err == nil {
		m.revision = revision
	}
	return err
}

// see takes in what the watch shows.
func (m *membership) see(entry jetstream.KeyValueEntry) {
	if entry == nil {
		m.whole = true
		maps.DeleteFunc(m.members, func(_ string, p seen[memberRecord]) bool { return p.record.Feeds == nil })
		return
	}
	now := time.Now()
	if id, ok := strings.CutPrefix(entry.Key(), memberPrefix); ok {
		if id == m.id {
			m.echoed = now
		}
		record, ok := decodeMember(entry.Value())
		if entry.Operation() != jetstream.KeyValuePut || !ok {
			delete(m.members, id)
			return
		}
		if was := m.members[id]; was.revision == entry.Revision() {
			now = was.at
		}
		m.members[id] = seen[memberRecord]{record, entry.Revision(), now}
		return
	}
	for name := range m.feeds {
		if leaseKey(name) != entry.Key() {
			continue
		}
		var record leaseRecord
		if entry.Operation() == jetstream.KeyValuePut {
			record = decodeLease(entry.Value())
		}
		m.leases[name] = seen[leaseRecord]{record, entry.Revision(), now}
		if h := m.held[name]; h != nil && h.lease.lose(record, entry.Revision()) {
			h.stop()
		}
	}
}

// act buries the dead, gives away what is too much, and takes what is free.
func (m *membership) act(ctx context.Context) {
	for id, p := range m.members {
		if id != m.id && time.Since(p.at) >= tenths(p.record.Heartbeat, deadTenths) {
			m.bury(ctx, id, p)
		}
	}
	members, holders := map[string][]string{}, map[string]string{}
	for id, p := range m.members {
		members[id] = p.record.Feeds
	}
	members[m.id] = slices.Collect(maps.Keys(m.feeds)) // the watch may not have shown it yet
	for name, l := range m.leases {
		holders[name] = l.record.Holder
	}
	to := share(members, holders)
	for name, feed := range m.feeds {
		h, holder := m.held[name], holders[name]
		if _, alive := members[holder]; !alive {
			holder = ""
		}
		switch {
		case h != nil && to[name] != m.id:
			h.stop()
		case h != nil:
		case holder != "" && holder != m.id:
			feed.standBy(m.leases[name].record.Name)
		case to[name] == m.id:
			m.take(ctx, name)
		case holder == m.id:
			m.giveUp(ctx, name) // what done could not
		}
	}
}

// bury deletes a member that gave no sign of life. If it gave one after all, its key is at another revision.
func (m *membership) bury(ctx context.Context, id string, p seen[memberRecord]) {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Heartbeat)
	defer cancel()
	if err := m.kv.Delete(ctx, memberPrefix+id, jetstream.LastRevision(p.revision)); err != nil {
		p.at = time.Now() // it lives, or it is tried again later
		m.members[id] = p
		return
	}
	delete(m.members, id)
	m.log.Warn("another instance gave no sign of life, its feeds are taken over", "instance", p.record.Name, "for", time.Since(p.at).Round(time.Millisecond))
}

// take makes this member the holder of a free feed, unless another was quicker, and follows it.
func (m *membership) take(ctx context.Context, name string) {
	feed, was := m.feeds[name], m.leases[name]
	own, err := feed.cfg.Store.Checkpoint(name)
	if err != nil {
		own.Term = 0 // the feed itself will say what is wrong with the store
	}
	record := leaseRecord{
		Holder: m.id, Name: m.cfg.Name, Since: time.Now().UTC(),
		Term: max(was.record.Term, was.record.Checkpoint.Term, own.Term) + 1, Checkpoint: was.record.Checkpoint,
	}
	revision, err := m.write(ctx, name, record, was.revision)
	if err != nil {
		if !errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
			m.due = time.Now() // look whether the bucket can be written at all
			m.log.Warn("lease not taken", "feed", name, "error", err.Error())
		}
		return
	}
	m.log.Info("lease taken", "feed", name, "term", record.Term, "position", record.Checkpoint.Position, "before", was.record.Name)
	l := &lease{kv: m.kv, key: leaseKey(name), until: func() time.Time { return *m.until.Load() }, record: record, revision: revision, heartbeat: m.cfg.Heartbeat}
	following, stop := context.WithCancel(ctx)
	m.held[name] = &holding{l, stop}
	go func() {
		m.ended <- ended{name, feed.hold(following, l)}
	}()
}

func (m *membership) write(ctx context.Context, name string, record leaseRecord, revision uint64) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Heartbeat)
	defer cancel()
	value, err := json.Marshal(record)
	if err != nil {
		return 0, fmt.Errorf("encode lease: %w", err)
	}
	revision, err = m.kv.Update(ctx, leaseKey(name), value, revision)
	if err == nil {
		m.leases[name] = seen[leaseRecord]{record, revision, time.Now()}
	}
	return revision, err
}

// done gives back the lease of a feed that is not followed any more.
func (m *membership) done(ctx context.Context, e ended) error {
	h := m.held[e.feed]
	delete(m.held, e.feed)
	h.stop()
	if e.err == nil {
		m.feeds[e.feed].standBy("")
	}
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Heartbeat)
	defer cancel()
	switch err := h.lease.release(ctx); {
	case err == nil:
		m.leases[e.feed] = seen[leaseRecord]{h.lease.record, h.lease.revision, time.Now()}
		m.log.Info("lease given back", "feed", e.feed)
	case errors.Is(err, errLost):
		m.log.Warn("lease lost", "feed", e.feed)
	default:
		m.log.Warn("lease not given back", "feed", e.feed, "error", err.Error())
	}
	return e.err
}

// giveUp gives back a lease that this member holds without following its feed.
func (m *membership) giveUp(ctx context.Context, name string) {
	was := m.leases[name]
	was.record.Holder, was.record.Name = "", ""
	if _, err := m.write(ctx, name, was.record, was.revision); err != nil {
		m.log.Warn("lease not given back", "feed", name, "error", err.Error())
	}
}

// leaveTimeout is how long giving back all leases may take: it fits into the time that a graceful stop may take.
const leaveTimeout = 2 * time.Second

// leave stops every feed, gives back what is held, and takes this member off the list.
func (m *membership) leave() error {
	m.watch.Stop() //nolint:errcheck // it is of no use any more
	for _, h := range m.held {
		h.stop()
	}
	all := make([]ended, 0, len(m.held))
	for range m.held {
		all = append(all, <-m.ended)
	}
	ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
	defer cancel()
	var errs []error
	for _, e := range all {
		errs = append(errs, m.done(ctx, e))
	}
	if err := m.kv.Delete(ctx, memberPrefix+m.id, jetstream.LastRevision(m.revision)); err != nil {
		m.log.Debug("not taken off the list", "error", err.Error())
	}
	return errors.Join(errs...)
}
