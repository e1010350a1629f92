package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
)

// membership is a fleet's state from joining to leaving. It belongs to one goroutine.
type membership struct {
	*Fleet
	log    *slog.Logger
	kv     jetstream.KeyValue
	bucket jetstream.Stream // that kv is made of
	id     string

	revision uint64    // of this member's key
	due      time.Time // when the next heartbeat is
	beaten   time.Time // when the last one that was acknowledged was sent

	watch      jetstream.KeyWatcher
	whole      bool      // the watch has shown all that there is
	reconnects uint64    // of the connection, when it began
	echoed     time.Time // when it last showed this member's own key
	buried     bool      // it showed that the others have deleted it
	members    map[string]seen[memberRecord]
	leases     map[string]seen[leaseRecord] // by key, also of feeds that only others follow

	held     map[string]*holding // by feed
	troubles map[string]int      // failures in a row to write a feed's lease
	ended    chan ended
}

// seen is a key as the watch showed it.
type seen[T any] struct {
	record   T
	revision uint64
	at       time.Time // when this revision was first seen here
}

// holding is a feed that is being followed here.
type holding struct {
	feed  *Feed
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
	bucket, err := f.js.Stream(ctx, "KV_"+Bucket)
	if err != nil {
		return nil, err
	}
	if age := bucket.CachedInfo().Config.MaxAge; age != 0 { // a lease carries the checkpoint
		return nil, &StreamError{Stream: "KV_" + Bucket, Problems: []string{fmt.Sprintf("max_age is %s, must be absent", age)}}
	}
	m := &membership{
		Fleet: f, kv: kv, bucket: bucket, id: nuid.Next(), held: map[string]*holding{}, troubles: map[string]int{}, ended: make(chan ended, len(f.feeds)),
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
	reconnects := m.cfg.NATS.Stats().Reconnects
	watch, err := m.kv.WatchAll(ctx)
	if err != nil {
		return err
	}
	if m.watch != nil {
		m.watch.Stop() //nolint:errcheck // it is of no use any more
	}
	m.watch, m.whole, m.echoed, m.reconnects = watch, false, time.Now(), reconnects
	m.leases = map[string]seen[leaseRecord]{}
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
			if m.see(entry); m.buried {
				timer.Stop()
				return errDead
			}
		case e := <-m.ended:
			feed := m.done(e)
			if e.err != nil {
				return e.err
			}
			feed.standBy("")
		case <-m.changed:
			m.feeds, m.due = *m.want.Load(), time.Now() // the others are to know at once
		case <-timer.C:
		}
		timer.Stop()
		if err := m.beat(ctx); err != nil {
			return err
		}
		unseen := time.Since(m.echoed) > tenths(m.cfg.Heartbeat, actTenths) && m.beaten.After(m.echoed)
		if unseen || m.cfg.NATS.Stats().Reconnects != m.reconnects {
			// Heartbeats are acknowledged but not shown: what else is not? And a bucket that was put back from a backup
			// while the connection was lost has positions again that the watch believes to have shown.
			if err := m.look(ctx); err != nil {
				return err
			}
		}
		if m.mayAct() {
			m.act(ctx)
		}
	}
}

// mayAct reports whether this member knows all the others and is none that they may take for dead.
func (m *membership) mayAct() bool { return m.whole && time.Now().Before(*m.until.Load()) }

// next is when there is something to do even if nothing happens. A member that may not act has its own heartbeat to send
// and nothing else, also if the others are overdue.
func (m *membership) next() time.Time {
	next := m.due
	if !m.mayAct() {
		return next
	}
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
	ctx, cancel := context.WithTimeout(ctx, tenths(m.cfg.Heartbeat, sendTenths))
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
			m.buried = m.buried || id == m.id && entry.Operation() != jetstream.KeyValuePut
			return
		}
		// A bucket that was put back from a backup counts its revisions a second time.
		if was := m.members[id]; was.revision == entry.Revision() && was.record.At.Equal(record.At) {
			now = was.at
		}
		m.members[id] = seen[memberRecord]{record, entry.Revision(), now}
		return
	}
	var record leaseRecord
	if entry.Operation() == jetstream.KeyValuePut {
		record = decodeLease(entry.Value())
	}
	m.leases[entry.Key()] = seen[leaseRecord]{record, entry.Revision(), now}
	for name, h := range m.held {
		if leaseKey(name) == entry.Key() && h.lease.lose(record, entry.Revision()) {
			m.log.Warn("lease lost", "feed", name, "holder", record.Name)
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
	holders, to := m.reckon()
	for name, feed := range m.feeds {
		h, holder := m.held[name], holders[name]
		switch {
		case h != nil && (to[name] != m.id || h.feed != feed || h.lease.isLost()):
			h.stop()
		case h != nil:
		case holder != "" && holder != m.id:
			feed.standBy(m.leases[leaseKey(name)].record.Name)
		case to[name] == m.id:
			m.take(ctx, name)
		case holder == m.id:
			m.giveBack(ctx, name)
		}
	}
	for name, h := range m.held {
		if m.feeds[name] == nil {
			h.stop()
		}
	}
	for key, l := range m.leases {
		if name := leaseName(key); l.record.Holder == m.id && m.feeds[name] == nil && m.held[name] == nil {
			m.giveBack(ctx, name)
		}
	}
}

// reckon says who holds each feed of any member, and who is to.
func (m *membership) reckon() (holders, to map[string]string) {
	members := map[string][]string{}
	for id, p := range m.members {
		members[id] = p.record.Feeds
	}
	members[m.id] = slices.Sorted(maps.Keys(m.feeds)) // the watch may not have shown it yet
	holders = map[string]string{}
	for _, feeds := range members {
		for _, name := range feeds {
			if id := m.leases[leaseKey(name)].record.Holder; members[id] != nil {
				holders[name] = id
			}
		}
	}
	return holders, share(members, holders)
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
	feed, was := m.feeds[name], m.leases[leaseKey(name)]
	if alive, err := m.ask(ctx, was.record.Holder); err != nil || alive {
		if err != nil {
			m.log.Warn("lease not taken", "feed", name, "error", err.Error())
		}
		m.again()
		return
	}
	own, err := feed.cfg.Store.Checkpoint(name)
	if err != nil {
		own.Term = 0 // the feed itself will say what is wrong with the store
	}
	record := leaseRecord{
		Holder: m.id, Name: m.cfg.Name, Since: time.Now().UTC(),
		Term: max(was.record.Term, was.record.Checkpoint.Term, own.Term) + 1, Checkpoint: was.record.Checkpoint,
		Paused: was.record.Paused,
	}
	revision, err := m.write(ctx, name, record, was.revision)
	if err != nil {
		level, attempts := m.trouble(name, err)
		m.log.Log(ctx, level, "lease not taken", "feed", name, "error", err.Error(), "attempts", attempts)
		return
	}
	delete(m.troubles, name)
	m.log.Info("lease taken", "feed", name, "term", record.Term, "position", record.Checkpoint.Position, "before", was.record.Name)
	l := &lease{kv: m.kv, key: leaseKey(name), until: func() time.Time { return *m.until.Load() }, record: record, revision: revision, heartbeat: m.cfg.Heartbeat}
	following, stop := context.WithCancel(ctx)
	m.held[name] = &holding{feed, l, stop}
	go func() {
		m.ended <- ended{name, feed.hold(following, l)}
	}()
}

// memberRE is what an id of a member looks like; a lease that names something else was written by hand.
var memberRE = regexp.MustCompile(`^[0-9A-Za-z-]+$`)

// ask asks the bucket's leader whether the holder of a lease is a member. The watch may not have shown it: it counts what it shows,
// and where keys are written meanwhile, it says too early that it has shown all that there is.
func (m *membership) ask(ctx context.Context, id string) (alive bool, err error) {
	if id == m.id || !memberRE.MatchString(id) {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Heartbeat)
	defer cancel()
	last, err := askLeader(ctx, m.cfg.NATS, "KV_"+Bucket, `{"last_by_subj":"$KV.`+Bucket+"."+memberPrefix+id+`"}`)
	if err != nil {
		return false, fmt.Errorf("ask for member %s: %w", id, err)
	}
	if last == nil {
		return false, nil
	}
	record, alive := decodeMember(last.Data) // a key that was deleted has no data
	if alive {
		m.members[id] = seen[memberRecord]{record, last.Seq, time.Now()}
	}
	return alive, nil
}

func (m *membership) write(ctx context.Context, name string, record leaseRecord, revision uint64) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Heartbeat)
	defer cancel()
	value, err := json.Marshal(record)
	if err != nil {
		return 0, fmt.Errorf("encode lease: %w", err)
	}
	key := leaseKey(name)
	revision, err = m.kv.Update(ctx, key, value, revision)
	switch {
	case err == nil:
		m.leases[key] = seen[leaseRecord]{record, revision, time.Now()}
		return revision, nil
	case errors.Is(err, jetstream.ErrKeyRevisionMismatch):
		// The watch is about to show what is there, unless it is nothing: a key that was purged it does not show.
		if _, gerr := m.bucket.GetLastMsgForSubject(ctx, "$KV."+Bucket+"."+key); errors.Is(gerr, jetstream.ErrMsgNotFound) {
			delete(m.leases, key)
		}
	}
	m.again()
	return 0, err
}

// trouble counts a lease that could not be written, and says how loud to be about it: it is tried again soon, and that
// somebody else was quicker is no trouble.
func (m *membership) trouble(feed string, err error) (level slog.Level, attempts int) {
	if errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
		return slog.LevelDebug, m.troubles[feed]
	}
	m.troubles[feed]++
	if !sparse(m.troubles[feed]) {
		return slog.LevelDebug, m.troubles[feed]
	}
	return slog.LevelWarn, m.troubles[feed]
}

// done records that a feed is not followed here any more, and returns it.
func (m *membership) done(e ended) *Feed {
	h := m.held[e.feed]
	h.stop()
	delete(m.held, e.feed)
	return h.feed
}

// giveBack names nobody as the holder of a feed. It is not tried while the watch has yet to show what was saved last.
func (m *membership) giveBack(ctx context.Context, name string) {
	was := m.leases[leaseKey(name)]
	was.record.Holder, was.record.Name = "", ""
	if _, err := m.write(ctx, name, was.record, was.revision); err != nil {
		level, attempts := m.trouble(name, err)
		m.log.Log(ctx, level, "lease not given back", "feed", name, "error", err.Error(), "attempts", attempts)
		return
	}
	delete(m.troubles, name)
	m.log.Info("lease given back", "feed", name)
}

// again brings the next heartbeat forward, since something else could not be written.
func (m *membership) again() {
	if soon := time.Now().Add(tenths(m.cfg.Heartbeat, tryTenths)); soon.Before(m.due) {
		m.due = soon
	}
}

// leaveTimeout is how long it may take to be taken off the list: it fits into the time that a graceful stop may take.
const leaveTimeout = 2 * time.Second

// leave stops every feed, and then takes this member off the list, which frees its leases.
func (m *membership) leave() error {
	m.watch.Stop() //nolint:errcheck // it is of no use any more
	for _, h := range m.held {
		h.stop()
	}
	var errs []error
	for len(m.held) > 0 {
		e := <-m.ended
		m.done(e)
		errs = append(errs, e.err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
	defer cancel()
	if err := m.kv.Delete(ctx, memberPrefix+m.id); err != nil {
		m.log.Debug("not taken off the list", "error", err.Error())
	}
	return errors.Join(errs...)
}
