//go:build torture

package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"clockbridge/bridge"
)

var tortureTakeovers = flag.Int("torture.takeovers", 50, "how often TestTortureTakeover makes the holder of a feed go away")

// takeoverWrites is how many writes to the cluster a takeover may wait for beyond the three heartbeats that are promised, and
// takeoverSlack what one in ten may take on top of that: the test runs seven processes and itself on what may be two cores, and these
// may have other work.
const (
	takeoverWrites = 4
	takeoverSlack  = heartbeat
)

// TestTortureTakeover: three instances on a cluster of three nodes, a stream of three replicas, changes all the time. The
// holder is killed, and in half of the cases its data directory removed; frozen until another has taken over, and let go on;
// or stopped gracefully, in random order.
func TestTortureTakeover(t *testing.T) {
	s := startServers(t, 3)
	r := newRig(t, "take", s)
	for i := range 3 {
		r.instance(fmt.Sprintf("b%d", i)).start()
	}
	w := r.watchLease()
	r.flow()
	r.listed(w.holding())
	p := r.pulse()

	late, took, published := map[string][]time.Duration{}, map[string][]time.Duration{}, map[bool][]time.Duration{}
	empty := map[*instance]bool{} // those whose data directory was removed since they held the lease
	ways := []string{"killed", "frozen", "stopped"}
	for i := range *tortureTakeovers {
		if i%len(ways) == 0 {
			r.rng.Shuffle(len(ways), func(i, j int) { ways[i], ways[j] = ways[j], ways[i] })
		}
		r.wait(100*time.Millisecond, time.Second)
		how, victim := ways[i%len(ways)], w.holding()
		name := w.holder()
		struck := time.Now()
		p.reset()
		switch how {
		case "killed":
			victim.kill()
		case "frozen":
			victim.signal(syscall.SIGSTOP)
		case "stopped":
			victim.signal(syscall.SIGTERM)
		}
		if !poll(settleWithin, func() bool { return w.holder() != name }) {
			t.Fatalf("takeover %d: %s was %s, and nobody took over within %s", i, victim.name, how, settleWithin)
		}
		since, write := w.since().Sub(struck), p.slowest()
		took[how] = append(took[how], since)
		if over := since - 3*heartbeat - takeoverWrites*write; over > 0 {
			late[how] = append(late[how], over)
		}
		if !poll(settleWithin, func() bool { return !w.published().IsZero() }) {
			t.Fatalf("takeover %d: %s was %s, another took over but published nothing within %s", i, victim.name, how, settleWithin)
		}
		next, first := w.holding(), w.published().Sub(struck)
		published[empty[next]] = append(published[empty[next]], first)
		r.note("takeover %d: %s %s: %s has the lease after %s, publishes after %s, its data directory empty: %v; a write takes up to %s", i,
			victim.name, how, next.name, since.Round(time.Millisecond), first.Round(time.Millisecond), empty[next], write.Round(time.Millisecond))
		delete(empty, next)
		switch how {
		case "killed":
			r.wait(0, time.Second)
			if r.rng.IntN(2) == 0 {
				r.note("%s has lost its data directory as well", victim.name)
				if err := os.RemoveAll(victim.data); err != nil {
					t.Fatal(err)
				}
				empty[victim] = true
			}
			victim.start()
		case "frozen":
			r.wait(0, time.Second)
			victim.signal(syscall.SIGCONT)
			victim.shows(settleWithin, bridge.StateStandby)
		case "stopped":
			victim.ends()
			victim.start()
		}
		if t.Failed() {
			return
		}
	}
	r.settle()
	for _, b := range r.instances {
		b.shows(settleWithin, bridge.StateHealthy, bridge.StateStandby)
	}
	for _, how := range slices.Sorted(slices.Values(ways)) {
		median, worst := spread(took[how])
		t.Logf("%-7s %d takeovers: lease after %s in the median, %s at worst", how, len(took[how]), median, worst)
		if how == "stopped" || len(late[how]) == 0 {
			continue
		}
		t.Logf("%-7s %d of them took longer than three heartbeats (%s) and %d writes, by %v", how, len(late[how]), 3*heartbeat, takeoverWrites, late[how])
		if 10*len(late[how]) > len(took[how])+9 || slices.Max(late[how]) > takeoverSlack {
			t.Errorf("%s: too many takeovers, or too much, behind three heartbeats and %d writes: of %d these: %v", how, takeoverWrites, len(took[how]), late[how])
		}
	}
	for _, is := range []bool{false, true} {
		median, worst := spread(published[is])
		t.Logf("%d takeovers: first message after %s in the median, %s at worst; heartbeat %s; by an instance with an empty data directory: %v",
			len(published[is]), median, worst, heartbeat, is)
	}
}

// TestTortureFleet: three instances, and everything that may befall them, their nodes and their wires.
func TestTortureFleet(t *testing.T) {
	t.Parallel()
	s := startServers(t, 3)
	r := newRig(t, "fleet", s)
	for i := range 3 {
		r.instance(fmt.Sprintf("b%d", i)).start()
	}
	w := r.watchLease()
	r.flow()
	r.listed(w.holding())
	holder := func(*rig) *process { return &w.holding().process }
	any := func(r *rig) *process { return &r.instances[r.rng.IntN(3)].process }
	faults := []fault{
		killed("holder", holder, 3*time.Second), frozen("holder", holder, 5*time.Second), killed("instance", any, 3*time.Second),
		killed("node", anyNode, 3*time.Second), frozen("leader", theLeader, 12*time.Second),
		both("holder and leader killed", 2*time.Second, holder, theLeader),
		wired("holder cut off from NATS", 5*time.Second, func(*rig) []*wire { return w.holding().nats }, cut),
		wired("holder's NATS swallows", 8*time.Second, func(*rig) []*wire { return w.holding().nats }, swallow),
		wired("holder does not hear NATS", 8*time.Second, func(*rig) []*wire { return w.holding().nats }, deafen),
		wired("holder cut off from the API", 3*time.Second, func(*rig) []*wire { return []*wire{w.holding().api} }, cut),
		wired("leader cut off from the other nodes", 12*time.Second, routesOf(theLeader), swallow),
		every("all nodes killed", 2*time.Second, (*process).kill, (*process).start),
		{name: "bucket deleted", strike: func(r *rig) func() {
			if err := s.js.DeleteKeyValue(t.Context(), bridge.Bucket); err != nil {
				r.note("delete bucket: %v", err)
			}
			return func() {}
		}},
	}
	r.suffer(*tortureRounds*len(faults), faults...)
	r.settle()
	for _, b := range r.instances {
		b.shows(settleWithin, bridge.StateHealthy, bridge.StateStandby)
	}
}

// pulse writes to the cluster all the time, to know how long that takes on the machine as it is.
type pulse struct {
	mu    sync.Mutex
	worst time.Duration
	sent  time.Time // when the write in hand was
}

func (r *rig) pulse() *pulse {
	r.Helper()
	js := r.servers.js
	if _, err := js.CreateStream(r.Context(), jetstream.StreamConfig{Name: "PULSE", Subjects: []string{"pulse"}, MaxMsgs: 1, Replicas: len(r.servers.nodes)}); err != nil {
		r.Fatal(err)
	}
	p := &pulse{sent: time.Now()}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			p.beat(time.Now())
			js.Publish(context.Background(), "pulse", nil) // one that fails takes as long as it does
			p.beat(time.Time{})
			select {
			case <-tick.C:
			case <-done:
				return
			}
		}
	}()
	r.Cleanup(func() { close(done); <-ended })
	return p
}

// beat takes in that a write begins; a zero time: that it has ended.
func (p *pulse) beat(begins time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if begins.IsZero() {
		p.worst = max(p.worst, time.Since(p.sent))
	}
	p.sent = begins
}

func (p *pulse) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.worst = 0
}

// slowest is how long a write has taken at worst since reset, the one in hand included.
func (p *pulse) slowest() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sent.IsZero() {
		return p.worst
	}
	return max(p.worst, time.Since(p.sent))
}

// leaseWatch knows who holds the feed, from the bucket.
type leaseWatch struct {
	r *rig

	mu    sync.Mutex
	name  string
	taken time.Time // when name became the holder
	first time.Time // message after that
}

// watchLease watches the feed's lease, and its messages as they are published.
func (r *rig) watchLease() *leaseWatch {
	r.Helper()
	w := &leaseWatch{r: r}
	nc := r.servers.js.Conn()
	key := "$KV." + bridge.Bucket + ".feed." + r.tenant + ".clockings"
	for subject, see := range map[string]nats.MsgHandler{key: w.lease, bridge.SubjectPrefix(r.tenant, "clockings") + ".*": w.message} {
		sub, err := nc.Subscribe(subject, see)
		if err != nil {
			r.Fatal(err)
		}
		r.Cleanup(func() { sub.Unsubscribe() })
	}
	return w
}

func (w *leaseWatch) lease(msg *nats.Msg) {
	var record struct{ Name string }
	json.Unmarshal(msg.Data, &record) // a deletion has no data
	w.mu.Lock()
	defer w.mu.Unlock()
	if record.Name != "" && record.Name != w.name {
		w.name, w.taken, w.first = record.Name, time.Now(), time.Time{}
	}
}

func (w *leaseWatch) message(*nats.Msg) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.first.IsZero() {
		w.first = time.Now()
	}
}

func (w *leaseWatch) holder() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.name
}

func (w *leaseWatch) since() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.taken
}

func (w *leaseWatch) published() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.first
}

// holding is the instance that holds the lease; a holder is called by its host and process id.
func (w *leaseWatch) holding() *instance {
	w.r.Helper()
	var found *instance
	ok := poll(settleWithin, func() bool {
		for _, b := range w.r.instances {
			if b.running() && strings.HasSuffix(w.holder(), fmt.Sprintf(":%d", b.cmd.Process.Pid)) {
				found = b
			}
		}
		return found != nil
	})
	if !ok {
		w.r.Fatalf("the lease names %q, which is none of the instances", w.holder())
	}
	return found
}

func spread(all []time.Duration) (median, worst time.Duration) {
	if len(all) == 0 {
		return 0, 0
	}
	sorted := slices.Sorted(slices.Values(all))
	return sorted[len(sorted)/2].Round(time.Millisecond), sorted[len(sorted)-1].Round(time.Millisecond)
}
