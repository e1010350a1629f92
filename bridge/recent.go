package bridge

import (
	"bytes"
	"sync"
	"time"
)

// Bounds of what a feed remembers of the changes that it stored.
const (
	RecentChanges = 100
	RecentMinutes = 60
	RecentData    = 4096 // bytes of a record; a larger one is not remembered
)

// Recent is what a feed has stored lately, as far as this process saw it.
type Recent struct {
	Changes []Stored           // newest first, at most RecentChanges
	Minutes [RecentMinutes]int // changes stored in each of the last minutes, in order; the last minute is not over yet
}

// Stored is a change whose message the stream has acknowledged, and whose checkpoint is committed.
type Stored struct {
	At       time.Time // when it was committed, UTC
	Position uint64    // stream sequence
	ID       string    // of the record; "" of a change that could not be read
	Type     string    // TypeUpserted, TypeDeleted or TypeUnreadable
	Origin   string
	Data     []byte // the record's data, if Config.KeepData asks for it and it is not longer than RecentData; not to be changed
}

// Types of a stored change, as ce-type ends with them.
const (
	TypeUpserted   = "upserted"
	TypeDeleted    = "deleted"
	TypeUnreadable = "unreadable"
)

// recent remembers the last changes of a feed and counts them by the minute. What it costs for an append does not grow
// with the append, and its memory is bounded.
type recent struct {
	keepData bool

	mu     sync.Mutex
	ring   [RecentChanges]Stored
	stored uint64 // changes ever; the last one is at ring[(stored-1)%RecentChanges]
	counts [RecentMinutes]int
	minute int64 // since 1970, of the last count; the one of minute m is at counts[m%RecentMinutes]
}

// add notes the messages of one append, in order.
func (r *recent) add(msgs []message, now time.Time) {
	if len(msgs) == 0 {
		return
	}
	now = now.UTC()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.turn(now)
	r.counts[r.minute%RecentMinutes] += len(msgs)
	last := msgs[max(len(msgs)-RecentChanges, 0):]
	for i := range last {
		r.ring[r.stored%RecentChanges] = r.note(&last[i], now)
		r.stored++
	}
}

// forget lets go of the data that name a person.
func (r *recent) forget(person Person) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.ring {
		if person.NamedBy(r.ring[i].Data, r.ring[i].Type == TypeDeleted) {
			r.ring[i].Data = nil
		}
	}
}

func (r *recent) note(m *message, now time.Time) Stored {
	s := Stored{At: now, Position: m.Position, ID: m.ID, Type: TypeUpserted, Origin: m.origin}
	switch {
	case m.invalid():
		s.ID, s.Type = "", TypeUnreadable
		return s
	case m.Deleted:
		s.Type = TypeDeleted
	}
	if r.keepData && len(m.data) <= RecentData {
		s.Data = bytes.Clone(m.data) // the original may be a piece of something larger
	}
	return s
}

// turn forgets the minutes that are over for too long. A clock that was set back counts on where it was.
func (r *recent) turn(now time.Time) {
	minute := now.Unix() / 60
	if minute-r.minute >= RecentMinutes {
		r.counts = [RecentMinutes]int{}
		r.minute = minute
	}
	for r.minute < minute {
		r.minute++
		r.counts[r.minute%RecentMinutes] = 0
	}
}

func (r *recent) snapshot(now time.Time) Recent {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.turn(now)
	var s Recent
	for i := range s.Minutes {
		s.Minutes[i] = r.counts[(r.minute+1+int64(i))%RecentMinutes]
	}
	n := min(r.stored, RecentChanges)
	s.Changes = make([]Stored, n)
	for i := range s.Changes {
		s.Changes[i] = r.ring[(r.stored-1-uint64(i))%RecentChanges] //nolint:gosec // an index
	}
	return s
}
