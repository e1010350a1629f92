package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/trace"

	"clockbridge/protime"
	"clockbridge/store"
)

// Source is the API of one tenant; *protime.Client is one.
type Source interface {
	// DeltaStart returns the cursor that starts a delta; Fetch gets any cursor.
	DeltaStart(collection, filter string) string
	Fetch(ctx context.Context, cursor string) (*protime.Page, error)
	Lister
	CollectionURL(collection string) string
}

// Store holds checkpoint and index of every feed; *store.Store is one.
type Store interface {
	Checkpoint(feed string) (store.Checkpoint, error)
	Lookup(feed string, ids []string) ([]store.Entry, error)
	Select(feed, after string, limit int, match func(store.Entry) bool) ([]store.Entry, error)
	Commit(feed string, from, to store.Checkpoint, entries []store.Entry) error
	Reset(feed string) error
}

// Config describes one feed.
type Config struct {
	Tenant     string // lower-case letters, digits and `-`
	Collection string // likewise
	// Filter returns the filter of a delta that starts now. It is reckoned anew at each walk, so that a window such as
	// "since last year" moves on. Nil or "" = no filter.
	Filter         func(now time.Time) string
	Source         Source
	Store          Store
	NATS           *nats.Conn
	PollInterval   time.Duration // pause between polls of the deltaLink; 0 = 30 s
	Replicas       int           // of a stream that is created; 0 = 1
	Limits         Limits        // likewise; an existing one is compared with them
	VerifyEvery    time.Duration // pause between two verifications of the stream while the feed is followed; 0 = never
	VerifyPatience time.Duration // of those; 0 = two poll intervals, but at least DefaultPatience
	VerifyDir      string        // for their temporary files; "" = the system's directory for such files
	Privacy        *Privacy      // what is dropped or hashed of the data of records; nil = nothing
	KeepData       bool          // Recent shows the data of records, which is personal
	Logger         *slog.Logger  // nil = none
	Metrics        *Metrics      // of this feed; nil = some of its own. Whoever makes Source has it count its requests there
	Tracer         trace.Tracer  // nil = none
}

// DefaultPollInterval is the pause between two polls of a deltaLink.
const DefaultPollInterval = 30 * time.Second

var nameRE = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)

// Feed follows one collection of one tenant. Step and Run are for one goroutine; the other methods for any.
type Feed struct {
	cfg    Config
	name   string // "<tenant>/<collection>", the key in the store
	log    *slog.Logger
	stream *stream
	out    appendLog
	status *status
	recent recent

	// Owned by the goroutine that calls Step.
	lease      *lease           // nil = nobody else follows the feed
	at         store.Checkpoint // what is durable: in the store, or, of an idle poll, in the lease's record
	stored     store.Checkpoint // what the store holds
	sound      bool             // stream, checkpoint and index are known to agree
	unheard    uint64           // first position of an append that failed, while nobody knows what it stored; 0 = none
	reconnects uint64           // of the connection, when they were compared
	careful    bool             // an append has failed since a Step last ended well
	purged     uint64           // first position, when that was last reported
	unlike     string           // how the stream's limits differ, when that was last reported
	hole       uint64           // position at the stream's end whose message is known to be gone
	refusals   int              // of the present cursor in a row
	restarts   int              // of the delta since a Step last ended well
	trail      protime.Trail    // of the nextLinks that were followed up to trod
	trod       string           // cursor that this feed itself came to
	barren     int              // pages in a row that brought nothing new
	rest       string           // cursor at which a Step last ended well
	whole      bool             // the pass in hand began there, or with a walk; what went before is known otherwise

	wanted     []string // ids of a repair in hand
	forgetting forgetting
	trace      tracing

	resync  atomic.Pointer[resyncRequest]
	repairs chan []string // ids that Repair was called with
	wake    chan struct{} // holds one value when Run is to call Step at once

	verifyNow chan struct{} // holds one value when the stream is to be verified at once
}

// appendLog is the writing end of the stream. It is an interface so that tests can lose an append or its answer.
type appendLog interface {
	Append(ctx context.Context, msgs []message, at uint64) (uint64, error)
	reset(batches, limited bool) error
	close()
}

// Errors that only a person can end.
var (
	// ErrStore means that the store could not be written: disk may hold either checkpoint, so the process must end,
	// and its next start reads which.
	ErrStore = errors.New("store cannot be written")
	// ErrConflict means that somebody else writes the feed's stream or store.
	ErrConflict = errors.New("conflict: the feed is not the only writer")
)

// NewFeed checks cfg and returns its feed. It does not touch the network or the store.
func NewFeed(cfg Config) (*Feed, error) {
	switch {
	case !nameRE.MatchString(cfg.Tenant):
		return nil, fmt.Errorf("tenant %q: must be lower-case letters, digits and '-'", cfg.Tenant)
	case !nameRE.MatchString(cfg.Collection):
		return nil, fmt.Errorf("collection %q: must be lower-case letters, digits and '-'", cfg.Collection)
	case cfg.Source == nil || cfg.Store == nil || cfg.NATS == nil:
		return nil, errors.New("a feed needs a source, a store and a NATS connection")
	case cfg.PollInterval < 0:
		return nil, fmt.Errorf("poll interval %s: must not be negative", cfg.PollInterval)
	case cfg.VerifyEvery < 0 || cfg.VerifyPatience < 0:
		return nil, fmt.Errorf("verify every %s with a patience of %s: must not be negative", cfg.VerifyEvery, cfg.VerifyPatience)
	}
	if err := cfg.Limits.Check(); err != nil {
		return nil, err
	}
	if cfg.PollInterval == 0 {
		cfg.PollInterval = DefaultPollInterval
	}
	if cfg.VerifyPatience == 0 {
		cfg.VerifyPatience = max(2*cfg.PollInterval, DefaultPatience)
	}
	if cfg.Filter == nil {
		cfg.Filter = func(time.Time) string { return "" }
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Metrics == nil {
		cfg.Metrics = NewMetrics(cfg.Tenant, cfg.Collection)
	}
	js, err := jetstream.New(cfg.NATS)
	if err != nil {
		return nil, fmt.Errorf("open JetStream: %w", err)
	}
	codec := newCodec(cfg.Tenant, cfg.Collection, cfg.Source.CollectionURL(cfg.Collection))
	f := &Feed{
		cfg:     cfg,
		name:    cfg.Tenant + "/" + cfg.Collection,
		log:     cfg.Logger.With("tenant", cfg.Tenant, "collection", cfg.Collection),
		stream:  &stream{nc: cfg.NATS, js: js, name: StreamName(cfg.Tenant, cfg.Collection), codec: codec, replicas: cfg.Replicas, limits: cfg.Limits},
		out:     &appender{nc: cfg.NATS, codec: codec},
		repairs: make(chan []string, repairsAtOnce),
		wake:    make(chan struct{}, 1),

		verifyNow: make(chan struct{}, 1),
	}
	f.status = newStatus(cfg, f.stream.name)
	f.trace = newTracing(cfg)
	f.recent.keepData = cfg.KeepData
	return f, nil
}

// Resync asks for a new delta from step one, which publishes only what differs from the index. With trustAPI the API's
// present state counts as newer than everything in the index: the way on after the vendor has restored a database,
// when changeVersions went backwards.
func (f *Feed) Resync(trustAPI bool) {
	f.resync.Store(&resyncRequest{trustAPI})
	f.Sync()
}

// Sync ends the pause that Run is in, if it is in one: the next Step comes at once.
func (f *Feed) Sync() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// Status returns what the feed is doing.
func (f *Feed) Status() Status { return f.status.snapshot() }

// Recent returns what the feed has stored lately.
func (f *Feed) Recent() Recent { return f.recent.snapshot(time.Now()) }

// Step is one complete pass: it makes sure that stream, checkpoint and index agree, erases whom it is to forget, follows the feed
// to its newest deltaLink, and asks for the records that no page will bring. Any error leaves the feed such that the next Step goes on
// from what is stored.
func (f *Feed) Step(ctx context.Context) error {
	if err := f.catchUp(ctx); err != nil {
		return err
	}
	if err := f.forget(ctx); err != nil {
		return err
	}
	f.whole = f.whole || f.at.Cursor == f.rest
	for {
		if err := f.begin(); err != nil {
			return err
		}
		if more, err := f.follow(ctx); err != nil {
			return err
		} else if more {
			continue
		}
		if err := f.heal(ctx); err != nil {
			return err
		}
		if f.at.Cursor != "" {
			f.status.passed(f.whole)
			f.rest, f.whole, f.careful = f.at.Cursor, false, false
			return nil
		}
	}
}

// follow is the round of the engine, once for every run of changes: those of a walk, or of one page of a delta. It
// reports whether there is more to follow at once, as behind a walk: what changed meanwhile comes before heal, since the
// API reports a recent Delete with its own changeVersion.
func (f *Feed) follow(ctx context.Context) (more bool, err error) {
	defer func() { f.trace.end(f.at.Position, err) }()
	walk := f.at.Origin != OriginDelta
	for run, err := range f.fetch(ctx) {
		if err != nil {
			return false, err
		}
		fresh, seen, err := f.fresh(run.changes, f.at.Origin)
		if err != nil {
			return false, err
		}
		position, err := f.append(ctx, fresh)
		if err != nil {
			return false, err
		}
		if err := f.commit(f.moved(run, position), fresh, seen); err != nil {
			return false, err
		}
		if err := f.tread(run, len(fresh)+len(seen) > 0); err != nil {
			return false, err
		}
		more = walk || !run.latest
	}
	return more, nil
}

// append puts fresh into the stream behind the checkpoint's position, and tells fresh where each message went.
func (f *Feed) append(ctx context.Context, fresh []message) (uint64, error) {
	// An append in hand is finished even when the feed is told to stop.
	began := time.Now()
	ctx, cancel := f.lease.bound(context.WithoutCancel(ctx))
	defer cancel()
	err := errors.Join(f.lease.check(), f.reconnected())
	position := f.at.Position
	if err == nil && len(fresh) > 0 {
		span := f.trace.append(len(fresh), position+uint64(len(fresh)))
		position, err = f.out.Append(trace.ContextWithSpan(ctx, span), fresh, position)
		finish(span, err)
	}
	if err == nil {
		// Behind a hole that a reconnect hid, a message is accepted too; the checkpoint must not move past the hole.
		err = f.reconnected()
	}
	if err != nil {
		// Some, all or none of it may be stored; what is stored is true and in order. Nothing is recorded here:
		// catchUp reads what the stream holds before anything is sent again.
		f.sound, f.careful, f.unheard = false, true, f.at.Position+1
		return 0, fmt.Errorf("append to %s: %w", f.stream.name, err)
	}
	for i := range fresh {
		fresh[i].Position = f.at.Position + uint64(i) + 1
	}
	if len(fresh) > 0 {
		f.cfg.Metrics.appended(fresh, time.Since(began))
	}
	return position, nil
}

// reconnected reports a reconnect since stream and index were compared: the server may have lost messages meanwhile.
func (f *Feed) reconnected() error {
	if f.cfg.NATS.Stats().Reconnects != f.reconnects {
		return errReconnected
	}
	return nil
}

// commit records what the stream has acknowledged: the checkpoint moves to `to`, the index takes the new messages and
// the entries that were seen unchanged.
func (f *Feed) commit(to store.Checkpoint, fresh []message, seen []store.Entry) error {
	entries := seen
	for i := range fresh {
		entries = append(entries, fresh[i].Entry)
	}
	progress := to.Cursor != f.at.Cursor && to.Cursor != ""
	if err := f.record(to, entries); err != nil {
		return err
	}
	f.status.moved(f.at, fresh)
	f.recent.add(fresh, time.Now())
	owing := to.Repair || to.Confirm // the stream lacks what no cursor brings
	if progress && !owing && f.restarts < 2 && !f.astray() && !f.status.snapshot().Ready() {
		f.recovered()
	}
	return nil
}

// record makes a checkpoint durable, with the entries that belong to it: in the store, and where whoever takes the feed
// over must not go on from an earlier one, in the record of the lease as well. A deltaLink is such a checkpoint, since it
// replaces the one before as soon as it is asked for. Where nothing but the deltaLink is new, the lease's record is enough: the store's
// index misses nothing, and an idle feed syncs no disk but JetStream's.
func (f *Feed) record(to store.Checkpoint, entries []store.Entry) (err error) {
	if len(entries) == 0 && to == f.at {
		return nil
	}
	span := f.trace.commit(to.Position)
	defer func() { finish(span, err) }()
	idle := f.sound && f.lease != nil && len(entries) == 0 && to.Origin == OriginDelta && onlyCursor(f.at, to)
	handOver := to.Cursor == "" || to.Origin == OriginDelta && to.Cursor != f.at.Cursor
	to.At = time.Now().UTC()
	if f.sound {
		to.Term, to.Round = f.lease.term(), f.at.Round+1
	}
	if !idle {
		err := f.cfg.Store.Commit(f.name, f.stored, to, entries)
		switch {
		case errors.Is(err, store.ErrConflict):
			f.sound = false
			return fmt.Errorf("%w: somebody else moved the checkpoint of %s: %w", ErrConflict, f.name, err)
		case err != nil:
			return fmt.Errorf("%w: commit %s: %w", ErrStore, f.name, err)
		}
		f.at, f.stored = to, to
	}
	if f.sound && (handOver || f.lease.due()) { // catchUp hands over what it found when it is through
		if err := f.lease.save(to); err != nil {
			f.sound = false // what the record holds now is to be found out first
			return err
		}
	}
	f.at = to
	return nil
}

// onlyCursor reports whether two checkpoints differ in their cursor at most.
func onlyCursor(a, b store.Checkpoint) bool {
	a.Cursor, a.Answered = b.Cursor, b.Answered
	return a == b
}

// answeredEvery is how often a checkpoint is made for no other news than that the API has answered, with the same cursor.
const answeredEvery = time.Hour

// moved is the checkpoint behind a run: at the new position, and at the new cursor if the run ends at one.
func (f *Feed) moved(r run, position uint64) store.Checkpoint {
	to := f.at
	to.Position = position
	if now := time.Now().UTC(); r.next != "" && (r.next != to.Cursor || now.Sub(to.Answered) >= answeredEvery) {
		to.Cursor, to.Answered = r.next, now
	}
	if r.latest {
		to.Confirm = to.Confirm || to.Origin == OriginResync
		to.TrustAPI = to.TrustAPI && to.Confirm
		to.Origin = OriginDelta
	}
	return to
}
