//go:build torture

package main

import (
	"encoding/json"
	"net/http"
	"syscall"
	"testing"
	"time"

	"clockbridge/bridge"
)

// TestTortureCluster: one bridge, a stream of three replicas, one kind of fault of a process at a time, and all of them.
func TestTortureCluster(t *testing.T) {
	t.Parallel()
	s := startServers(t, 3)
	s.sufferEach(t, "c", nodeFaults())
}

// TestTorturePartition: the same with faults of the wires between the nodes, and to them.
func TestTorturePartition(t *testing.T) {
	t.Parallel()
	s := startServers(t, 3)
	s.sufferEach(t, "p", routeFaults())
}

func nodeFaults() map[string][]fault {
	return map[string][]fault{
		"node killed":      {killed("node", anyNode, 3*time.Second)},
		"leader killed":    {killed("leader", theLeader, 3*time.Second)},
		"all nodes killed": {every("all nodes killed", 2*time.Second, (*process).kill, (*process).start)},
		"node frozen":      {frozen("node", anyNode, 8*time.Second)},
		"leader frozen":    {frozen("leader", theLeader, 12*time.Second)}, // it takes up to 9 s until another one is elected
		"all nodes frozen": {every("all nodes frozen", 8*time.Second, signalling(syscall.SIGSTOP), signalling(syscall.SIGCONT))},
		"bridge's node":    {killed("bridge's node", bridgesNode, 3*time.Second), frozen("bridge's node", bridgesNode, 12*time.Second)},
		"leader steps down": {{name: "leader steps down", hold: 500 * time.Millisecond, times: 4, strike: func(r *rig) func() {
			if _, err := r.servers.js.Conn().Request("$JS.API.STREAM.LEADER.STEPDOWN."+r.stream, nil, 2*time.Second); err != nil {
				r.note("step down: %v", err)
			}
			return func() {}
		}}},
		"bridge and leader killed": {both("bridge and leader killed", 2*time.Second, theInstance, theLeader)},
	}
}

func routeFaults() map[string][]fault {
	return map[string][]fault{
		"nodes apart": {
			wired("leader cut off from the other nodes", 15*time.Second, routesOf(theLeader), swallow),
			wired("bridge's node cut off from the other nodes", 15*time.Second, routesOf(bridgesNode), swallow),
			wired("node's routes end", 5*time.Second, routesOf(anyNode), cut),
			wired("no node reaches another", 8*time.Second, allRoutes, cut),
		},
		"bridge apart": {
			wired("bridge cut off from its node", 8*time.Second, bridgesWire, swallow),
			wired("bridge does not hear its node", 8*time.Second, bridgesWire, deafen),
		},
		"routes slow": {wired("routes delayed", 6*time.Second, allRoutes, slow)},
	}
}

// TestTortureNoQuorum: while a stream of three replicas has only one, the feed says that it waits.
func TestTortureNoQuorum(t *testing.T) {
	t.Parallel()
	s := startServers(t, 3)
	r, b := s.following(t, "quorum")
	for range *tortureRounds {
		left := r.rng.IntN(3)
		r.note("only %s is left", s.nodes[left].name)
		for i, n := range s.nodes {
			if i != left {
				n.kill()
			}
		}
		b.shows(time.Minute, bridge.StateRetrying)
		r.note("the bridge says: %s", b.status().Error)
		for i, n := range s.nodes {
			if i != left {
				n.start()
			}
		}
		b.shows(settleWithin, bridge.StateHealthy)
	}
	r.settle()
}

// TestTortureVanishedNode freezes the node that the bridge is connected to, for as long as it takes: the feed must go on by way of
// another node, although nothing ends its connection.
func TestTortureVanishedNode(t *testing.T) {
	t.Parallel()
	s := startServers(t, 3)
	r, b := s.following(t, "vanished")
	for range *tortureRounds {
		n := bridgesNode(r)
		r.note("%s, to which the bridge is connected, is frozen", n.name)
		n.signal(syscall.SIGSTOP)
		struck := time.Now()
		b.shows(time.Minute, bridge.StateRetrying)
		b.shows(time.Minute, bridge.StateHealthy)
		r.grown(b)
		r.note("the feed went on after %s", time.Since(struck).Round(time.Millisecond))
		n.signal(syscall.SIGCONT)
		s.healthy(t, 2*time.Minute)
	}
	r.settle()
}

// TestTortureClusterDisk: what befalls the disk of one of three nodes must cost nothing.
func TestTortureClusterDisk(t *testing.T) {
	t.Parallel()
	s := newServers(t, 3)
	small := s.mount(s.nodes[1].store, "128M")
	s.start()
	r, b := s.following(t, "cdisk")
	for range *tortureRounds {
		small.fill()
		r.note("the disk of n1 is full; %s leads", s.leader(r.stream).name)
		r.wait(2*time.Second, 5*time.Second)
		small.free()
		s.nodes[1].stop()
		s.nodes[1].start()
		s.healthy(t, 2*time.Minute)
		b.shows(settleWithin, bridge.StateHealthy)
		r.grown(b)
	}
	r.settle()
}

func anyNode(r *rig) *process   { return &r.servers.nodes[r.rng.IntN(len(r.servers.nodes))].process }
func theLeader(r *rig) *process { return &r.servers.leader(r.stream).process }

// bridgesNode is the node that the bridge is connected to.
func bridgesNode(r *rig) *process { return &r.servers.nodes[r.connected()].process }

func bridgesWire(r *rig) []*wire { return []*wire{r.instances[0].nats[r.connected()]} }

// connected is the index of the node that the bridge is connected to; that of the first if none says so.
func (r *rig) connected() int {
	client := http.Client{Timeout: time.Second}
	for i, n := range r.servers.nodes {
		resp, err := client.Get("http://" + n.monitor + "/connz")
		if err != nil {
			continue
		}
		var page struct {
			Connections []struct{ Name string }
		}
		err = json.NewDecoder(resp.Body).Decode(&page)
		resp.Body.Close()
		for _, c := range page.Connections {
			if err == nil && c.Name == "clockbridge" {
				return i
			}
		}
	}
	return 0
}

// routesOf are the wires between a node and all others.
func routesOf(p func(r *rig) *process) func(r *rig) []*wire {
	return func(r *rig) (wires []*wire) {
		name := p(r).name
		r.note("it is %s", name)
		for ends, w := range r.servers.wires {
			if r.servers.nodes[ends[0]].name == name || r.servers.nodes[ends[1]].name == name {
				wires = append(wires, w)
			}
		}
		return wires
	}
}

func allRoutes(r *rig) (wires []*wire) {
	for _, w := range r.servers.wires {
		wires = append(wires, w)
	}
	return wires
}

// every makes a fault of what befalls all nodes at once.
func every(name string, hold time.Duration, harm, mend func(*process)) fault {
	return fault{name: name, hold: hold, strike: func(r *rig) func() {
		for _, n := range r.servers.nodes {
			harm(&n.process)
		}
		return func() {
			for _, n := range r.servers.nodes {
				mend(&n.process)
			}
		}
	}}
}

func signalling(sig syscall.Signal) func(*process) { return func(p *process) { p.signal(sig) } }

// both makes a fault of two processes that are killed at once.
func both(name string, hold time.Duration, one, other func(r *rig) *process) fault {
	return fault{name: name, hold: hold, times: 2, strike: func(r *rig) func() {
		a, b := one(r), other(r)
		a.kill()
		b.kill()
		return func() { a.start(); b.start() }
	}}
}
