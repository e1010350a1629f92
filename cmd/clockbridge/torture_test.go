//go:build torture

// The torture suite: real processes, real faults. See README, "Tortured".
//
//	go test -tags torture ./cmd/clockbridge -run Torture -nats-server=/path/to/nats-server
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"clockbridge/bridge"
	"clockbridge/protime/protimetest"
)

var (
	natsServer    = flag.String("nats-server", "", "the nats-server binary that the torture suite runs")
	tortureSeed   = flag.Uint64("torture.seed", 0, "seed of the torture suite; 0 = a new one, which is printed")
	tortureRounds = flag.Int("torture.rounds", 1, "how often each fault of the torture suite strikes")
	tortureDir    = flag.String("torture.dir", "", "where a failing run leaves what is needed to see why; \"\" = the system's temporary directory")
	tortureKeep   = flag.Bool("torture.keep", false, "leave what a run leaves behind even if it passes")
)

// rig is one run: an API, JetStream, instances of clockbridge between them, and what happens to them. Every random choice
// comes from its seed; when exactly it meets the processes does not.
type rig struct {
	*testing.T
	*place
	rng       *rand.Rand
	began     time.Time
	events    *os.File
	tenant    string
	stream    string
	sim       *protimetest.Server
	work      *protimetest.Workload
	servers   *cluster
	instances []*instance
	endFlow   func()
}

// newRig starts an API for a tenant. The servers may be shared with other rigs of other tenants, one after the other.
func newRig(t *testing.T, tenant string, s *cluster) *rig {
	t.Helper()
	seed := *tortureSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	r := &rig{
		T: t, place: newPlace(t), began: time.Now(), tenant: tenant, stream: bridge.StreamName(tenant, "clockings"), servers: s,
		rng: rand.New(rand.NewPCG(seed, hash(t.Name()))), endFlow: func() {},
	}
	var err error
	if r.events, err = os.Create(filepath.Join(r.dir, "events.log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.events.Close() })
	r.note("seed %d: replay with -run '^%s$' -torture.seed=%d -torture.rounds=%d", seed, t.Name(), seed, *tortureRounds)
	r.sim = protimetest.NewServer(protimetest.Options{Tenant: tenant, ClientSecret: secret, Seed: seed, PageSize: 200})
	t.Cleanup(r.sim.Close)
	r.work = protimetest.NewWorkload(r.sim, tenant, protimetest.WorkloadOptions{People: 30, Seed: seed})
	r.sim.Fill("clockings", 10_000, 350) // a listing that takes long enough to be disturbed
	r.work.Backfill(20)
	t.Cleanup(r.close)
	return r
}

func hash(s string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(s))
	return h.Sum64()
}

// place is a directory that stays if the test fails, and the disks that are mounted in it.
type place struct {
	t     *testing.T
	dir   string
	disks []*disk
}

// newPlace must come before everything that uses the place, so that it is left last.
func newPlace(t *testing.T) *place {
	t.Helper()
	dir, err := os.MkdirTemp(*tortureDir, "clockbridge-torture-")
	if err != nil {
		t.Fatal(err)
	}
	p := &place{t: t, dir: dir}
	t.Cleanup(p.leave)
	return p
}

func (p *place) leave() {
	for _, d := range p.disks {
		d.unmount()
	}
	if p.t.Failed() || *tortureKeep {
		p.t.Logf("what happened is in %s", p.dir)
		return
	}
	if err := os.RemoveAll(p.dir); err != nil {
		p.t.Errorf("remove %s: %v", p.dir, err)
	}
}

// note writes down what happens, and when.
func (r *rig) note(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	fmt.Fprintf(r.events, "%s %8.3f %s\n", time.Now().UTC().Format(time.RFC3339Nano), time.Since(r.began).Seconds(), line)
	r.Log(line)
}

// wait lets a random time between least and most pass: how long a fault lasts.
func (r *rig) wait(least, most time.Duration) {
	<-time.After(least + time.Duration(r.rng.Int64N(int64(most-least)+1)))
}

// flow lets the tenant change, by single records and now and then by hundreds at once, until settle.
func (r *rig) flow() {
	done, ended := make(chan struct{}), make(chan struct{})
	rng := rand.New(rand.NewPCG(r.rng.Uint64(), 2))
	go func() {
		defer close(ended)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			for range rng.IntN(4) {
				r.work.Step()
			}
			if rng.IntN(300) == 0 {
				r.sim.Touch("clockings", 200+rng.IntN(1500), 350)
			}
		}
	}()
	r.endFlow = sync.OnceFunc(func() { close(done); <-ended })
	r.Cleanup(r.endFlow)
}

// settleWithin is how long the stream may take to hold everything after the last fault: the longest pause between two
// tries is a minute.
const settleWithin = 100 * time.Second

// settle ends the flow and waits until the stream is what the API holds. What stands there twice or out of order stays, so
// it fails at once.
func (r *rig) settle() {
	r.Helper()
	r.endFlow()
	began := time.Now()
	truth := r.sim.Truth("clockings")
	var v verdict
	var err error
	exact := pollEvery(250*time.Millisecond, settleWithin, func() bool { // a judgement reads the whole stream
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		v, err = judge(ctx, r.servers.js, r.stream, truth)
		return err == nil && (v.exact() || v.duplicates+v.disorder > 0)
	})
	switch {
	case err != nil:
		r.Fatalf("judge %s: %v", r.stream, err)
	case !exact || !v.exact():
		r.Fatalf("%s: %+v, want nothing missing, twice or out of order", r.stream, v)
	}
	r.note("exact after %s: %d messages of %d records", time.Since(began).Round(time.Millisecond), v.changes, len(truth))
}

// close ends what runs and says what must hold at the end of every run. It leaves what is needed to see why it does not.
func (r *rig) close() {
	for _, b := range r.instances {
		for _, w := range append(b.nats, b.api) {
			w.heal()
		}
		if b.running() {
			b.signal(syscall.SIGCONT)
			b.stop()
		}
		text := b.said()
		if strings.Contains(text, secret) || strings.Contains(text, "Bearer ") {
			r.Errorf("%s shows a secret", b.log)
		}
		if m := crashRE.FindString(text); m != "" {
			r.Errorf("%s: %s", b.log, m)
		}
	}
	if r.Failed() {
		r.dump()
	}
}

var crashRE = regexp.MustCompile(`(?m)^(panic:|fatal error:|unexpected fault|WARNING: DATA RACE).*`)

// dump writes down what the stream holds, where it differs from the API, and what the API was asked.
func (r *rig) dump() {
	requests := r.create("requests.log")
	for _, q := range r.sim.Requests() {
		fmt.Fprintln(requests, q.Time.Format(time.RFC3339Nano), q.Status, q.Method, q.Path, q.Query)
	}
	requests.close()

	truth := r.sim.Truth("clockings")
	j := newJudgement()
	messages := r.create("stream.ndjson")
	err := r.read(func(msg jetstream.Msg) error {
		meta, err := msg.Metadata()
		if err != nil {
			return err
		}
		j.add(read(msg))
		line, err := json.Marshal(map[string]any{"seq": meta.Sequence.Stream, "time": meta.Timestamp, "subject": msg.Subject(), "headers": msg.Headers(), "data": string(msg.Data())})
		fmt.Fprintf(messages, "%s\n", line)
		return err
	})
	messages.close()
	differences := r.create("differences.log")
	defer differences.close()
	if err != nil {
		fmt.Fprintf(differences, "the stream could not be read to its end: %v\n", err)
	}
	fmt.Fprintf(differences, "%+v\n", j.hold(truth))
	for id, rec := range truth {
		if last, known := j.last[id]; !last.is(rec, known) {
			fmt.Fprintf(differences, "record %s: API: version %s, removed %v, %s; stream: known %v, version %s, deleted %v, %s\n",
				id, rec.Version, rec.Removed, rec.Data, known, last.version, last.deleted, last.data)
		}
	}
}

type dumpFile struct {
	*bufio.Writer
	f *os.File
}

func (r *rig) create(name string) dumpFile {
	f, err := os.Create(filepath.Join(r.dir, name))
	if err != nil {
		r.Fatal(err)
	}
	return dumpFile{bufio.NewWriter(f), f}
}

func (d dumpFile) close() {
	d.Flush()
	d.f.Close()
}

// read calls each with every message of the stream.
func (r *rig) read(each func(jetstream.Msg) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	consumer, err := r.servers.js.OrderedConsumer(ctx, r.stream, jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverAllPolicy})
	if err != nil {
		return err
	}
	msgs, err := consumer.Messages()
	if err != nil {
		return err
	}
	defer msgs.Stop()
	for {
		msg, err := msgs.Next(jetstream.NextMaxWait(5 * time.Second))
		if err != nil {
			return err
		}
		if err := each(msg); err != nil {
			return err
		}
		if meta, err := msg.Metadata(); err != nil || meta.NumPending == 0 {
			return err
		}
	}
}

// fault lets something happen, and returns what ends it.
type fault struct {
	name   string
	strike func(r *rig) (heal func())
	hold   time.Duration // how long it lasts at most
	times  int           // for each of -torture.rounds; 0 = 1
}

// suffer lets faults strike, one after the other while changes flow, each at least once, and the first time for as long as
// it may. In half of the pauses the feed recovers.
func (r *rig) suffer(rounds int, faults ...fault) {
	r.Helper()
	var deck []int
	for i := range max(rounds, len(faults)) {
		if len(deck) == 0 {
			deck = r.rng.Perm(len(faults))
		}
		f := faults[deck[0]]
		deck = deck[1:]
		r.note("%s", f.name)
		heal := f.strike(r)
		if i < len(faults) {
			r.wait(f.hold, f.hold)
		} else {
			r.wait(0, f.hold)
		}
		heal()
		r.note("%s: over", f.name)
		if r.rng.IntN(2) == 0 {
			r.recovers()
		} else {
			r.wait(0, time.Second)
		}
		if r.Failed() {
			return
		}
	}
}

// recovers waits until one of the instances follows the feed, and well.
func (r *rig) recovers() {
	r.Helper()
	ok := poll(settleWithin, func() bool {
		return slices.ContainsFunc(r.instances, func(b *instance) bool { return b.status().State == bridge.StateHealthy })
	})
	if !ok {
		for _, b := range r.instances {
			s := b.status()
			r.Errorf("%s shows %q (%s) after %s; see %s", b.name, s.State, s.Error, settleWithin, b.log)
		}
	}
}

// killed makes a fault of a process that dies.
func killed(name string, p func(r *rig) *process, hold time.Duration) fault {
	return fault{name: name + " killed", hold: hold, times: 4, strike: func(r *rig) func() {
		victim := p(r)
		victim.kill()
		return victim.start
	}}
}

// frozen makes a fault of a process that stands still.
func frozen(name string, p func(r *rig) *process, hold time.Duration) fault {
	return fault{name: name + " frozen", hold: hold, strike: func(r *rig) func() {
		victim := p(r)
		victim.signal(syscall.SIGSTOP)
		return func() { victim.signal(syscall.SIGCONT) }
	}}
}

// wired makes a fault of what befalls some wires.
func wired(name string, hold time.Duration, wires func(r *rig) []*wire, harm func(r *rig, w *wire)) fault {
	return fault{name: name, hold: hold, strike: func(r *rig) func() {
		all := wires(r)
		for _, w := range all {
			harm(r, w)
		}
		return func() {
			for _, w := range all {
				w.heal()
			}
		}
	}}
}

func theInstance(r *rig) *process { return &r.instances[0].process }
func theServer(r *rig) *process   { return &r.servers.nodes[0].process }
func toAPI(r *rig) []*wire        { return []*wire{r.instances[0].api} }
func toNATS(r *rig) []*wire       { return r.instances[0].nats }

func cut(_ *rig, w *wire)     { w.cut() }
func swallow(_ *rig, w *wire) { w.swallow() }
func deafen(_ *rig, w *wire)  { w.deafen() }
func slow(r *rig, w *wire)    { w.slow(10 + r.rng.IntN(400)) }
func narrow(r *rig, w *wire)  { w.narrow(20 + r.rng.IntN(200)) }
func tear(r *rig, w *wire)    { w.tear(1000 + r.rng.IntN(100_000)) }

// apiFaults are what the API itself does wrong.
func apiFaults() []fault {
	misbehaves := func(name string, f protimetest.Fault) fault {
		return fault{name: "API: " + name, hold: 3 * time.Second, strike: func(r *rig) func() { return r.sim.Fail(f) }}
	}
	return []fault{
		misbehaves("503", protimetest.Fault{Kind: protimetest.Status, Status: 503}),
		misbehaves("429 now and then", protimetest.Fault{Kind: protimetest.Status, Status: 429, RetryAfter: "1", Chance: 0.3}),
		misbehaves("cut short", protimetest.Fault{Kind: protimetest.Cut, After: 700, Chance: 0.5}),
		misbehaves("garbage behind the page", protimetest.Fault{Kind: protimetest.Garbage, Chance: 0.5}),
		misbehaves("tokens die", protimetest.Fault{Kind: protimetest.TokenDeath, Times: 1}),
		misbehaves("delta ended", protimetest.Fault{Kind: protimetest.Gone, Times: 1}),
		misbehaves("slow", protimetest.Fault{Kind: protimetest.Slow, Delay: 500 * time.Millisecond}),
	}
}

// singleFaults are what befalls a bridge, its only nats-server, and what connects them and the API.
func singleFaults() map[string][]fault {
	return map[string][]fault{
		"bridge killed": {killed("bridge", theInstance, 500*time.Millisecond)},
		"bridge frozen": {frozen("bridge", theInstance, 3*time.Second)},
		"server killed": {killed("nats-server", theServer, time.Second)},
		"server frozen": {frozen("nats-server", theServer, 8*time.Second)}, // an append waits for 5 s
		"NATS cut off": {
			wired("NATS refuses", 3*time.Second, toNATS, cut), wired("NATS swallows", 8*time.Second, toNATS, swallow),
			wired("NATS does not answer", 8*time.Second, toNATS, deafen), wired("NATS breaks off", 2*time.Second, toNATS, tear),
		},
		"NATS slow":   {wired("NATS delayed", 6*time.Second, toNATS, slow), wired("NATS narrow", 6*time.Second, toNATS, narrow)},
		"API cut off": {wired("API refuses", 3*time.Second, toAPI, cut), wired("API swallows", 8*time.Second, toAPI, swallow), wired("API breaks off", 2*time.Second, toAPI, tear)},
		"API slow":    {wired("API delayed", 4*time.Second, toAPI, slow), wired("API narrow", 4*time.Second, toAPI, narrow)},
		"API ill":     apiFaults(),
	}
}

// TestTortureSingle: one bridge, one nats-server, one kind of fault at a time, and all of them.
func TestTortureSingle(t *testing.T) {
	t.Parallel()
	s := startServers(t, 1)
	s.sufferEach(t, "s", singleFaults())
}

// sufferEach runs a row for each kind of fault, and one for all of them.
func (s *cluster) sufferEach(t *testing.T, tenant string, rows map[string][]fault) {
	names := slices.Sorted(maps.Keys(rows))
	var all []fault
	for _, name := range names {
		all = append(all, rows[name]...)
	}
	rows["all"] = all
	for i, name := range append(names, "all") {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, fmt.Sprintf("%s%d", tenant, i), s)
			b := r.instance("bridge")
			b.start()
			r.flow()
			faults := rows[name]
			rounds := *tortureRounds * max(1, faults[0].times)
			if name == "all" {
				r.rng.Shuffle(len(faults), func(i, j int) { faults[i], faults[j] = faults[j], faults[i] })
				faults = faults[:min(8, len(faults))]
				rounds = len(faults) * *tortureRounds
			}
			r.suffer(rounds, faults...)
			r.settle()
			b.shows(settleWithin, bridge.StateHealthy)
			s.healthy(t, 2*time.Minute)
		})
	}
}
