package bridge

import (
	"fmt"

	"github.com/nats-io/nats.go"

	"clockbridge/protime"
	"clockbridge/store"
)

// fresh drops the changes that are not newer than the index. It returns the messages to append, and the entries of
// records that are unchanged but were shown by a walk that had not seen them yet.
func (f *Feed) fresh(changes []protime.Change, origin string) (fresh []message, seen []store.Entry, err error) {
	msgs := make([]message, len(changes))
	ids := make([]string, len(changes))
	for i, c := range changes {
		if c.Type == protime.Delete && c.Version == "" {
			if c.Version, err = f.lastVersion(c.ID, msgs[:i]); err != nil {
				return nil, nil, err
			}
		}
		msgs[i] = f.message(c, origin)
		ids[i] = msgs[i].ID
	}
	known, err := f.cfg.Store.Lookup(f.name, ids)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: look up index: %w", ErrStore, err)
	}
	latest := make(map[string]store.Entry, len(msgs)) // of the records in this run, what the index will say
	var tally tally
	var reason string // why the last unreadable change was kept aside
	for i := range msgs {
		m := &msgs[i]
		was, again := latest[m.ID]
		if !again {
			was = known[i]
		}
		if was.Erased && was.Position == 0 && m.Version == was.Version {
			*m = erasure(was) // the stream has lost it, and what it stood for stays erased
		}
		switch judge(m.Entry, was, f.at.TrustAPI && origin != OriginDelta) {
		case isFresh:
			m.Walk, m.prev = f.at.Walk, was.Position
			if m.invalid() || was.ID != "" && was.Position == 0 {
				m.prev = prevUnknown
			}
			if m.Date == "" {
				m.Date = was.Date
			}
			now := m.Entry
			now.Position = f.at.Position + uint64(len(fresh)) + 1
			latest[m.ID] = now
			fresh = append(fresh, *m)
			if m.invalid() {
				tally.invalid++
				reason = m.reason
			}
			continue
		case isStale:
			tally.stale++
		case isSame:
			tally.same++
		}
		if was.Walk != f.at.Walk && !again {
			was.Walk = f.at.Walk
			latest[m.ID] = was
			seen = append(seen, was)
		}
	}
	if tally.invalid > 0 {
		f.log.Warn("unreadable changes kept aside", "count", tally.invalid, "reason", reason, "subject", f.stream.codec.prefix+"."+invalidToken)
	}
	tally.fresh = uint64(len(fresh))
	f.status.judged(tally)
	f.cfg.Metrics.judged(tally)
	return fresh, seen, nil
}

// tally counts what became of the changes of a run.
type tally struct{ fresh, same, stale, invalid uint64 }

type verdict int

const (
	isFresh verdict = iota
	isSame          // the index has it
	isStale         // the index has a newer version of the record
)

// judge says whether m is newer than what the index holds. changeVersions are compared as strings; records changed in
// one transaction share one, so an equal one is newer only if it is the Delete of a record held as alive. What the
// stream has lost is published again. trust takes any difference as news, but for the version that was erased.
func judge(m, was store.Entry, trust bool) verdict {
	switch {
	case was.ID == "" || m.Version > was.Version:
		return isFresh
	case m.Version < was.Version:
		if trust {
			return isFresh
		}
		return isStale
	case m.Deleted && !was.Deleted, was.Position == 0 && m.Deleted == was.Deleted, trust && m.Deleted != was.Deleted && !was.Erased:
		return isFresh
	}
	return isSame
}

// message reads a change: which record it is about, and if that cannot be told, why.
func (f *Feed) message(c protime.Change, origin string) message {
	if reason := unreadable(c, f.room()); reason != "" {
		return f.cfg.Privacy.withhold(keepAside(c, reason, origin, f.room()))
	}
	return message{
		Entry:  store.Entry{ID: c.ID, Version: c.Version, Date: c.Date, Deleted: c.Type == protime.Delete},
		data:   c.Data,
		origin: origin,
	}
}

// unreadable says why a change cannot be published under its record's subject, or "". room is what the server takes of a
// payload.
func unreadable(c protime.Change, room int) string {
	switch {
	case c.Type != protime.Upsert && c.Type != protime.Delete:
		return fmt.Sprintf("unknown change type %+.40q", string(c.Type))
	case checkID(c.ID) != "":
		return checkID(c.ID)
	case c.Version == "":
		return "no changeVersion"
	case len(c.Version) > maxVersion:
		return fmt.Sprintf("changeVersion of %d bytes, more than %d", len(c.Version), maxVersion)
	case !isText(c.Version):
		return "changeVersion is not text"
	case len(c.Data) > room:
		return fmt.Sprintf("record %+q is larger than the server's max payload", c.ID)
	}
	return ""
}

// maxVersion is the longest changeVersion in bytes; documented ones have 20.
const maxVersion = 256

func (f *Feed) room() int { return room(f.cfg.NATS) }

// room is what the server takes of a payload beside the headers.
func room(nc *nats.Conn) int { return max(int(nc.MaxPayload())-headerRoom, 0) }

// lastVersion is the newest changeVersion that the index or the run so far knows of a record, "" if neither knows it.
// A Delete ends its record, so one that comes without a changeVersion follows whatever is known.
func (f *Feed) lastVersion(id string, before []message) (string, error) {
	known, err := f.lookup(id)
	if err != nil {
		return "", err
	}
	last := known.Version
	for i := range before {
		if before[i].ID == id {
			last = max(last, before[i].Version)
		}
	}
	return last, nil
}
