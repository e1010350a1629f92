package bridge

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"clockbridge/protime"
	"clockbridge/protime/protimetest"
	"clockbridge/store"
)

// storedAt makes n messages behind a position.
func storedAt(position uint64, n int) []message {
	msgs := make([]message, n)
	for i := range msgs {
		position++
		msgs[i] = message{Entry: store.Entry{ID: fmt.Sprint(position), Position: position}, data: []byte("{}"), origin: OriginDelta}
	}
	return msgs
}

func TestRecent_changes(t *testing.T) {
	var r recent
	if got := r.snapshot(now()).Changes; len(got) != 0 {
		t.Errorf("before the first: %+v", got)
	}
	for _, test := range []struct{ n, want int }{{1, 1}, {0, 1}, {98, 99}, {1, 100}, {1, 100}, {70, 100}, {1000, 100}, {100, 100}, {3, 100}} {
		r.add(storedAt(r.stored, test.n), now())
		got := r.snapshot(now()).Changes
		if len(got) != test.want {
			t.Fatalf("after %d more: %d changes, want %d", test.n, len(got), test.want)
		}
		total := got[0].Position
		for i, c := range got {
			if c.Position != total-uint64(i) || c.ID != fmt.Sprint(c.Position) || !c.At.Equal(now()) {
				t.Fatalf("after %d more: change %d from the newest, at %d, is %+v", test.n, i, total, c)
			}
		}
	}
}

func TestRecent_minutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r recent
		add := func(n int) { r.add(storedAt(0, n), time.Now()) }
		want := func(what string, counts map[int]int) { // by how many minutes ago
			t.Helper()
			for i, n := range r.snapshot(time.Now()).Minutes {
				if ago := RecentMinutes - 1 - i; n != counts[ago] {
					t.Errorf("%s: %d changes %d minutes ago, want %d", what, n, ago, counts[ago])
				}
			}
		}
		want("nothing yet", nil)
		add(3)
		time.Sleep(59 * time.Second)
		add(1000)
		want("one minute", map[int]int{0: 1003})
		time.Sleep(time.Second)
		want("the next minute", map[int]int{1: 1003})
		add(5)
		time.Sleep(58 * time.Minute)
		add(7)
		want("the hour's last minute", map[int]int{59: 1003, 58: 5, 0: 7})
		time.Sleep(time.Minute)
		want("over an hour", map[int]int{59: 5, 1: 7})
		r.add(storedAt(0, 2), time.Now().Add(-10*time.Minute))
		want("a clock set back", map[int]int{59: 5, 1: 7, 0: 2})
		time.Sleep(59 * time.Minute)
		want("its end", map[int]int{59: 2})
		time.Sleep(100 * time.Hour)
		want("days later", nil)
	})
}

func TestRecent_data(t *testing.T) {
	large := strings.Repeat("x", RecentData)
	for _, keep := range []bool{false, true} {
		r := recent{keepData: keep}
		r.add([]message{
			{Entry: store.Entry{ID: "1"}, data: []byte(large)},
			{Entry: store.Entry{ID: "2"}, data: []byte(large + "x")},
			{Entry: store.Entry{ID: "3", Deleted: true}, data: []byte("gone")},
			keepAside(protime.Change{Data: []byte("secret")}, "no id", OriginDelta, 1000),
		}, now())
		want := []Stored{{Type: TypeUnreadable, Origin: OriginDelta}, {ID: "3", Type: TypeDeleted}, {ID: "2", Type: TypeUpserted}, {ID: "1", Type: TypeUpserted}}
		if keep {
			want[1].Data, want[3].Data = []byte("gone"), []byte(large)
		}
		changes := r.snapshot(now()).Changes
		if len(changes) != len(want) {
			t.Fatalf("%d changes, want %d", len(changes), len(want))
		}
		for i, got := range changes {
			if w := want[i]; got.ID != w.ID || got.Type != w.Type || got.Origin != w.Origin || string(got.Data) != string(w.Data) {
				t.Errorf("keep data %t: got %s %q of %s with %d bytes, want %s %q of %s with %d", keep,
					got.Type, got.ID, got.Origin, len(got.Data), w.Type, w.ID, w.Origin, len(w.Data))
			}
		}
	}
}

// What is kept must not hold on to the run that it came with.
func TestRecent_copies(t *testing.T) {
	r := recent{keepData: true}
	msgs := storedAt(0, 1)
	r.add(msgs, now())
	msgs[0].data[0] = 'X'
	if got := string(r.snapshot(now()).Changes[0].Data); got != "{}" {
		t.Errorf("got %q, want what was added", got)
	}
}

// However large an append is, it leaves nothing for the collector.
func TestRecent_cost(t *testing.T) {
	var r recent
	msgs, at := storedAt(0, maxRun), now()
	if n := testing.AllocsPerRun(100, func() { r.add(msgs, at) }); n != 0 {
		t.Errorf("%v allocations for each append, want none", n)
	}
}

// A feed shows what is stored and committed, and nothing else.
func TestFeed_Recent(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.cfg.KeepData = true
	w.reopen()
	tenant := w.sim.Tenant(w.tenant)
	a := tenant.Insert("clockings", clocking(1, 480))
	appended := false
	w.faults.set(func(n int) (int, error) { appended = true; return n, nil }, func() (bool, error) {
		if appended {
			return false, errBoom
		}
		return true, nil
	})
	if err := w.feed.Step(t.Context()); !errors.Is(err, ErrStore) || !appended {
		t.Fatalf("a step whose append cannot be committed: %v, appended %t", err, appended)
	}
	if got := w.feed.Recent(); len(got.Changes) != 0 || got.Minutes != [RecentMinutes]int{} {
		t.Errorf("stored, but not committed: %+v", got)
	}
	w.faults.clear()
	w.reopen()
	w.settle()
	if got := w.feed.Recent().Changes; len(got) != 0 {
		t.Errorf("read from the stream by another process: %+v", got)
	}
	b := tenant.Insert("clockings", clocking(2, 490))
	w.step()
	tenant.Remove("clockings", a)
	w.step()
	got := w.feed.Recent()
	if len(got.Changes) != 2 {
		t.Fatalf("got %+v, want two changes", got.Changes)
	}
	if last := got.Changes[0]; last.ID != a || last.Type != TypeDeleted || last.Origin != OriginDelta ||
		last.Position != w.checkpoint().Position || time.Since(last.At) > time.Minute {
		t.Errorf("last change %+v, want the deletion of %s", last, a)
	}
	if c := got.Changes[1]; c.ID != b || c.Type != TypeUpserted || !strings.Contains(string(c.Data), `"timeOfDayInMinutes":490`) {
		t.Errorf("change before it %+v with the data %q, want the clocking %s", c, c.Data, b)
	}
	if n := got.Minutes[RecentMinutes-1] + got.Minutes[RecentMinutes-2]; n != 2 { // a minute may have ended meanwhile
		t.Errorf("%d changes are counted, want two", n)
	}
}

// Whether an append was acknowledged, or was found in the stream by the next step, is all one to whoever watches.
func TestFeed_Recent_lostAnswer(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	tenant := w.sim.Tenant(w.tenant)
	tenant.Insert("clockings", clocking(1, 480))
	w.step()
	id := tenant.Insert("clockings", clocking(2, 490))
	w.faults.set(func(n int) (int, error) { return n, errBoom }, nil)
	if err := w.feed.Step(t.Context()); !errors.Is(err, errBoom) {
		t.Fatalf("step: %v, want the lost answer", err)
	}
	w.faults.clear()
	w.step()
	got := w.feed.Recent().Changes
	if len(got) != 2 || got[0].ID != id || w.feed.Status().Published != 2 {
		t.Errorf("got %+v, %d published, want two changes, %s last", got, w.feed.Status().Published, id)
	}
	w.store.Close()
	if err := os.Remove(w.path); err != nil {
		t.Fatal(err)
	}
	w.reopen()
	w.step()
	if got := w.feed.Recent().Changes; len(got) != 0 || w.checkpoint().Position != 2 {
		t.Errorf("read by another process up to %d: %+v", w.checkpoint().Position, got)
	}
}
