//go:debug randseednop=0

package bridge

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"math"
	jitter "math/rand"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"clockbridge/protime"
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
// lose what they acknowledged, frozen and cut-off processes, paused feeds; with one instance, or with several that share the feed
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
	mend     chan struct{} // closed when nothing goes wrong any more
	over     chan struct{} // closed at the end
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

// settle waits until the feed is current and says so.
func (s *simulation) settle() {
	for _, m := range s.machines {
		s.with(m, func(p *process) {
			p.mu.Lock()
			p.fuse = nil
			p.mu.Unlock()
		})
	}
	s.note("everything is mended")
	// The longest pauses there are: the API's Retry-After, refused credentials, a delta that somebody ended twice.
	deadline := time.Now().Add(2*time.Hour + 5*s.shape.poll + 10*s.shape.heartbeat)
	mended := time.Now()
	for calm := 0; calm < 3; {
		time.Sleep(max(s.shape.poll, time.Minute))
		if s.failed() {
			return
		}
		why := s.unsettled(mended)
		if why == nil {
			calm++
			continue
		}
		calm = 0
		s.resumeFeed() // a pause may have been asked for so slowly that nobody was told
		if time.Now().After(deadline) {
			s.fail("promise 6: not well again %s after the last fault: %v", time.Since(mended).Round(time.Second), why)
			return
		}
	}
}

// unsettled says why the feed is not well.
func (s *simulation) unsettled(since time.Time) error {
	var bad []error
	healthy := 0
	for _, m := range s.machines {
		p := m.process()
		if p == nil {
			return fmt.Errorf("%s is down", m.name)
		}
		st := p.feed.Status()
		switch {
		case st.State == StateHealthy && st.FetchedAt.After(since):
			healthy++
		case st.State == StateStandby && s.shape.heartbeat > 0:
		default:
			bad = append(bad, fmt.Errorf("%s is %s, %d attempts: %s", m.name, st.State, st.Attempts, st.Error))
		}
	}
	if healthy != 1 && len(bad) == 0 {
		bad = append(bad, fmt.Errorf("%d instances are healthy, want one", healthy))
	}
	if len(bad) == 0 {
		if msgs, err := s.messages(); err != nil {
			bad = append(bad, err)
		} else if err := s.judge(msgs); err != nil {
			bad = append(bad, err)
		}
	}
	return errors.Join(bad...)
}

// judgeEnd holds the stream against the API's truth.
func (s *simulation) judgeEnd() {
	msgs, err := s.messages()
	if err == nil {
		err = s.judge(msgs)
	}
	if err != nil {
		s.fail("promises 1 to 3: %v", err)
	}
}

// judge holds messages against the API's truth. Of a record that the filter does not reach any more nothing is asked but that
// it was not taken for deleted.
func (s *simulation) judge(msgs []stored) error {
	truth := s.api.Truth("clockings")
	last := map[string]stored{}
	for _, m := range msgs {
		last[m.id] = m
	}
	var bad []error
	for id, is := range truth {
		if s.dates[id] >= s.shape.since(time.Now()) {
			continue
		}
		m, ok := last[id]
		if !ok {
			delete(truth, id)
			continue
		}
		gone := is.Removed || s.shape.api.GetDeletedNotFound && bytes.Contains(is.Data, []byte(`"status":"Deleted"`))
		if m.deleted && !gone {
			bad = append(bad, fmt.Errorf("record %s: deleted at %d, the API still has it", id, m.seq))
		}
		truth[id] = protimetest.Record{ID: id, Version: m.version, Removed: m.deleted, Data: m.data}
	}
	return errors.Join(append(bad, judgeStream(msgs, truth))...)
}

// listen judges promise 6 while things go wrong: a feed that is not current for long says so.
func (s *simulation) listen() {
	s.mu.Lock()
	late, id := time.Now(), ""
	for rec, at := range s.changed {
		if at.Before(late) && s.dates[rec] >= s.shape.since(time.Now()) {
			late, id = at, rec
		}
	}
	if s.disturbed.After(late) {
		late = s.disturbed
	}
	s.mu.Unlock()
	patience := 2*s.shape.poll + 10*time.Minute + 5*s.shape.heartbeat
	if id == "" || time.Since(late) < patience {
		return
	}
	speaks := true
	for _, m := range s.machines {
		if p := m.process(); p != nil && !p.frozen() {
			st := p.feed.Status()
			if !st.Ready() || st.Phase != OriginDelta || time.Since(st.ChangedAt) < patience {
				return // it says that it is not well, or at a listing, or it is seen to get on
			}
			speaks = false
		}
	}
	if speaks {
		return // nobody is there to say anything
	}
	// An append whose answer was lost may be there all the same.
	msgs, err := s.messages()
	if err != nil {
		return
	}
	last := map[string]stored{}
	for _, m := range msgs {
		last[m.id] = m
	}
	truth := s.api.Truth("clockings")
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, at := range s.changed {
		t, m := truth[id], last[id]
		if s.dates[id] < s.shape.since(time.Now()) || m.id == "" && t.Removed || m.version == t.Version || m.deleted {
			delete(s.changed, id)
			continue
		}
		if since := max(s.disturbed.Sub(s.began), at.Sub(s.began)); time.Since(s.began)-since > patience {
			s.failLocked("promise 6: record %s changed at %s and is not in the stream, and all is said to be well", id, at.Sub(s.began))
			return
		}
	}
}

// What goes wrong.

// until ends later what has begun, or when everything is mended.
func (s *simulation) until(d time.Duration, end func()) {
	s.count++
	ended := sync.OnceFunc(end)
	s.ends[s.count] = ended
	time.AfterFunc(d, ended)
}

// later does something later, or when everything is mended.
func (s *simulation) later(d time.Duration, do func()) {
	go func() {
		select {
		case <-time.After(d):
		case <-s.mend:
		}
		do()
	}()
}

// long is how long something lasts: mostly short, sometimes for days.
func (s *simulation) long(r *rand.Rand) time.Duration {
	if h := s.shape.heartbeat; h > 0 {
		return time.Duration(float64(h) / 10 * math.Exp(r.Float64()*math.Log(200)))
	}
	return time.Duration(float64(time.Second) * math.Exp(r.Float64()*math.Log(5*24*3600)))
}

func (s *simulation) with(m *machine, do func(*process)) {
	if p := m.process(); p != nil {
		do(p)
	}
}

func (s *simulation) touch(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changed[id] = time.Now()
}

func (s *simulation) insert(tx *protimetest.Tx, r *rand.Rand) {
	date := fmt.Sprintf("2000-01-%02d", 1+r.IntN(28))
	id := tx.Insert("clockings", map[string]any{
		"person": map[string]any{"id": 1 + r.IntN(9)}, "date": date, "timeOfDayInMinutes": r.IntN(1440), "kind": "InOut",
	})
	s.dates[id] = date
	s.alive = append(s.alive, id)
	s.touch(id)
}

// manyChanges are enough for the appender to try what is quickest.
func (s *simulation) manyChanges(_ *machine, r *rand.Rand) {
	n := 100 + r.IntN(150)
	s.api.Action(func(tx *protimetest.Tx) {
		for len(s.alive) < n {
			s.insert(tx, r)
		}
	})
	ids := slices.Clone(s.alive)
	r.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
	for _, id := range ids[:n/2] {
		s.api.Update("clockings", id, map[string]any{"timeOfDayInMinutes": r.IntN(1440)})
		s.touch(id)
	}
}

func (s *simulation) change(_ *machine, r *rand.Rand) {
	for range 1 + r.IntN(4) {
		s.api.Action(func(tx *protimetest.Tx) {
			for range pick(r, 1, 1, 1, 2, 5) { // of one action all share a changeVersion
				if len(s.alive) < 3 {
					s.insert(tx, r)
					continue
				}
				i := r.IntN(len(s.alive))
				id := s.alive[i]
				switch r.IntN(8) {
				case 0, 1:
					s.insert(tx, r)
				case 2:
					tx.Remove("clockings", id)
					s.alive = slices.Delete(s.alive, i, i+1)
					s.touch(id)
				case 3:
					tx.SoftDelete("clockings", id)
					s.touch(id)
				default:
					tx.Update("clockings", id, map[string]any{"timeOfDayInMinutes": r.IntN(1440)})
					s.touch(id)
				}
			}
		})
	}
}

func (s *simulation) apiOutage(_ *machine, r *rand.Rand) {
	d := s.long(r)
	how := pick(r, "refused", "silent", "slow", "503", "500", "429", "403", "html")
	after := pick(r, "", "5", "90", "3600")
	s.note("  %s for %s, Retry-After %q", how, d.Round(time.Second), after)
	fault := protimetest.Fault{Kind: protimetest.Status, RetryAfter: after}
	switch how {
	case "refused", "silent", "slow":
		s.until(d, s.failing(s.apiBad, how))
		return
	case "html":
		fault.Kind = protimetest.WrongContent
	default:
		fault.Status, _ = strconv.Atoi(how)
	}
	s.until(d, s.api.Fail(fault))
}

func (s *simulation) tokenOutage(_ *machine, r *rand.Rand) {
	d := s.long(r)
	how := pick(r, "refused", "silent", "slow")
	s.note("  %s for %s", how, d.Round(time.Second))
	s.until(d, s.failing(s.tokenBad, how))
	if r.IntN(2) == 0 {
		s.api.KillTokens()
	}
}

// failing lets requests fail in a way until the function that it returns is called.
func (s *simulation) failing(bad map[int]string, how string) (end func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count++
	n := s.count
	bad[n] = how
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(bad, n)
	}
}

func (s *simulation) badAnswers(_ *machine, r *rand.Rand) {
	f := protimetest.Fault{
		Kind: pick(r, protimetest.Status, protimetest.Cut, protimetest.WrongContent, protimetest.NoValue, protimetest.NoLink,
			protimetest.Garbage, protimetest.TokenDeath, protimetest.Gone),
		Times:      1 + r.IntN(4),
		After:      r.IntN(2000),
		Status:     pick(r, 400, 404, 408, 409, 414, 429, 500, 503),
		RetryAfter: pick(r, "", "", "60"),
	}
	if f.Status == 404 {
		f.Body = "<html>no such route</html>" // a proxy's word; the API's own would be the truth
	}
	s.note("  %s %d, %d times", f.Kind, f.Status, f.Times)
	s.until(s.long(r), s.api.Fail(f))
}

// follower is another client of the API that follows the collection, for a moment.
func (s *simulation) follower(*machine, *rand.Rand) {
	client, err := protime.NewClient(protime.Config{
		Tenant: simTenant, ClientID: "demo", Secret: func() (string, error) { return "demo", nil },
		Scopes: []string{protime.ReadScope("clockings")}, APIURL: "https://" + simTenant + ".protime.test", AuthURL: "https://auth.protime.test",
		UserAgent: "somebody/1 (Else)", Transport: s.api.Transport(),
	})
	if err != nil {
		s.fail("%v", err)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if page, err := client.Fetch(ctx, client.DeltaStart("clockings", s.shape.filter(time.Now()))); err == nil { // the API may be down for it, too
		page.Close()
	}
}

func (s *simulation) clockJump(_ *machine, r *rand.Rand) {
	by := pick(r, -2*time.Hour, -10*time.Second, 40*time.Second, 31*time.Minute, 80*time.Hour)
	s.note("  by %s", by)
	s.api.Advance(by)
}

func (s *simulation) natsOutage(_ *machine, r *rand.Rand) {
	d := s.long(r)
	s.note("  for %s", d.Round(time.Second))
	down := func(by int) {
		s.mu.Lock()
		s.natsDown += by
		s.mu.Unlock()
	}
	down(1)
	s.cutLinks()
	s.until(d, func() { down(-1) })
}

func (s *simulation) partition(m *machine, r *rand.Rand) {
	d := s.long(r)
	s.with(m, func(p *process) {
		s.note("  between %s and NATS for %s", m.name, d.Round(time.Second))
		p.partition(true)
		s.until(d, func() { p.partition(false) })
	})
}

func (s *simulation) freeze(m *machine, r *rand.Rand) {
	d := s.long(r)
	s.with(m, func(p *process) {
		s.note("  %s for %s", m.name, d.Round(time.Second))
		p.freeze()
		s.until(d, func() {
			s.note("%s goes on", m.name)
			p.thaw()
		})
	})
}

func (s *simulation) order(m *machine, o order) {
	if m.process() == nil {
		return
	}
	select {
	case m.orders <- o:
	default:
	}
}

func (s *simulation) crash(m *machine, r *rand.Rand) {
	s.with(m, (*process).die)
	s.order(m, order{down: s.long(r), tamper: pick(r, "", "", "keep", "keep", "old", "delete")})
}

func (s *simulation) stop(m *machine, r *rand.Rand) {
	s.order(m, order{graceful: true, down: s.long(r), tamper: pick(r, "", "keep", "delete")})
}

func (s *simulation) writeFails(m *machine, r *rand.Rand) {
	s.with(m, func(p *process) {
		f := &fuse{after: r.IntN(7), way: pick(r, fuseWays...), dies: r.IntN(4) > 0, down: s.long(r), late: s.long(r), bytes: r.Int(), ends: r.IntN(2) == 0}
		if r.IntN(4) > 0 {
			// Best it arrives when the next attempt is under way.
			f.late = appendTimeout + time.Duration(r.Int64N(int64(3*time.Second+10*s.shape.latency)))
			if f.dies {
				f.late += f.down
			}
		}
		s.note("  %s: %s after %d writes, dies %v", m.name, f.way, f.after, f.dies)
		p.mu.Lock()
		p.fuse = f
		p.mu.Unlock()
	})
}

// pauseFeed lets somebody pause the feed, and resume it later.
func (s *simulation) pauseFeed(_ *machine, r *rand.Rand) {
	d := s.long(r)
	if s.shape.heartbeat == 0 {
		return // no lease would carry it
	}
	_, err := RequestPause(context.Background(), s.link(), simTenant, "clockings")
	s.note("  for %s: %v", d.Round(time.Second), err)
	s.later(d, s.resumeFeed)
}

func (s *simulation) resumeFeed() {
	if s.shape.heartbeat > 0 {
		s.note("somebody resumes the feed: %v", RequestResume(context.Background(), s.link(), simTenant, "clockings"))
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

func (s *simulation) admin(do func(jetstream.JetStream) error) {
	js, err := jetstream.New(s.nc)
	if err == nil {
		err = do(js)
	}
	if err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
		s.fail("look at the stream: %v", err)
	}
}

// loseTail removes the last messages, and the server comes back with a hole at its end.
func (s *simulation) loseTail(_ *machine, r *rand.Rand) {
	end := uint64(0)
	s.admin(func(js jetstream.JetStream) error {
		stream, err := js.Stream(context.Background(), StreamName(simTenant, "clockings"))
		if err != nil {
			return err
		}
		state := stream.CachedInfo().State
		if state.Msgs < 2 { // a stream that lost every message cannot be told from one that was purged
			end = math.MaxUint64
			return nil
		}
		end = state.LastSeq
		for range 1 + r.Uint64N(min(state.Msgs-1, 20)) {
			for ; end > state.FirstSeq; end-- {
				err := stream.DeleteMsg(context.Background(), end)
				if err == nil {
					end--
					break
				}
			}
		}
		s.note("  what lay above %d of %d", end, state.LastSeq)
		return nil
	})
	s.restartNATS(func() {})
	s.lost(end)
}

func (s *simulation) dropStream(*machine, *rand.Rand) {
	s.admin(func(js jetstream.JetStream) error {
		return js.DeleteStream(context.Background(), StreamName(simTenant, "clockings"))
	})
	s.cutLinks() // an idle feed looks at its stream when it has reconnected
	s.lost(0)
}

func (s *simulation) backup(*machine, *rand.Rand) {
	s.restartNATS(func() { s.copyDir("nats", "backup") })
}

func (s *simulation) restore(*machine, *rand.Rand) {
	if _, err := os.Stat(filepath.Join(s.dir, "backup")); err != nil {
		return
	}
	s.restartNATS(func() { s.copyDir("backup", "nats") })
	end := uint64(0)
	s.admin(func(js jetstream.JetStream) error {
		stream, err := js.Stream(context.Background(), StreamName(simTenant, "clockings"))
		if err == nil {
			end = stream.CachedInfo().State.LastSeq
		}
		return err
	})
	s.note("  to position %d", end)
	s.lost(end)
}

func (s *simulation) copyDir(from, to string) {
	from, to = filepath.Join(s.dir, from), filepath.Join(s.dir, to)
	err := os.RemoveAll(to)
	if err == nil {
		err = os.CopyFS(to, os.DirFS(from))
	}
	if err != nil {
		s.fail("%v", err)
	}
}

// lost notes that the stream lost what lay above end.
func (s *simulation) lost(end uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.owed = s.reached > end
	for id := range s.changed { // it may have been stored, unknown to us, and lost
		s.changed[id] = time.Now()
	}
	for id, m := range s.stored {
		if m.Position > end {
			delete(s.stored, id)
			s.changed[id] = time.Now()
		}
	}
}

// messages reads the whole stream as a subscriber would.
func (s *simulation) messages() ([]stored, error) {
	s.mu.Lock()
	nc := s.nc
	s.mu.Unlock()
	sub, err := nc.SubscribeSync(nc.NewRespInbox())
	if err != nil {
		return nil, err
	}
	defer sub.Unsubscribe()
	var all []stored
	for next := uint64(1); ; {
		ask := fmt.Sprintf(`{"seq":%d,"batch":1000}`, next)
		if err := nc.PublishRequest("$JS.API.DIRECT.GET."+StreamName(simTenant, "clockings"), sub.Subject, []byte(ask)); err != nil {
			return nil, err
		}
		for {
			m, err := sub.NextMsg(time.Minute)
			if err != nil {
				return nil, fmt.Errorf("read stream: %w", err)
			}
			switch status := m.Header.Get("Status"); status {
			case "":
				seq, err := strconv.ParseUint(m.Header.Get("Nats-Sequence"), 10, 64)
				if err != nil {
					return nil, err
				}
				all = append(all, stored{
					seq: seq, id: m.Header.Get(headerSubject), version: m.Header.Get(headerChangeVersion), subject: m.Header.Get("Nats-Subject"),
					deleted: strings.HasSuffix(m.Header.Get(headerType), ".deleted"), origin: m.Header.Get(headerOrigin), data: m.Data,
				})
				next = seq + 1
				continue
			case "204":
				if m.Header.Get("Nats-Num-Pending") != "0" {
					break
				}
				return all, nil
			case "404", "503":
				return all, nil
			default:
				return nil, fmt.Errorf("read stream: %s %s", status, m.Header.Get("Description"))
			}
			break
		}
	}
}

// What the processes do is noted here.

func (s *simulation) apiFails(token bool) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	bad := s.apiBad
	if token {
		bad = s.tokenBad
	}
	for _, n := range slices.Sorted(maps.Keys(bad)) {
		return bad[n]
	}
	return ""
}

// asked notes a request that moves the delta.
func (s *simulation) asked(p *process, term uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.acted(p, term, "asked for changes")
	if p.feed.Status().State == StatePaused {
		s.failLocked("%s asked for changes while it showed the feed as paused", p.m.name)
	}
}

// acted judges promise 5: whoever acts has the newest lease.
func (s *simulation) acted(p *process, term uint64, what string) {
	if s.shape.heartbeat > 0 && (term != s.term || p.m.name != s.holder) {
		s.failLocked("promise 5: %s %s under lease %d, while %s has lease %d", p.m.name, what, term, s.holder, s.term)
	}
}

func (s *simulation) appended(p *process, term uint64, msgs []message, at uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.acted(p, term, "appended")
	for i := range msgs {
		m := msgs[i]
		m.Position = at + uint64(i) + 1
		s.stored[m.ID] = m
		delete(s.changed, m.ID)
	}
}

func (s *simulation) committed(position uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reached = position
}

// forget notes that the evidence of a loss went with a store.
func (s *simulation) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.owed, s.reached = false, 0
}

func (s *simulation) disturb() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.disturbed = time.Now()
}

func (s *simulation) logged(p *process, r slog.Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if strings.Contains(r.Message, "stream lost acknowledged messages") {
		s.owed = false
	}
	var b strings.Builder
	fmt.Fprintf(&b, "    %s: %s", p.m.name, r.Message)
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "term" && r.Message == "lease taken" {
			s.term, s.holder = a.Value.Uint64(), p.m.name
		}
		if a.Key != "do" {
			fmt.Fprintf(&b, " %s=%v", a.Key, a.Value)
		}
		return true
	})
	s.noteLocked("%s", b.String())
}

// showTime moves the clock of the server's caches.
func (s *simulation) showTime() (stop func()) {
	done := make(chan struct{})
	accessTime.Store(time.Now().UnixNano())
	go func() {
		ticker := time.NewTicker(10 * time.Minute)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				accessTime.Store(time.Now().UnixNano())
			case <-done:
				return
			}
		}
	}()
	return func() { close(done) }
}

func (s *simulation) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noteLocked(format, args...)
}

func (s *simulation) noteLocked(format string, args ...any) {
	since := time.Since(s.began)
	line := fmt.Sprintf("%2dd %02d:%02d:%06.3f ", since/(24*time.Hour), int(since.Hours())%24, int(since.Minutes())%60, math.Mod(since.Seconds(), 60)) +
		fmt.Sprintf(format, args...)
	s.trace = append(s.trace, line)
	if *simSeed != 0 {
		fmt.Println(line) // at once: a history may also fail to end
	}
}

func (s *simulation) fail(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failLocked(format, args...)
}

func (s *simulation) failLocked(format string, args ...any) {
	if s.failure == nil {
		s.failure = fmt.Errorf(format, args...)
		s.noteLocked("FAILED: %v", s.failure)
	}
}

func (s *simulation) failed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failure != nil
}

func (s *simulation) story() string {
	return fmt.Sprintf("%+v\n%s", s.shape, strings.Join(s.trace, "\n"))
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
