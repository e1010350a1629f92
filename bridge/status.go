package bridge

import (
	"sync"
	"time"

	"clockbridge/store"
)

// State says in one word how a feed is.
type State string

// The states of a feed. It is ready in StateHealthy, and in StateStandby, where another process does the work. It is not in
// StatePaused, so that nobody forgets it: the delta expires while nothing asks for it.
const (
	StateStarting      State = "starting"      // it has not ended a pass yet
	StateHealthy       State = "healthy"       // the last pass ended well
	StateStandby       State = "standby"       // another instance follows the feed
	StatePaused        State = "paused"        // somebody wants it so, until it is resumed
	StateRetrying      State = "retrying"      // a failure that is expected to pass
	StateUnauthorized  State = "unauthorized"  // credentials or scope are refused
	StateMisconfigured State = "misconfigured" // filter, collection or stream are refused
	StateConflict      State = "conflict"      // somebody else writes the stream; the feed has stopped
	StateStale         State = "stale"         // the API reports only changes older than those published
	StateStopped       State = "stopped"       // the store cannot be written; the process ends
)

// States lists all states, for metrics and documentation.
var States = []State{StateStarting, StateHealthy, StateStandby, StatePaused, StateRetrying, StateUnauthorized, StateMisconfigured, StateConflict, StateStale, StateStopped}

// Status is a feed's state at one moment. Times are UTC; a zero time means never.
type Status struct {
	Tenant     string    `json:"tenant"`
	Collection string    `json:"collection"`
	Stream     string    `json:"stream"`
	State      State     `json:"state"`
	Since      time.Time `json:"since"`              // when State began
	Holder     string    `json:"holder,omitempty"`   // instance that follows the feed
	Phase      string    `json:"phase"`              // what the cursor brings: snapshot, resync or delta
	Position   uint64    `json:"position"`           // stream sequence of the last message
	FetchedAt  time.Time `json:"fetchedAt,omitzero"` // last answer to a cursor, be it an earlier process's: a delta expires 72 h after it
	ChangedAt  time.Time `json:"changedAt,omitzero"` // when the last message was stored
	Error      string    `json:"error,omitempty"`    // what failed last, while not healthy
	Advice     string    `json:"advice,omitempty"`   // what a person can do about it
	Attempts   int       `json:"attempts,omitempty"` // failures in a row
	RetryAt    time.Time `json:"retryAt,omitzero"`   // when it is tried again
	Published  uint64    `json:"published"`          // messages stored since start
	Same       uint64    `json:"same"`               // changes dropped because the stream has them
	Stale      uint64    `json:"stale"`              // changes dropped because the stream has newer ones
	Invalid    uint64    `json:"invalid"`            // unreadable changes kept aside since start
	Lost       uint64    `json:"lost"`               // records whose messages the stream had lost
	Resyncs    uint64    `json:"resyncs"`            // deltas started anew since start
	LastResync string    `json:"lastResync,omitempty"`
	PurgedTo   uint64    `json:"purgedTo,omitempty"` // first position left by a purge

	LastVerify *VerifyReport `json:"lastVerify,omitempty"` // what the last verification found; nil = there was none
}

// Ready reports whether the feed does its work, here or elsewhere.
func (s Status) Ready() bool { return s.State == StateHealthy || s.State == StateStandby }

type status struct {
	mu        sync.Mutex
	s         Status
	pass      tally // what became of the changes since a pass last ended well
	onlyStale bool  // the last changes seen in a whole pass were stale, all of them
	failedAt  time.Time
	lease     *lease        // nil = none; of a feed that is followed under one
	verified  *VerifyReport // the last that came to its end since the feed is followed; nil = none did
}

func newStatus(cfg Config, stream string) *status {
	return &status{s: Status{Tenant: cfg.Tenant, Collection: cfg.Collection, Stream: stream, State: StateStarting, Since: time.Now().UTC()}}
}

func (st *status) update(change func(s *Status)) {
	st.mu.Lock()
	defer st.mu.Unlock()
	change(&st.s)
}

func (st *status) snapshot() Status {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.s
}

// all returns the status, whether the feed's lease is held, and what the last verification found that came to its end.
func (st *status) all() (s Status, leased bool, verified *VerifyReport) {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.s, st.lease != nil && st.lease.check() == nil, st.verified
}

func (st *status) fetched() {
	st.update(func(s *Status) { s.FetchedAt = time.Now().UTC() })
}

// answered shows when the API last answered another process, or this one before it began.
func (st *status) answered(at time.Time) {
	st.update(func(s *Status) {
		if at.After(s.FetchedAt) {
			s.FetchedAt = at
		}
	})
}

func (st *status) moved(at store.Checkpoint, fresh []message) {
	st.update(func(s *Status) {
		s.Position, s.Phase = at.Position, at.Origin
		if len(fresh) > 0 {
			s.ChangedAt = time.Now().UTC()
			s.Published += uint64(len(fresh))
		}
	})
}

func (st *status) judged(t tally) {
	st.update(func(s *Status) {
		s.Same += t.same
		s.Stale += t.stale
		s.Invalid += t.invalid
		st.pass.fresh += t.fresh
		st.pass.same += t.same
		st.pass.stale += t.stale
	})
}

// passed takes stock of what judged was told since a pass last ended well. A run alone would not do, and neither would the rest
// of a pass that began in another process: a response may show the versions of a record in any order, and on several pages.
func (st *status) passed(whole bool) {
	st.update(func(*Status) {
		switch {
		case st.pass.fresh > 0:
			st.onlyStale = false
		case whole && st.pass.stale > 0 && st.pass.same == 0:
			st.onlyStale = true
		}
		st.pass = tally{}
	})
}

func (st *status) lost(n int) { st.update(func(s *Status) { s.Lost += uint64(n) }) } //nolint:gosec // a count

func (st *status) purged(first uint64) { st.update(func(s *Status) { s.PurgedTo = first }) }

func (st *status) resynced(reason string) {
	st.update(func(s *Status) {
		s.Resyncs++
		s.LastResync = reason
	})
}

func (st *status) verify(r VerifyReport) {
	st.update(func(s *Status) {
		s.LastVerify = &r
		if r.Error == "" {
			st.verified = &r
		}
	})
}

// failed records a failure. It returns how many there were in a row and whether the state is a new one.
func (st *status) failed(p plan, err error) (attempts int, changed bool) {
	st.update(func(s *Status) {
		now := time.Now().UTC()
		if s.Attempts == 0 {
			st.failedAt = now
		}
		changed = st.enter(p.state, now)
		s.Attempts++
		s.Error, s.Advice, s.RetryAt = err.Error(), p.advice, time.Time{}
		if p.retries() {
			s.RetryAt = now.Add(p.wait)
		}
		attempts = s.Attempts
	})
	return attempts, changed
}

// healthy records a pass that ended well. It returns the state before it, and how often and how long it had failed.
func (st *status) healthy() (was State, attempts int, failing time.Duration) {
	st.update(func(s *Status) {
		now := time.Now().UTC()
		was, attempts = s.State, s.Attempts
		if attempts > 0 {
			failing = now.Sub(st.failedAt)
		}
		s.Attempts, s.Error, s.Advice, s.RetryAt = 0, "", "", time.Time{}
		state := StateHealthy
		if st.onlyStale {
			state, s.Advice = StateStale, adviceStale
		}
		st.enter(state, now)
	})
	return was, attempts, failing
}

// held shows that this process is the holder from now on.
func (st *status) held(l *lease) {
	st.update(func(s *Status) {
		s.Holder = l.record.Name
		st.lease, st.verified = l, nil
		st.enter(StateStarting, time.Now().UTC())
	})
}

// released shows that this process follows the feed no more.
func (st *status) released() { st.update(func(*Status) { st.lease = nil }) }

// paused shows that nobody follows the feed since somebody wanted it so. It reports whether that is news.
func (st *status) paused(since time.Time, advice string) (changed bool) {
	st.update(func(s *Status) {
		changed = st.enter(StatePaused, since)
		s.Attempts, s.Error, s.Advice, s.RetryAt = 0, "", advice, time.Time{}
	})
	return changed
}

// resumed shows that the feed is followed again.
func (st *status) resumed() {
	st.update(func(s *Status) {
		st.enter(StateStarting, time.Now().UTC())
		s.Advice = ""
	})
}

// standBy shows that another process is the holder. It reports whether that is news.
func (st *status) standBy(holder string) (changed bool) {
	st.update(func(s *Status) {
		changed = s.State != StateStandby || holder != "" && holder != s.Holder
		s.Holder = holder
		s.Attempts, s.Error, s.Advice, s.RetryAt = 0, "", "", time.Time{}
		st.enter(StateStandby, time.Now().UTC())
	})
	return changed
}

func (st *status) enter(state State, now time.Time) (changed bool) {
	if st.s.State == state {
		return false
	}
	st.s.State, st.s.Since = state, now
	return true
}
