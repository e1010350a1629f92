package bridge

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"clockbridge/protime/protimetest"
)

// limited gives the world's feed a stream with other limits, which no feed would create: they are too tight.
func (w *world) limited(age time.Duration, perSubject int64) {
	w.t.Helper()
	w.dropStream()
	cfg := streamConfig(w.stream(), SubjectPrefix(w.tenant, "clockings"), 1)
	cfg.MaxAge = age
	if perSubject > 0 {
		cfg.MaxMsgsPerSubject = perSubject
	}
	if _, err := w.js.CreateStream(context.Background(), cfg); err != nil {
		w.t.Fatal(err)
	}
	w.reopen()
}

// agedOut waits until the stream is empty.
func (w *world) agedOut() {
	w.t.Helper()
	waitFor(w.t, "all messages to age out", func() bool { return len(w.messages()) == 0 })
}

// subjects collects every message that is stored from now on: unlike the stream it forgets nothing.
func (w *world) subjects() func() []string {
	w.t.Helper()
	sub, err := w.nc.SubscribeSync(SubjectPrefix(w.tenant, "clockings") + ".*")
	if err != nil {
		w.t.Fatal(err)
	}
	return func() (got []string) {
		if err := w.nc.Flush(); err != nil {
			w.t.Fatal(err)
		}
		for {
			m, err := sub.NextMsg(100 * time.Millisecond)
			if err != nil {
				return got
			}
			got = append(got, m.Header.Get(headerID))
		}
	}
}

const shortAge = 300 * time.Millisecond

func (w *world) lostNothing() {
	w.t.Helper()
	if got := w.feed.Status().Lost; got > 0 || strings.Contains(w.logs.String(), "lost acknowledged") {
		w.t.Errorf("%d records taken for lost\n%s", got, w.logs)
	}
}

// TestRetention_cursorOutlivesTheMessages is why MinAge is what it is: of a page that was stored and not committed, the stream alone knows.
// It must know as long as the page can be asked for again.
func TestRetention_cursorOutlivesTheMessages(t *testing.T) {
	srv := startServer(t)
	for _, test := range []struct {
		age  time.Duration
		want int // how often the change is stored
	}{{0, 1}, {shortAge, 2}} {
		t.Run(test.age.String(), func(t *testing.T) {
			w := newWorld(t, srv, protimetest.Options{})
			w.limited(test.age, 0)
			ids := w.company(3)
			w.settle()
			got := w.subjects()
			w.sim.Update("clockings", ids[0], map[string]any{"timeOfDayInMinutes": 1})
			w.faults.set(func(n int) (int, error) { return n, errBoom }, nil)
			if err := w.feed.Step(context.Background()); err == nil {
				t.Fatal("the append did not fail")
			}
			w.faults.clear()
			if test.age > 0 {
				w.agedOut()
			}
			w.crash()
			w.settle()
			if all := got(); len(all) != test.want {
				t.Errorf("stored %q, want %d", all, test.want)
			}
			w.lostNothing()
		})
	}
}

// TestRetention_cursorExpires: behind the life of a cursor a walk follows, and the index keeps it from storing again what is unchanged,
// though the stream has nothing of it any more. Deletions that have aged out are not repeated either.
func TestRetention_cursorExpires(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{NoRepeat: true})
	w.limited(shortAge, 0)
	ids := w.company(20)
	w.settle()
	w.sim.Remove("clockings", ids[0])
	w.settle()
	w.agedOut()
	got := w.subjects()
	w.sim.Remove("clockings", ids[1])
	w.sim.Update("clockings", ids[2], map[string]any{"timeOfDayInMinutes": 2})
	w.sim.Advance(80 * time.Hour)
	w.crash()
	w.settle()
	all := strings.Join(got(), " ")
	if strings.Count(all, " ") != 1 || !strings.Contains(all, "/"+ids[1]+"/") || !strings.Contains(all, "/"+ids[2]+"/") {
		t.Errorf("stored %q, want the deletion of %s and the change of %s alone", all, ids[1], ids[2])
	}
	w.lostNothing()
}

// TestRetention_emptyStore: whoever takes over without a data directory knows of aged messages nothing. The delta goes on all the same;
// the next walk stores such records again, and a deletion that a lost delta would have told is never heard of.
func TestRetention_emptyStore(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{NoRepeat: true})
	w.limited(shortAge, 0)
	ids := w.company(20)
	w.leased(forNow)
	w.settle()
	w.agedOut()
	got := w.subjects()
	w.elsewhere("")
	w.sim.Update("clockings", ids[0], map[string]any{"timeOfDayInMinutes": 2})
	w.sim.Remove("clockings", ids[1])
	w.settle()
	if all := got(); len(all) != 2 || w.starts() != 1 {
		t.Errorf("stored %q in %d deltas, want two changes in one", all, w.starts())
	}
	w.sim.Remove("clockings", ids[2])
	w.sim.Advance(80 * time.Hour)
	w.settle()
	all := got()
	if len(all) != len(ids)-3 { // ids[0] is known by now, ids[1] and ids[2] are gone
		t.Errorf("the walk stored %d messages, want one for each of %d records: %q", len(all), len(ids)-3, all)
	}
	for _, id := range all {
		if strings.Contains(id, "/"+ids[2]+"/") {
			t.Errorf("a deletion was stored that nobody can know of: %s", id)
		}
	}
	w.feed.Resync(false)
	w.settle()
	if all := got(); len(all) > 0 {
		t.Errorf("another walk stored %q, want nothing", all)
	}
	w.lostNothing()
}

// TestRetention_lastOnly: where the stream keeps one message of a record, an empty index is as good as ever, and a loss is still noticed.
func TestRetention_lastOnly(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.limited(0, 1)
	ids := w.company(30)
	w.leased(forNow)
	w.settle()
	for round := range 3 {
		msgs := w.messages()
		w.bustle(ids, round)
		w.sim.Update("clockings", msgs[len(msgs)-1].id, map[string]any{"timeOfDayInMinutes": 800 + round})
		// The page is stored, in place of the message at the checkpoint as well; nobody is told.
		w.faults.set(func(n int) (int, error) { return n, errBoom }, nil)
		if err := w.feed.Step(context.Background()); err == nil {
			t.Fatal("the append did not fail")
		}
		w.faults.clear()
		got := w.subjects()
		if round == 1 {
			w.crash() // with an index, but an old one
		} else {
			w.elsewhere("")
		}
		w.settle()
		if all := got(); len(all) > 0 {
			t.Errorf("stored again: %q", all)
		}
		w.judge()
	}
	w.lostNothing()
	w.sim.Update("clockings", ids[25], map[string]any{"timeOfDayInMinutes": 3})
	w.settle()
	w.loseTail(1)
	w.crash()
	w.settle()
	w.judge()
	if !strings.Contains(w.logs.String(), "lost acknowledged") {
		t.Errorf("the loss was not noticed\n%s", w.logs)
	}
}

// TestRetention_mirror: a copy under another name disturbs nothing, and neither does one that gathers streams.
func TestRetention_mirror(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	ctx := context.Background()
	mirror, err := w.js.CreateStream(ctx, jetstream.StreamConfig{Name: "DMZ", Mirror: &jetstream.StreamSource{Name: w.stream()}})
	if err != nil {
		t.Fatal(err)
	}
	all, err := w.js.CreateStream(ctx, jetstream.StreamConfig{Name: "ALL", Sources: []*jetstream.StreamSource{{Name: w.stream()}}})
	if err != nil {
		t.Fatal(err)
	}
	ids := w.company(50)
	w.leased(forNow)
	w.settle()
	for round := range 3 {
		w.bustle(ids, round)
		w.crash()
		w.settle()
	}
	w.elsewhere("")
	w.settle()
	w.judge()
	w.lostNothing()
	want := w.messages()
	for _, copied := range []jetstream.Stream{mirror, all} {
		waitFor(t, "the copy to have everything", func() bool {
			info, err := copied.Info(ctx)
			return err == nil && info.State.Msgs == uint64(len(want))
		})
	}
	for _, m := range want {
		if got, err := mirror.GetMsg(ctx, m.seq); err != nil || got.Subject != m.subject || string(got.Data) != string(m.data) {
			t.Fatalf("the mirror has %+v at %d, %v, want %s", got, m.seq, err, m.data)
		}
	}
}

// TestLimits: a stream is created with them; one that is there is left alone, and how it differs is said once.
func TestLimits(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	ctx := context.Background()
	w.dropStream()
	w.cfg.Limits = Limits{MaxAge: 90 * 24 * time.Hour, MaxPerSubject: 10}
	w.reopen()
	w.company(3)
	w.settle()
	config := func() (time.Duration, int64) {
		s, err := w.js.Stream(ctx, w.stream())
		if err != nil {
			t.Fatal(err)
		}
		cfg := s.CachedInfo().Config
		return cfg.MaxAge, cfg.MaxMsgsPerSubject
	}
	if age, n := config(); age != w.cfg.Limits.MaxAge || n != 10 || strings.Contains(w.logs.String(), "other limits") {
		t.Errorf("created with %s and %d\n%s", age, n, w.logs)
	}
	w.cfg.Limits = Limits{MaxAge: 80 * time.Hour, MaxPerSubject: 1}
	w.reopen()
	w.settle()
	w.feed.sound = false
	w.settle()
	if age, n := config(); age != 90*24*time.Hour || n != 10 {
		t.Errorf("an existing stream was changed to %s and %d", age, n)
	}
	command := "nats stream edit " + w.stream() + " --max-age=80h --max-msgs-per-subject=1"
	if n := strings.Count(w.logs.String(), command); n != 1 {
		t.Errorf("the difference was said %d times, want once\n%s", n, w.logs)
	}
	if s := w.feed.Status(); s.State != StateHealthy {
		t.Errorf("the feed is %s", s.State)
	}
	w.cfg.Limits = Limits{MaxAge: 72 * time.Hour}
	if _, err := NewFeed(w.cfg); err == nil || !strings.Contains(err.Error(), "must be at least 73h") {
		t.Errorf("a max age of 72h: %v", err)
	}
}

func TestLimits_compare(t *testing.T) {
	for i, test := range []struct {
		want Limits
		has  jetstream.StreamConfig
		says string
	}{
		{Limits{}, jetstream.StreamConfig{}, ""},
		{Limits{}, jetstream.StreamConfig{MaxAge: MinAge, MaxMsgsPerSubject: 1}, ""}, // nobody has asked for anything else
		{Limits{}, jetstream.StreamConfig{MaxAge: time.Hour}, "max_age is 1h, should be at least 73h"},
		{Limits{MaxAge: MinAge}, jetstream.StreamConfig{}, "max_age is unlimited, should be 73h"},
		{Limits{MaxPerSubject: 2}, jetstream.StreamConfig{MaxMsgsPerSubject: -1}, "max_messages_per_subject is unlimited, should be 2"},
		{Limits{MaxAge: MinAge, MaxPerSubject: 2}, jetstream.StreamConfig{MaxAge: MinAge, MaxMsgsPerSubject: 2}, ""},
	} {
		got := ""
		if d := test.want.compare(test.has); d != nil {
			got = d.String()
		}
		if got != test.says {
			t.Errorf("%d: %q, want %q", i, got, test.says)
		}
	}
}
