package bridge

import (
	"errors"
	"log/slog"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"clockbridge/protime/protimetest"
)

// TestMembership_bury: a member that gives a sign of life at the last moment is not buried.
func TestMembership_bury(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.leased(forNow) // which makes the bucket
	fleet, err := NewFleet(FleetConfig{NATS: w.nc, Store: w.store})
	if err != nil {
		t.Fatal(err)
	}
	bucket := kv(t, w.nc)
	m := &membership{Fleet: fleet, kv: bucket, log: slog.New(slog.DiscardHandler), members: map[string]seen[memberRecord]{}}
	seenAt, err := bucket.PutString(t.Context(), memberPrefix+"m", "seen")
	if err != nil {
		t.Fatal(err)
	}
	alive, err := bucket.PutString(t.Context(), memberPrefix+"m", "alive")
	if err != nil {
		t.Fatal(err)
	}
	m.bury(t.Context(), "m", seen[memberRecord]{revision: seenAt})
	if _, err := bucket.Get(t.Context(), memberPrefix+"m"); err != nil {
		t.Errorf("buried alive: %v", err)
	}
	m.bury(t.Context(), "m", seen[memberRecord]{revision: alive})
	if _, err := bucket.Get(t.Context(), memberPrefix+"m"); !errors.Is(err, jetstream.ErrKeyNotFound) {
		t.Errorf("not buried: %v", err)
	}
}

// TestMembership_reckon: whatever a member may follow itself, it comes to the same answer as the others.
func TestMembership_reckon(t *testing.T) {
	feeds := map[string][]string{"a": {"acme/x", "acme/y"}, "b": {"acme/y", "acme/z"}, "c": {"acme/z"}}
	leases := map[string]seen[leaseRecord]{
		leaseKey("acme/x"): {record: leaseRecord{Holder: "a"}},
		leaseKey("acme/y"): {record: leaseRecord{Holder: "gone"}},
		leaseKey("acme/z"): {record: leaseRecord{Holder: "b"}},
	}
	for id, own := range feeds {
		m := &membership{Fleet: &Fleet{feeds: map[string]*Feed{}}, id: id, leases: leases, members: map[string]seen[memberRecord]{}}
		for other, theirs := range feeds {
			m.members[other] = seen[memberRecord]{record: memberRecord{Feeds: theirs}}
		}
		for _, name := range own {
			m.feeds[name] = nil
		}
		holders, to := m.reckon()
		if want := map[string]string{"acme/x": "a", "acme/z": "b"}; !maps.Equal(holders, want) {
			t.Errorf("%s sees the holders %v, want %v", id, holders, want)
		}
		if want := map[string]string{"acme/x": "a", "acme/y": "a", "acme/z": "b"}; !maps.Equal(to, want) {
			t.Errorf("%s reckons %v, want %v", id, to, want)
		}
	}
}

// TestMembership_take_unwritable: where the bucket cannot be written, it is tried again after a while, not at once.
func TestMembership_take_unwritable(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.leased(forNow) // which makes the bucket
	nc := w.nats.connect(t)
	bucket := kv(t, nc)
	fleet, err := NewFleet(FleetConfig{NATS: nc, Store: w.store})
	if err != nil {
		t.Fatal(err)
	}
	fleet.feeds = map[string]*Feed{w.feed.name: w.feed}
	logs := new(logBuffer)
	m := &membership{Fleet: fleet, kv: bucket, id: "m", log: slog.New(slog.NewTextHandler(logs, nil)), held: map[string]*holding{}, troubles: map[string]int{}, due: forNow()}
	nc.Close()
	now := time.Now()
	m.act(t.Context())
	if first, last := now.Add(time.Second/2), now.Add(fleet.cfg.Heartbeat); m.next().Before(first) || m.next().After(last) {
		t.Errorf("tried again after %s", m.next().Sub(now))
	}
	for range 9 {
		m.act(t.Context())
	}
	if got := strings.Count(logs.String(), "lease not taken"); got != 4 || !strings.Contains(logs.String(), "attempts=8") {
		t.Errorf("%d lines for ten failures, want 4 (the 1st, 2nd, 4th, 8th):\n%s", got, logs)
	}
}
