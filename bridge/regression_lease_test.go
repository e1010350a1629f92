package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"clockbridge/protime"
	"clockbridge/protime/protimetest"
)

// While NATS was down, each of several instances asked without a pause whether the others were dead.
func TestRegression_BusyWhileNATSIsDown(t *testing.T) {
	f := &Fleet{cfg: FleetConfig{Heartbeat: time.Minute}}
	f.safeUntil(time.Now().Add(-time.Second))
	m := &membership{Fleet: f, id: "a", whole: true, due: time.Now().Add(time.Second), members: map[string]seen[memberRecord]{
		"b": {record: memberRecord{Heartbeat: time.Minute}, at: time.Now().Add(-time.Hour)},
	}}
	if next := m.next(); next.Before(m.due) {
		t.Errorf("there is something to do %s before the next heartbeat, though nothing may be done", m.due.Sub(next))
	}
}

// The lease was looked at before the way to the API was found, and no more: a token, a name and a connection later, the
// request ended the delta of the next holder.
func TestRegression_RequestBehindALapsedLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		f := idle(new(logBuffer))
		f.lease = &lease{until: func() time.Time {
			if time.Since(began) < 5*time.Second {
				return began.Add(10 * time.Second)
			}
			return began.Add(15 * time.Second) // renewed once
		}}
		f.cfg.Source = farAway{}
		err := f.readPage(t.Context(), "c", new(run), nil)
		if took := time.Since(began); !errors.Is(err, errLapsed) || took != 15*time.Second {
			t.Errorf("the request was given up after %s with %v, want 15 s and %v", took, err, errLapsed)
		}
	})
}

// farAway is an API that takes a minute to be reached.
type farAway struct{ Source }

func (farAway) Fetch(ctx context.Context, _ string) (*protime.Page, error) {
	if err := sleep(ctx, time.Minute); err != nil {
		return nil, err
	}
	return nil, errors.New("reached")
}

// A bucket that came back from a backup while the connection was lost had positions again that the watch believed to have
// shown: an instance saw its own heartbeats, and a holder that there was not any more. Nobody followed the feed.
func TestRegression_WatchOfABucketFromABackup(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	looks, err := w.nc.SubscribeSync("$JS.EVENT.ADVISORY.CONSUMER.CREATED.KV_" + Bucket + ".*")
	if err != nil {
		t.Fatal(err)
	}
	a := w.join("a", "", beatSoon)
	waitFor(t, "a to follow", a.holds)
	for range 2 { // to watch, and to purge what members have left behind
		if _, err := looks.NextMsg(10 * time.Second); err != nil {
			t.Fatalf("a does not watch the bucket: %v", err)
		}
	}
	if err := a.nc.ForceReconnect(); err != nil {
		t.Fatal(err)
	}
	if _, err := looks.NextMsg(10 * time.Second); err != nil {
		t.Errorf("a does not look at the whole bucket again when it has reconnected: %v", err)
	}
}

// A cursor was refused while the lease could not be written: that ended the feed, as if its store could not be, and with it the
// membership, so that every other feed of the process was given away.
func TestRegression_RestartThatCannotBeRecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logs := new(logBuffer)
		f := idle(logs)
		f.lease = &lease{until: forNow, lost: true}
		ctx, cancel := context.WithCancel(t.Context())
		tries := 0
		err := f.loop(ctx, func(context.Context) error {
			if tries++; tries == 3 {
				cancel()
			}
			f.at.Cursor, f.at.Origin, f.sound = "c", OriginDelta, true
			return onCursor(apiErr(http.StatusGone, 0))
		})
		if err != nil || tries != 3 {
			t.Errorf("after %d steps: got %v, want it to go on", tries, err)
		}
		if s := f.Status(); s.State != StateRetrying || !strings.Contains(s.Error, errLost.Error()) {
			t.Errorf("status %+v, want it retrying, and why", s)
		}
	})
}

// Two instances that had deleted each other took the lease from one another as fast as they could, until each sent its
// next heartbeat and found out.
func TestRegression_DeadUntilTheNextHeartbeat(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.company(5)
	a, b := w.pair(beatNever)
	w.bury("a")
	w.bury("b")
	for _, i := range []*instance{a, b} {
		waitFor(t, i.name+" to say what happened", func() bool { return strings.Contains(i.logs.String(), "taken for dead") })
	}
	waitFor(t, "one to follow again", func() bool { return a.holds() != b.holds() })
	w.company(5)
	w.current(a, b)
}

// After a bucket was put back from a backup, a member was taken for dead because its heartbeat had the revision of an earlier
// one.
func TestRegression_RevisionCountedTwice(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	m := &membership{members: map[string]seen[memberRecord]{}}
	beat := func(at time.Time) (revision uint64) {
		w.leased(forNow) // which makes the bucket
		value, err := json.Marshal(memberRecord{Name: "a", Heartbeat: time.Second, At: at})
		if err != nil {
			t.Fatal(err)
		}
		bucket := kv(t, w.nc)
		if _, err := bucket.Put(t.Context(), memberPrefix+"a", value); err != nil {
			t.Fatal(err)
		}
		entry, err := bucket.Get(t.Context(), memberPrefix+"a")
		if err != nil {
			t.Fatal(err)
		}
		m.see(entry)
		m.see(entry) // as when the whole bucket is looked at again
		return entry.Revision()
	}
	first := beat(time.Now().Add(-time.Hour))
	silent := m.members["a"]
	silent.at = time.Now().Add(-time.Hour)
	m.members["a"] = silent
	if err := w.js.DeleteKeyValue(t.Context(), Bucket); err != nil {
		t.Fatal(err)
	}
	if again := beat(time.Now()); again != first {
		t.Fatalf("revision %d, want %d once more", again, first)
	}
	if since := time.Since(m.members["a"].at); since > time.Minute {
		t.Errorf("silent for %s although it has just sent a heartbeat", since)
	}
}

// The watch of the bucket says that it has shown all that there is when it has shown as many keys as there were, be some of them the
// same one written again. A newcomer did not know the holder of a lease then, and took the lease from under it.
func TestRegression_HolderThatTheWatchHasNotShown(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.leased(forNow) // which makes the bucket
	bucket, key := kv(t, w.nc), leaseKey(w.feed.name)
	holder := memberRecord{Name: "a", Feeds: []string{w.feed.name}, Heartbeat: time.Minute}
	value, err := json.Marshal(holder)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bucket.Put(t.Context(), memberPrefix+"a", value); err != nil {
		t.Fatal(err)
	}
	revision, err := bucket.PutString(t.Context(), key, `{"holder":"a","name":"a","term":7}`)
	if err != nil {
		t.Fatal(err)
	}
	fleet, err := NewFleet(FleetConfig{NATS: w.nc, Store: w.store})
	if err != nil {
		t.Fatal(err)
	}
	fleet.feeds = map[string]*Feed{w.feed.name: w.feed}
	m := &membership{
		Fleet: fleet, kv: bucket, id: "b", log: slog.New(slog.DiscardHandler), held: map[string]*holding{}, due: forNow(),
		members: map[string]seen[memberRecord]{},
		leases:  map[string]seen[leaseRecord]{key: {record: leaseRecord{Holder: "a", Name: "a", Term: 7}, revision: revision}},
	}
	for range 2 {
		m.act(t.Context())
	}
	if entry, err := bucket.Get(t.Context(), key); err != nil || entry.Revision() != revision {
		t.Errorf("the lease was written: %s, %v", entry.Value(), err)
	}
	if s := w.feed.Status(); s.State != StateStandby || s.Holder != "a" {
		t.Errorf("status %+v, want it to stand by for a", s)
	}
}

// An append in hand, the save behind it and leaving the others took up to twelve seconds where NATS answers late and then not at all.
func TestRegression_StopTakesTooLong(t *testing.T) {
	if all := appendTimeout + saveTimeout + leaveTimeout; all >= 10*time.Second {
		t.Errorf("a graceful stop may wait for %s, want less than 10 s", all)
	}
}

// Every second request was not answered after an outage that had cost the lease: it went to a subscription that nobody had any more.
func TestRegression_RequestsAfterAnOutage(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.company(3)
	a := w.join("a", "", beatSoon)
	waitFor(t, "a to follow", a.holds)
	w.restart(func() {
		waitFor(t, "a to leave", func() bool { return strings.Contains(a.feeds[0].Status().Error, "join the other instances") })
	})
	waitFor(t, "a to follow again", a.holds)
	for range 20 {
		if _, err := RequestStatus(t.Context(), w.nc, w.tenant, "clockings"); err != nil {
			t.Fatal(err)
		}
	}
}
