//go:build torture

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"clockbridge/bridge"
)

// TestTortureLostTail cuts the stream's last block while the server is down, as a power cut with lazy fsync does. With its
// index the server comes back with the old last position and a hole in front of it, without it with a smaller one.
func TestTortureLostTail(t *testing.T) {
	t.Parallel()
	s := startServers(t, 1)
	for i, index := range []string{"with index", "without index"} {
		for j, running := range []string{"bridge running", "bridge stopped"} {
			t.Run(index+", "+running, func(t *testing.T) {
				r, b := s.following(t, fmt.Sprintf("tail%d%d", i, j))
				for range *tortureRounds {
					r.wait(500*time.Millisecond, 2*time.Second)
					r.lose(b, running == "bridge running", func() { r.cutTail(s.nodes[0], index == "with index") })
				}
				r.settle()
			})
		}
	}
}

// TestTortureOldBackup puts an earlier copy of the stream in place of the present one.
func TestTortureOldBackup(t *testing.T) {
	t.Parallel()
	s := startServers(t, 1)
	n := s.nodes[0]
	rows := []struct {
		name    string
		running bool
		many    bool // more than are asked for one by one are lost
		store   bool // the bridge's own file goes back in time as well
		whole   bool // so do the leases: all that JetStream keeps is as old
	}{
		{name: "few lost, bridge running", running: true},
		{name: "many lost, bridge stopped", many: true},
		{name: "all of JetStream, bridge running", running: true, whole: true},
		{name: "all of JetStream, bridge stopped", whole: true},
		{name: "bridge's file as old", store: true},
		{name: "bridge's file and all of JetStream as old", store: true, whole: true},
	}
	for i, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			r, b := s.following(t, fmt.Sprintf("backup%d", i))
			for range *tortureRounds {
				r.wait(0, time.Second)
				b.stop() // so that both copies are of one moment
				n.stop()
				kept := r.streamDir(n)
				if row.whole {
					kept = n.store
				}
				backup, fileBackup := filepath.Join(r.dir, "jetstream"), filepath.Join(r.dir, "clockbridge.db")
				r.copyTo(backup, kept)
				r.copyTo(fileBackup, b.file())
				n.start()
				s.healthy(t, time.Minute)
				b.start()
				b.shows(settleWithin, bridge.StateHealthy)
				if row.many {
					r.sim.Touch("clockings", 3000, 350)
				}
				r.wait(time.Second, 2*time.Second)
				r.grown(b)
				restore := func() {
					r.copyTo(kept, backup)
					if row.store {
						r.copyTo(b.file(), fileBackup)
					}
				}
				if row.store {
					// Nothing is lost that the file knows of: catching up and the next page do it all.
					r.down(b, false, restore)
					b.shows(settleWithin, bridge.StateHealthy)
				} else {
					r.lose(b, row.running, restore)
				}
			}
			r.settle()
		})
	}
}

// TestTortureClusterTail cuts the last block of the leader, which the other nodes repair, or of all of three nodes. From the
// latter nats-server 2.15.2 mostly does not recover: no replica can become the leader. The feed says that it waits, and when
// the stream is deleted by hand, makes and fills another.
func TestTortureClusterTail(t *testing.T) {
	t.Parallel()
	s := startServers(t, 3)
	for i, row := range []struct {
		name  string
		nodes func(r *rig) []*node
		index bool
	}{
		{"leader, with index", func(r *rig) []*node { return []*node{s.leader(r.stream)} }, true},
		{"leader, without index", func(r *rig) []*node { return []*node{s.leader(r.stream)} }, false},
		{"all nodes, with index", func(*rig) []*node { return s.nodes }, true},
		{"all nodes, without index", func(*rig) []*node { return s.nodes }, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			r, b := s.following(t, fmt.Sprintf("ctail%d", i))
			for range *tortureRounds {
				r.wait(500*time.Millisecond, 2*time.Second)
				nodes := row.nodes(r)
				for _, n := range nodes {
					n.stop()
				}
				for _, n := range nodes {
					r.cutTail(n, row.index)
				}
				for _, n := range nodes {
					n.start()
				}
				if len(nodes) == 1 {
					s.healthy(t, 2*time.Minute)
				} else if sick := s.sickAfter(20 * time.Second); sick != "" && !r.waits(b) {
					r.note("the cluster has recovered late: %s", sick)
				} else if sick != "" {
					r.note("the cluster does not recover, the stream is deleted: %s", sick)
					if err := s.js.DeleteStream(t.Context(), r.stream); err != nil {
						r.Fatalf("delete stream: %v", err)
					}
				}
				b.shows(settleWithin, bridge.StateHealthy)
				r.grown(b)
				r.note("%d records lost, as the bridge sees it", b.status().Lost)
			}
			r.settle()
		})
	}
}

// waits waits until the feed says that it waits, or every node is healthy after all, and reports which.
func (r *rig) waits(b *instance) bool {
	r.Helper()
	waits, healthy := false, false
	poll(settleWithin, func() bool {
		waits, healthy = b.status().State == bridge.StateRetrying, r.servers.sickAfter(0) == ""
		return waits || healthy
	})
	if !waits && !healthy {
		r.Fatalf("%s shows %q while the cluster does not recover; see %s", b.name, b.status().State, b.log)
	}
	return !healthy
}

// TestTortureStoreFile takes the bridge's file away, or puts an earlier one in its place.
func TestTortureStoreFile(t *testing.T) {
	t.Parallel()
	s := startServers(t, 1)
	for i, what := range []string{"deleted", "yesterday's"} {
		t.Run(what, func(t *testing.T) {
			r, b := s.following(t, fmt.Sprintf("file%d", i))
			backup := filepath.Join(r.dir, "yesterday.db")
			for range *tortureRounds {
				b.stop()
				r.copyTo(backup, b.file())
				b.start()
				b.shows(settleWithin, bridge.StateHealthy)
				r.wait(time.Second, 2*time.Second)
				r.grown(b)
				b.kill()
				if what == "deleted" {
					if err := os.Remove(b.file()); err != nil {
						r.Fatal(err)
					}
				} else {
					r.copyTo(b.file(), backup)
				}
				r.note("the bridge's file is %s", what)
				b.start()
				b.shows(settleWithin, bridge.StateHealthy)
			}
			r.settle()
		})
	}
}

// TestTortureStoreDiskFull fills the disk under the bridge's file. The process must say so and end; with space it goes on.
func TestTortureStoreDiskFull(t *testing.T) {
	t.Parallel()
	s := startServers(t, 1)
	for i, when := range []string{"from the start", "in the first listing", "in mid-stream"} {
		t.Run(when, func(t *testing.T) {
			r := newRig(t, fmt.Sprintf("full%d", i), s)
			b := r.instance("bridge")
			disk := r.mount(b.data, "64M")
			switch when {
			case "from the start":
				disk.fill()
				b.start()
			case "in the first listing":
				b.start()
				r.grown(b)
				disk.fill()
			case "in mid-stream":
				b.start()
				r.listed(b)
				disk.fill()
			}
			r.flow()
			for round := range *tortureRounds {
				if round > 0 {
					disk.fill()
				}
				// New records need new pages, sooner or later.
				code, ended := 0, false
				poll(time.Minute, func() bool {
					r.sim.Fill("clockings", 500, 350)
					code, ended = b.exit(100 * time.Millisecond)
					return ended
				})
				said := lastLine(b.said())
				if !ended || code != exitFailed || !strings.Contains(said, "no space left on device") {
					r.Fatalf("with a full disk: ended %v with code %d, want %d and a word on the disk; see %s", ended, code, exitFailed, b.log)
				}
				r.note("ended with %d: %s", code, said)
				disk.free()
				b.start()
				b.shows(settleWithin, bridge.StateHealthy)
			}
			r.settle()
		})
	}
}

// TestTortureStreamDiskFull fills the disk under JetStream. The feed must say that it waits; with space it goes on.
func TestTortureStreamDiskFull(t *testing.T) {
	t.Parallel()
	s := newServers(t, 1)
	n := s.nodes[0]
	disk := s.mount(n.store, "128M")
	s.start()
	r, b := s.following(t, "jsfull")
	for range *tortureRounds {
		r.wait(0, time.Second)
		disk.fill()
		r.note("JetStream's disk is full")
		b.shows(time.Minute, bridge.StateRetrying)
		r.note("the bridge says: %s", b.status().Error)
		r.wait(0, 3*time.Second)
		disk.free()
		r.note("with space again, the bridge goes on by itself: %v", poll(3*time.Second, func() bool { return b.status().State == bridge.StateHealthy }))
		// A server whose write failed refuses that stream until it is started again.
		n.stop()
		n.start()
		s.healthy(t, time.Minute)
		b.shows(settleWithin, bridge.StateHealthy)
	}
	r.settle()
}

// following is a rig whose bridge has read the listing, while changes flow.
func (s *cluster) following(t *testing.T, tenant string) (*rig, *instance) {
	t.Helper()
	r := newRig(t, tenant, s)
	b := r.instance("bridge")
	b.start()
	r.flow()
	r.listed(b)
	return r, b
}

// listed waits until the feed has read the listing.
func (r *rig) listed(b *instance) {
	r.Helper()
	if !poll(settleWithin, func() bool { return b.status().Phase == bridge.OriginDelta }) {
		r.Fatalf("the listing did not end within %s; see %s", settleWithin, b.log)
	}
}

// grown waits until the feed has published something more.
func (r *rig) grown(b *instance) {
	r.Helper()
	was := b.status().Position
	if !poll(settleWithin, func() bool { return b.status().Position > was }) {
		r.Fatalf("nothing was published behind %d within %s; see %s", was, settleWithin, b.log)
	}
}

// lose stops the server, and the bridge too unless it is to run on, does harm to what the server keeps, and starts again.
// The bridge must notice that messages are lost.
func (r *rig) lose(b *instance, running bool, harm func()) {
	r.Helper()
	lost := b.status().Lost
	if !running {
		lost = 0 // it counts from its start
	}
	r.down(b, running, harm)
	if !poll(settleWithin, func() bool { return b.status().Lost > lost }) {
		r.Fatalf("the bridge did not notice that the stream lost messages; see %s", b.log)
	}
	r.note("noticed: %d records lost", b.status().Lost-lost)
	b.shows(settleWithin, bridge.StateHealthy)
}

// down does something while the server is down, and the bridge too unless it is to run on.
func (r *rig) down(b *instance, running bool, do func()) {
	r.Helper()
	n := r.servers.nodes[0]
	if !running {
		b.stop()
	}
	n.stop()
	do()
	n.start()
	r.servers.healthy(r, time.Minute)
	if !running {
		b.start()
	}
}

// cutTail takes up to half of the stream's last block away, most likely in the middle of a message.
func (r *rig) cutTail(n *node, index bool) {
	r.Helper()
	dir := filepath.Join(r.streamDir(n), "msgs")
	last, size, number := "", int64(0), -1
	blocks, err := filepath.Glob(filepath.Join(dir, "*.blk"))
	if err != nil {
		r.Fatal(err)
	}
	for _, block := range blocks {
		info, err := os.Stat(block)
		if err != nil {
			r.Fatal(err)
		}
		var i int
		if fmt.Sscanf(filepath.Base(block), "%d.blk", &i); i > number && info.Size() > 0 {
			last, size, number = block, info.Size(), i
		}
	}
	if last == "" {
		r.Fatalf("no message block in %s", dir)
	}
	to := size/2 + r.rng.Int64N(size/2-1000)
	if err := os.Truncate(last, to); err != nil {
		r.Fatal(err)
	}
	if !index {
		if err := os.Remove(filepath.Join(dir, "index.db")); err != nil && !errors.Is(err, os.ErrNotExist) {
			r.Fatal(err)
		}
	}
	r.note("%s cut from %d to %d bytes", last, size, to)
}

// streamDir is where a node keeps the rig's stream.
func (r *rig) streamDir(n *node) string {
	return filepath.Join(n.store, "jetstream", "$G", "streams", r.stream)
}

func (b *instance) file() string { return filepath.Join(b.data, "clockbridge.db") }

// copyTo puts a copy of a file, or of a directory with all that is in it, in the place of another.
func (r *rig) copyTo(to, from string) {
	r.Helper()
	if err := os.RemoveAll(to); err != nil {
		r.Fatal(err)
	}
	info, err := os.Stat(from)
	switch {
	case err != nil:
	case info.IsDir():
		err = os.CopyFS(to, os.DirFS(from))
	default:
		var data []byte
		if data, err = os.ReadFile(from); err == nil {
			err = os.WriteFile(to, data, 0o600)
		}
	}
	if err != nil {
		r.Fatal(err)
	}
}

// disk is a small file system of its own.
type disk struct {
	t       *testing.T
	dir     string
	ballast string
}

// mount puts a small disk at dir, which lies in the place and leaves with it.
func (p *place) mount(dir, size string) *disk {
	p.t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		p.t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		p.t.Fatalf("mount a small disk (this needs root): %v", err)
	}
	d := &disk{t: p.t, dir: dir, ballast: filepath.Join(dir, "ballast")}
	p.disks = append(p.disks, d)
	return d
}

// unmount takes the disk away; what a failed run has left on it is copied first.
func (d *disk) unmount() {
	os.Remove(d.ballast)
	if d.t.Failed() {
		if err := os.CopyFS(d.dir+".kept", os.DirFS(d.dir)); err != nil {
			d.t.Errorf("keep %s: %v", d.dir, err)
		}
	}
	if err := syscall.Unmount(d.dir, 0); err != nil {
		d.t.Errorf("unmount %s: %v", d.dir, err)
	}
}

// fill leaves no byte free.
func (d *disk) fill() {
	d.t.Helper()
	f, err := os.OpenFile(d.ballast, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	for _, size := range []int{1 << 20, 4096, 1} {
		piece := make([]byte, size)
		for err = nil; err == nil; {
			_, err = f.Write(piece)
		}
		if !errors.Is(err, syscall.ENOSPC) {
			d.t.Fatal(err)
		}
	}
}

func (d *disk) free() {
	d.t.Helper()
	if err := os.Remove(d.ballast); err != nil {
		d.t.Fatal(err)
	}
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}
