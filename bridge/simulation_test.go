//go:debug randseednop=0

package bridge

import (
	"context"
	"flag"
	"fmt"
	"math"
	jitter "math/rand"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"clockbridge/protime/protimetest"
)

var (
	simSeeds = flag.Int("simulate.seeds", 80, "histories that TestSimulation runs")
	simSeed  = flag.Uint64("simulate.seed", 0, "run the history of this seed alone, and log it step by step")
	simFor   = flag.Duration("simulate.for", 0, "run histories of fresh seeds for so long, whatever simulate.seeds says")
)

const simTenant = "acme"

// TestSimulation runs whole weeks of what can go wrong, each drawn from a seed, in virtual time. A history is a list of
// events: changes of every kind, outages of either side for up to five days, refused tokens, bad answers, a delta that
// somebody else ends, clocks that jump, crashes between any two writes, stores that are deleted or put back, streams that
// lose what they acknowledged, frozen and cut-off processes, paused feeds, people to be forgotten; with one instance, or with several that share the feed
// through its lease. Meanwhile and at its end it is held against the promises of the package. A failing history is
// shortened before it is printed.
//
// The same seed is the same history; what happens at one and the same instant may come in another order.
func TestSimulation(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // waking up a second processor costs more than it brings
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	accessTimeUsers.Add(1)
	defer accessTimeUsers.Add(-1)
	base := ""
	if _, err := os.Stat("/dev/shm"); err == nil {
		base = "/dev/shm"
	}
	dir, err := os.MkdirTemp(base, "clockbridge-simulation-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)

	if *simSeed != 0 {
		shape, events := drawHistory(*simSeed)
		s := simulate(t, filepath.Join(dir, "s"), shape, events)
		t.Logf("seed %d: %+v", *simSeed, shape)
		if s.failure != nil {
			t.Error(s.failure)
		}
		return
	}
	first, n, began := uint64(1), 0, time.Now()
	if *simFor > 0 {
		first = rand.Uint64() >> 16 << 12 // two processes will hardly meet
	}
	failed := 0
	for ; failed < 5 && (*simFor == 0 && n < *simSeeds || *simFor > 0 && time.Since(began) < *simFor); n++ {
		seed := first + uint64(n)
		shape, events := drawHistory(seed)
		if s := simulate(t, filepath.Join(dir, "s"), shape, events); s.failure != nil {
			failed++
			t.Logf("seed %d fails, looking for a shorter history: %v", seed, s.failure)
			s = shorten(t, filepath.Join(dir, "s"), shape, events, s)
			t.Errorf("seed %d: %v\n%s\nreplay: go test ./bridge -run 'TestSimulation$' -simulate.seed=%d", seed, s.failure, s.story(), seed)
		}
	}
	took := time.Since(began)
	t.Logf("%d histories in %s (%.1f a second), first seed %d, %d failed", n, took.Round(time.Second), float64(n)/took.Seconds(), first, failed)
}

// shape is what stays the same throughout a history.
type shape struct {
	machines  int
	heartbeat time.Duration // of the fleet; 0 = one instance that follows the feed without a lease
	span      time.Duration
	poll      time.Duration
	latency   time.Duration // of every request and answer
	batches   bool          // the stream takes atomic batches
	window    time.Duration // that the filter looks back
	moody     float64       // chance of an answer 409 or 503 as long as something goes wrong
	excuse    string        // Retry-After of that
	api       protimetest.Options
}

// since is the earliest date of a walk that begins now.
func (s shape) since(now time.Time) string { return now.Add(-s.window).Format(time.DateOnly) }

func (s shape) filter(now time.Time) string { return "date ge '" + s.since(now) + "'" }

// event is one thing that happens in a history.
type event struct {
	after time.Duration // since the event before
	what  int           // index into happenings
	on    int           // machine
	dice  uint64        // seed of its details
}

// A happening is a kind of event.
type happening struct {
	name   string
	weight int
	do     func(s *simulation, m *machine, r *rand.Rand)
}

var happenings = []happening{
	{"change", 40, (*simulation).change},
	{"many changes", 1, (*simulation).manyChanges},
	{"API down", 5, (*simulation).apiOutage},
	{"tokens down", 3, (*simulation).tokenOutage},
	{"bad answers", 6, (*simulation).badAnswers},
	{"tokens die", 2, func(s *simulation, _ *machine, _ *rand.Rand) { s.api.KillTokens() }},
	{"delta ends", 2, func(s *simulation, _ *machine, _ *rand.Rand) { s.api.Expire("clockings") }},
	{"another follower", 2, (*simulation).follower},
	{"API's clock jumps", 3, (*simulation).clockJump},
	{"NATS down", 3, (*simulation).natsOutage},
	{"NATS connections cut", 2, func(s *simulation, _ *machine, _ *rand.Rand) { s.cutLinks() }},
	{"NATS restarts", 2, func(s *simulation, _ *machine, _ *rand.Rand) { s.restartNATS(func() {}) }},
	{"partition", 3, (*simulation).partition},
	{"freeze", 3, (*simulation).freeze},
	{"crash", 3, (*simulation).crash},
	{"write fails", 12, (*simulation).writeFails},
	{"stop", 2, (*simulation).stop},
	{"tail lost", 2, (*simulation).loseTail},
	{"backup of NATS", 2, (*simulation).backup},
	{"NATS restored", 1, (*simulation).restore},
	{"stream deleted", 1, (*simulation).dropStream},
	{"resync asked for", 1, func(s *simulation, m *machine, _ *rand.Rand) { s.with(m, func(p *process) { p.feed.Resync(false) }) }},
	{"pause asked for", 2, (*simulation).pauseFeed},
	{"somebody to be forgotten", 2, (*simulation).forgetPerson},
}

// drawHistory makes the history of a seed.
func drawHistory(seed uint64) (shape, []event) {
	r := rand.New(rand.NewPCG(seed, 0x73696d))
	sh := shape{
		machines: 1,
		span:     pick(r, 12*time.Hour, 3*24*time.Hour, 7*24*time.Hour, 14*24*time.Hour),
		latency:  pick(r, 0, 0, 20*time.Millisecond, 2*time.Second),
		batches:  r.IntN(3) > 0,
		window:   pick(r, 300*24*time.Hour, 300*24*time.Hour, 5*24*time.Hour),
		api: protimetest.Options{
			Seed:       seed,
			PageSize:   pick(r, 1, 7, 100),
			EmptyPages: r.IntN(4) == 0, ShuffleEveryVersion: r.IntN(2) == 0, NoRepeat: r.IntN(2) == 0, DeltaPages: r.IntN(2) == 0,
			LenientLinks: r.IntN(4) == 0, GetDeletedNotFound: r.IntN(2) == 0, DeleteMoreFields: r.IntN(2) == 0, DeleteNoVersion: r.IntN(4) == 0,
		},
		moody:  pick(r, 0, 0, 0.02),
		excuse: pick(r, "", "7", "300"),
	}
	if sh.api.ShuffleEveryVersion {
		sh.api.DeleteNoVersion = false // what has no version cannot be told to be the last of several in any order
	}
	if r.IntN(4) == 0 {
		sh.machines = 1 + r.IntN(3)
		sh.heartbeat = pick(r, 5*time.Second, 20*time.Second, time.Minute)
		sh.span = sh.heartbeat * time.Duration(60+r.IntN(120))
		sh.latency = min(sh.latency, sh.heartbeat/20)
	}
	sh.poll = sh.span / time.Duration(60+r.IntN(140))
	total := 0
	for _, h := range happenings {
		total += h.weight
	}
	events := make([]event, 15+r.IntN(45))
	gaps, sum := make([]float64, len(events)), 0.0
	for i := range gaps {
		gaps[i] = math.Exp(r.Float64() * 12) // from moments to days
		sum += gaps[i]
	}
	for i := range events {
		dice := r.IntN(total)
		what := 0
		for dice >= happenings[what].weight {
			dice -= happenings[what].weight
			what++
		}
		events[i] = event{time.Duration(gaps[i] / sum * float64(sh.span)), what, r.IntN(sh.machines), r.Uint64()}
	}
	return sh, events
}

func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

// simulation is a history under way.
type simulation struct {
	shape    shape
	dir      string
	began    time.Time
	api      *protimetest.Server
	machines []*machine
	mend     chan struct{}  // closed when nothing goes wrong any more
	over     chan struct{}  // closed at the end
	asking   sync.WaitGroup // requests that end when nothing goes wrong any more
	failure  error

	// Used by the events, one after the other.
	alive []string          // ids
	dates map[string]string // by id
	ends  map[int]func()    // of what goes wrong at present
	count int               // of those so far

	mu        sync.Mutex
	trace     []string
	natsDown  int // reasons
	srv       *server.Server
	nc        *nats.Conn     // with which the stream is looked at
	apiBad    map[int]string // how the API fails, by reason
	tokenBad  map[int]string
	term      uint64               // of the newest lease
	holder    string               // that has it
	changed   map[string]time.Time // when each record last changed, or was lost by the stream
	stored    map[string]message   // last message of each record that was seen to be acknowledged
	disturbed time.Time            // when a process last came or went, or was frozen or cut off
	reached   uint64               // highest position of a checkpoint
	owed      bool                 // a loss was made that must be reported
	lostLast  bool                 // the last message of a record is part of it
	losses    int
}

// simulate runs a history in a bubble of its own.
func simulate(t *testing.T, dir string, sh shape, events []event) *simulation {
	// nats.go keeps timers in a pool for all connections; two collections empty it, so that none reaches the next bubble.
	runtime.GC()
	runtime.GC()
	jitter.Seed(int64(sh.api.Seed)) //nolint:staticcheck // it is that of the engine's pauses, to be the same in a replay
	s := &simulation{
		shape: sh, dir: dir, ends: map[int]func(){}, apiBad: map[int]string{}, tokenBad: map[int]string{},
		changed: map[string]time.Time{}, stored: map[string]message{}, dates: map[string]string{},
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	// Time stands still while a goroutine is busy, or waits for a lock: nothing inside the bubble can notice that.
	defer time.AfterFunc(5*time.Minute, func() {
		debug.SetTraceback("all")
		panic(fmt.Sprintf("the history of seed %d does not end", sh.api.Seed))
	}).Stop()
	synctest.Test(t, func(*testing.T) { s.run(events) })
	return s
}

func (s *simulation) run(events []event) {
	s.began = time.Now()
	s.mend, s.over = make(chan struct{}), make(chan struct{})
	s.api = protimetest.New(s.shape.api)
	defer s.api.Close()
	stopClock := s.showTime()
	defer stopClock()
	if err := s.startNATS(); err != nil {
		s.fail("%v", err)
		return
	}
	defer s.stopNATS()
	if !s.shape.batches {
		config := streamConfig(StreamName(simTenant, "clockings"), SubjectPrefix(simTenant, "clockings"), 1)
		config.AllowAtomicPublish = false
		s.admin(func(js jetstream.JetStream) error {
			_, err := js.CreateStream(context.Background(), config)
			return err
		})
	}
	for i := range s.shape.machines {
		name := string(rune('A' + i))
		m := &machine{s: s, name: name, path: filepath.Join(s.dir, name, "bridge.db"), orders: make(chan order, 1), gone: make(chan struct{})}
		s.machines = append(s.machines, m)
		go m.live()
	}
	if s.shape.moody > 0 {
		for _, status := range []int{http.StatusConflict, http.StatusServiceUnavailable} {
			s.until(s.shape.span, s.api.Fail(protimetest.Fault{Kind: protimetest.Status, Status: status, RetryAfter: s.shape.excuse, Chance: s.shape.moody}))
		}
	}
	for _, e := range events {
		time.Sleep(e.after)
		if s.failed() {
			break
		}
		s.listen()
		h := happenings[e.what]
		s.note("%s", h.name)
		h.do(s, s.machines[e.on], rand.New(rand.NewPCG(e.dice, 1)))
	}
	for _, end := range s.ends {
		end()
	}
	close(s.mend)
	s.asking.Wait()
	if !s.failed() {
		s.settle()
	}
	close(s.over)
	for _, m := range s.machines {
		<-m.gone
	}
	if !s.failed() {
		s.judgeEnd()
	}
	if !s.failed() && s.shape.heartbeat == 0 && s.owed {
		s.fail("promise 4: messages below a checkpoint were lost, and nobody reported it")
	}
}

// link is a connection that nothing happens to.
func (s *simulation) link() *nats.Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.nc
}

// NATS, and what it loses.

func (s *simulation) startNATS() error {
	srv, err := startNATS(filepath.Join(s.dir, "nats"))
	if err != nil {
		return err
	}
	nc, err := nats.Connect("nats://127.0.0.1", nats.InProcessServer(srv), nats.PingInterval(1e4*time.Hour))
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.srv, s.nc = srv, nc
	return nil
}

func (s *simulation) stopNATS() {
	s.mu.Lock()
	srv, nc := s.srv, s.nc
	s.srv = nil
	s.mu.Unlock()
	s.cutLinks()
	nc.Close()
	srv.Shutdown()
	srv.WaitForShutdown()
}

// restartNATS stops the server, does something to its files, and starts it again.
func (s *simulation) restartNATS(between func()) {
	s.stopNATS()
	between()
	if err := s.startNATS(); err != nil {
		s.fail("%v", err)
	}
}

// reachable returns the server, if there is one.
func (s *simulation) reachable() *server.Server {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.natsDown > 0 {
		return nil
	}
	return s.srv
}

func (s *simulation) cutLinks() {
	for _, m := range s.machines {
		s.with(m, (*process).cutLinks)
	}
}

// shorten looks for a shorter history that fails as well: it leaves out events, first many at a time and then one by one.
func shorten(t *testing.T, dir string, sh shape, events []event, failed *simulation) *simulation {
	tries := 200
	for size := len(events) / 2; size > 0 && tries > 0; {
		shorter := false
		for from := 0; from < len(events) && tries > 0; tries-- {
			rest := slices.Delete(slices.Clone(events), from, min(from+size, len(events)))
			if from < len(rest) { // time goes on as before
				for _, e := range events[from:min(from+size, len(events))] {
					rest[from].after += e.after
				}
			}
			if s := simulate(t, dir, sh, rest); s.failure != nil {
				failed, events, shorter = s, rest, true
			} else {
				from += size
			}
		}
		if !shorter || size > 1 {
			if size == 1 {
				break
			}
			size /= 2
		}
	}
	return failed
}
