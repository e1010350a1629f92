package bridge

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"time"

	"clockbridge/protime"
	"clockbridge/store"
)

// maxRepair is how many lost records are fetched one by one; more are found faster by a resync.
const maxRepair = 1000

// maxConfirm is how many records are asked for between two appends.
const maxConfirm = 100

// Why a delta is started anew.
const (
	resyncExpired   = "expired"
	resyncRefused   = "cursor refused with %d" // HTTP status
	resyncRequested = "requested"
	resyncFilter    = "filter changed"
	resyncLost      = "the stream lost many messages"
	resyncStrange   = "the stream holds what the index did not know"
	resyncTakeover  = "taken over with a walk or a repair unfinished"
	resyncUnproven  = "a record answers 404 without the API's own words"
)

// resyncReasons are all of them.
var resyncReasons = func() []string {
	reasons := []string{resyncExpired, resyncRequested, resyncFilter, resyncLost, resyncStrange, resyncTakeover, resyncUnproven}
	for _, status := range cursorRefusals {
		reasons = append(reasons, fmt.Sprintf(resyncRefused, status))
	}
	return reasons
}()

// begin prepares a walk of the whole listing, if one is called for: by a checkpoint without a cursor, by a request, or
// by a filter setting that is not the one the delta was started with.
func (f *Feed) begin() error {
	request := f.resync.Swap(nil)
	switch {
	case request != nil:
		if err := f.restart(resyncRequested, request.TrustAPI); err != nil {
			return err
		}
	case f.at.Cursor != "" && f.cfg.Filter(f.at.Begun) != f.at.Filter:
		if err := f.restart(resyncFilter, false); err != nil {
			return err
		}
	}
	if f.at.Cursor != "" {
		return nil
	}
	f.whole = true
	to := f.at
	to.Begun = time.Now().UTC()
	to.Filter = f.cfg.Filter(to.Begun)
	to.Walk++                            // also when a start is tried again: what an earlier try showed may be gone by now
	to.Confirm, to.Repair = false, false // the end of this walk finds what either was looking for
	to.Origin = OriginSnapshot
	known, err := f.cfg.Store.Select(f.name, "", 1, func(store.Entry) bool { return true })
	if err != nil {
		return fmt.Errorf("%w: read index: %w", ErrStore, err)
	}
	if len(known) > 0 {
		to.Origin = OriginResync
	}
	return f.commit(to, nil, nil)
}

// restart gives up the present delta: the next begin starts a new one.
func (f *Feed) restart(reason string, trustAPI bool) error {
	f.resynced(reason)
	to := f.at
	to.Cursor, to.TrustAPI = "", to.TrustAPI || trustAPI
	return f.commit(to, nil, nil)
}

func (f *Feed) resynced(reason string) {
	f.log.Warn("resync", "reason", reason, "position", f.at.Position)
	f.cfg.Metrics.resynced(reason)
	f.status.resynced(reason)
}

// heal asks the API, record by record, for what no page will bring: records that the stream lost, and after a walk
// those that it did not show although they are held as alive; and for records that somebody wants to be repaired.
func (f *Feed) heal(ctx context.Context) error {
	if err := f.repair(ctx); err != nil {
		return err
	}
	switch {
	case f.at.Confirm:
		return f.confirm(ctx, OriginResync, true)
	case f.at.Repair:
		lost, err := f.cfg.Store.Select(f.name, "", maxRepair+1, func(e store.Entry) bool { return needed(e, f.at, false) })
		if err != nil {
			return fmt.Errorf("%w: read index: %w", ErrStore, err)
		}
		if len(lost) > maxRepair {
			return f.restart(resyncLost, false)
		}
		return f.confirm(ctx, OriginRepair, false)
	}
	return nil
}

// needed says whether the API is to be asked for a record: the stream lost it, or, after a walk, it is held as alive,
// lies inside the filter, and the walk did not show it.
func needed(e store.Entry, at store.Checkpoint, walked bool) bool {
	switch {
	case isInvalidKey(e.ID):
		return false // it never had an id to ask for
	case e.Position == 0:
		return true
	}
	return walked && !e.Deleted && e.Walk < at.Walk && inside(at.Filter, e.Date)
}

// confirm asks for every record that is needed and appends what differs from the index: a Delete for one that is gone.
func (f *Feed) confirm(ctx context.Context, origin string, walked bool) error {
	for after := ""; ; {
		entries, err := f.cfg.Store.Select(f.name, after, maxConfirm, func(e store.Entry) bool { return needed(e, f.at, walked) })
		if err != nil {
			return fmt.Errorf("%w: read index: %w", ErrStore, err)
		}
		if len(entries) == 0 {
			break
		}
		after = entries[len(entries)-1].ID
		began, changes := time.Now(), make([]protime.Change, 0, len(entries))
		var unheard error
		for _, e := range entries {
			c, proven, err := f.ask(ctx, e)
			switch {
			case err != nil:
				unheard = err
			case proven:
			case !walked:
				return f.restart(resyncUnproven, false)
			case e.Walk == f.at.Walk || !inside(f.at.Filter, e.Date):
				unheard = fmt.Errorf("get record %s: 404 without the API's own words, and the listing does not speak of it", e.ID)
			}
			if unheard != nil {
				break
			}
			changes = append(changes, c)
		}
		// What was answered is kept: of many requests one may fail every time.
		if err := f.publish(ctx, began, changes, unheard, origin); err != nil {
			return err
		}
		if unheard != nil {
			return unheard
		}
	}
	to := f.at
	to.Repair = false
	if walked {
		to.Confirm, to.TrustAPI = false, false
	}
	return f.commit(to, nil, nil)
}

// publish appends what differs from the index of changes that no cursor brought: they were asked for since then, until one
// could not be heard of. It is a round as well.
func (f *Feed) publish(ctx context.Context, since time.Time, changes []protime.Change, unheard error, origin string) (err error) {
	f.trace.begin(ctx, since, cursorRecord, origin, len(changes), unheard)
	defer func() { f.trace.end(f.at.Position, errors.Join(err, unheard)) }()
	fresh, seen, err := f.fresh(changes, origin)
	if err != nil {
		return err
	}
	return f.put(ctx, fresh, seen)
}

// put appends messages that no cursor brought, and commits them with entries that were seen unchanged.
func (f *Feed) put(ctx context.Context, fresh []message, seen []store.Entry) error {
	position, err := f.append(ctx, fresh)
	if err != nil {
		return err
	}
	to := f.at
	to.Position = position
	return f.commit(to, fresh, seen)
}

// ask gets one record as it is now; one that is gone becomes a Delete of the version that is held. A 404 proves that only
// in the API's own words, or behind a walk that did not show the record either: a proxy says 404 as well.
func (f *Feed) ask(ctx context.Context, e store.Entry) (c protime.Change, proven bool, err error) {
	c, err = f.cfg.Source.Get(ctx, f.cfg.Collection, e.ID)
	var api *protime.APIError
	switch {
	case errors.Is(err, protime.ErrNotFound):
		proven = errors.As(err, &api) && api.Code != ""
		return protime.Change{Type: protime.Delete, ID: e.ID, Version: e.Version, Data: deletedData(e.ID)}, proven, nil
	case err != nil:
		return c, false, fmt.Errorf("get record %s: %w", e.ID, err)
	case c.ID != e.ID:
		return c, false, fmt.Errorf("get record %s: the API answered with record %q", e.ID, c.ID)
	}
	return f.cfg.Privacy.apply(c), true, nil
}

var (
	fromRE = regexp.MustCompile(`\bdate ge '(\d{4}-\d{2}-\d{2})'`)
	toRE   = regexp.MustCompile(`\bdate le '(\d{4}-\d{2}-\d{2})'`)
)

// inside reports whether a record of that date may be inside the filter. A record whose date is unknown, or a filter
// that says nothing of dates, may: asking once too often loses nothing.
func inside(filter, date string) bool {
	if date == "" {
		return true
	}
	if m := fromRE.FindStringSubmatch(filter); m != nil && date < m[1] {
		return false
	}
	if m := toRE.FindStringSubmatch(filter); m != nil && date > m[1] {
		return false
	}
	return true
}
