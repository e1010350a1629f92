package bridge

import (
	"context"
	"errors"
	"fmt"
	"time"

	"clockbridge/protime"
	"clockbridge/store"
)

// Bounds of what Repair takes: ids at once, and calls that wait for the feed to come round to them.
const (
	MaxRepair     = 500
	repairsAtOnce = 40
)

// ErrBusy is returned by Repair when too many requests wait.
var ErrBusy = errors.New("too many repairs are waiting, ask again later")

// Repair asks for records to be compared with the stream and with the API, and for what differs to be appended, with origin
// repair; at most MaxRepair at once. It returns before that is done. Asking for records that are as they should be appends nothing, so
// asking again never hurts. What cannot be asked of the API at the moment is given up, and logged.
func (f *Feed) Repair(ids []string) error {
	if len(ids) == 0 || len(ids) > MaxRepair {
		return fmt.Errorf("%d ids: must be from 1 to %d", len(ids), MaxRepair)
	}
	for _, id := range ids {
		if reason := checkID(id); reason != "" {
			return fmt.Errorf("id %.40q: %s", id, reason)
		}
	}
	select {
	case f.repairs <- ids:
	default:
		return ErrBusy
	}
	f.Sync()
	return nil
}

// maxFailures is how many records in a row may fail to be asked for before a repair is given up.
const maxFailures = 3

// repair does what Repair was asked for. It is behind the newest changes, since the API reports a recent Delete with its own
// changeVersion.
func (f *Feed) repair(ctx context.Context) error {
	for {
		if len(f.wanted) == 0 {
			select {
			case f.wanted = <-f.repairs:
				f.log.Info("repair requested", "records", len(f.wanted))
			default:
				return nil
			}
		}
		n := min(len(f.wanted), maxConfirm)
		restart, err := f.repairRun(ctx, f.wanted[:n])
		if err != nil {
			return err
		}
		f.wanted = f.wanted[min(n, len(f.wanted)):]
		if restart {
			return f.restart(resyncUnproven, false)
		}
	}
}

// repairRun repairs a few records. It reports whether a resync is needed to tell if one of them is gone.
func (f *Feed) repairRun(ctx context.Context, ids []string) (restart bool, err error) {
	known, err := f.cfg.Store.Lookup(f.name, ids)
	if err != nil {
		return false, fmt.Errorf("%w: look up index: %w", ErrStore, err)
	}
	began := time.Now()
	var changes []protime.Change
	var marks []store.Entry
	failures, lost := 0, 0
	for i, id := range ids {
		last, err := f.stream.last(ctx, id)
		if err != nil {
			return false, f.foreign(err)
		}
		if last != nil && last.Position > f.at.Position {
			f.sound = false
			return false, fmt.Errorf("%w: message %d of record %s is not its own", errRefused, last.Position, id)
		}
		held := reconcile(known[i], last)
		held.ID = id
		c, proven, err := f.ask(ctx, held)
		if err != nil {
			f.log.Warn("record not repaired", "record", id, "error", err.Error(), "do", "ask again")
			if failures++; failures == maxFailures || ctx.Err() != nil {
				f.wanted = nil
				break
			}
			continue
		}
		failures = 0
		switch {
		case !proven:
			restart = true
			continue
		case held.Version == "" && (c.Type == protime.Delete || !inside(f.at.Filter, c.Date)):
			continue // neither side ever had it, or the feed is not to have it
		case last != nil && !last.Deleted && c.Version == last.Version && c.Type == protime.Upsert && contradict(c.Data, last.data):
			held.Position = 0
		}
		if held != known[i] && held.Version != "" {
			marks = append(marks, held)
			if held.Position == 0 {
				lost++
			}
		}
		changes = append(changes, c)
	}
	if len(marks) > 0 {
		// From now on these count as lost, also after a crash.
		to := f.at
		to.Repair = true
		if err := f.commit(to, nil, marks); err != nil {
			return false, err
		}
		if lost > 0 {
			f.lost(lost)
		}
	}
	return restart, f.publish(ctx, began, changes, nil, OriginRepair)
}

// reconcile makes the index's entry of a record say what the stream holds: at position 0 if the stream has lost the
// message that it speaks of.
func reconcile(held store.Entry, last *message) store.Entry {
	switch {
	case last == nil || last.Position < held.Position:
		held.Position = 0
	case held.Version == "" || held.Position != 0 && last.Position > held.Position:
		// It missed this one.
		walk, date := held.Walk, held.Date
		held = last.Entry
		held.Walk = walk
		if held.Date == "" {
			held.Date = date
		}
	}
	return held
}
