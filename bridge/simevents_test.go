package bridge

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"clockbridge/protime"
	"clockbridge/protime/protimetest"
)

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
		resumed, err := RequestResume(context.Background(), s.link(), simTenant, "clockings")
		s.note("somebody resumes the feed: %v, %v", resumed, err)
	}
}

// forgetPerson lets somebody ask for a person to be forgotten, and looks whether it is true that the stream then has.
func (s *simulation) forgetPerson(m *machine, r *rand.Rand) {
	id := strconv.Itoa(1 + r.IntN(9))
	lost := func() int {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.losses
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	s.asking.Go(func() {
		defer cancel()
		before := lost()
		forgotten, err := s.askToForget(ctx, m, id)
		s.note("person %s: %+v, %v", id, forgotten, err)
		if !forgotten.Done {
			return
		}
		msgs, err := s.messages()
		if err != nil || lost() != before {
			return // a backup may hold what was erased
		}
		person := NewPerson("clockings", id, nil)
		for _, msg := range msgs {
			if msg.seq <= forgotten.Position && person.NamedBy(msg.data, msg.deleted) {
				s.fail("person %s is forgotten up to %d, and message %d names them: %s", id, forgotten.Position, msg.seq, msg.data)
			}
		}
	})
	s.asking.Go(func() {
		select {
		case <-s.mend:
			cancel()
		case <-ctx.Done():
		}
	})
}

func (s *simulation) askToForget(ctx context.Context, m *machine, id string) (forgotten Forgotten, err error) {
	if s.shape.heartbeat > 0 {
		return RequestForget(ctx, s.link(), simTenant, "clockings", ForgetRequest{Person: id}, func(Forgotten) {})
	}
	r := ForgetRequest{Request: strconv.FormatInt(asked.Add(1), 10), Person: id}
	for !forgotten.Done && err == nil {
		s.with(m, func(p *process) { forgotten, err = p.feed.Forget(r) })
		if !forgotten.Done && err == nil {
			err = sleep(ctx, time.Second)
		}
	}
	return forgotten, err
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
	s.owed, s.lostLast = s.reached > end, false
	s.losses++
	for id := range s.changed { // it may have been stored, unknown to us, and lost
		s.changed[id] = time.Now()
	}
	for id, m := range s.stored {
		if m.Position > end {
			s.lostLast = s.lostLast || !m.invalid()
			delete(s.stored, id)
			s.changed[id] = time.Now()
		}
	}
}
