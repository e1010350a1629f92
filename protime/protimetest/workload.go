package protimetest

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// WorkloadOptions describe a company.
type WorkloadOptions struct {
	People int    // 0 = 25
	Seed   uint64 // the same seed, clock and calls make the same clockings
	Office bool   // not only clockings change: people come, go and are renamed, and absences are requested and decided
}

// Workload makes a tenant look like a company: people work in shifts, take breaks and book activities, correct late what
// they forgot, delete by hand what they clocked by mistake; and calculation adds clockings and takes them away again.
// Backfill and Step are for one goroutine; PersonName is for any.
type Workload struct {
	t      *Tenant
	s      *Server
	rng    *rand.Rand
	people []worker
	recent []clocked // what may still be corrected, oldest first
	hired  int       // so far
	office bool
	asked  []absence // that may still change, oldest first

	mu    sync.Mutex
	names map[int]string
}

type worker struct {
	id   int
	plan []moment
	next int // of the plan
}

// moment is a clocking as the shift plans it.
type moment struct {
	minute int
	kind   string
	what   string
}

// clocked is a clocking that was made.
type clocked struct {
	id        string
	person    int
	date      string
	minute    int
	kind      string
	generated bool
}

// Event is one action, as a person would tell it.
type Event struct {
	Collection string
	ID         string
	PersonID   int
	Kind       string // of a clocking: InOut, Reason, Activity, ActivityEnd
	What       string // such as "clocked in", "corrected 08:30 to 08:25"
}

// shifts of the company.
var shifts = [][]moment{
	{ // the office
		{8*60 + 30, "InOut", "clocked in"}, {12*60 + 15, "Reason", "went on a break"}, {13 * 60, "InOut", "came back from a break"},
		{17 * 60, "InOut", "clocked out"},
	},
	{ // early, in the workshop
		{6 * 60, "InOut", "clocked in"}, {6*60 + 20, "Activity", "started an activity"}, {10 * 60, "Reason", "went on a break"},
		{10*60 + 20, "InOut", "came back from a break"}, {13*60 + 45, "ActivityEnd", "ended an activity"}, {14 * 60, "InOut", "clocked out"},
	},
	{ // late
		{14 * 60, "InOut", "clocked in"}, {18 * 60, "Reason", "went on a break"}, {18*60 + 30, "InOut", "came back from a break"},
		{22 * 60, "InOut", "clocked out"},
	},
}

var (
	firstNames = []string{"An", "Bram", "Celine", "Dries", "Elif", "Femke", "Gert", "Hanne", "Ines", "Joris", "Karim", "Lotte", "Mehdi", "Nele", "Omar", "Pieter", "Quinten", "Ruth", "Sofie", "Tom"}
	lastNames  = []string{"Peeters", "Janssens", "Maes", "Jacobs", "Mertens", "Willems", "Claes", "Goossens", "Wouters", "De Smet", "Yilmaz", "Dubois", "Lambert"}
)

// NewWorkload hires the people and puts them into the collection people.
func NewWorkload(s *Server, tenant string, o WorkloadOptions) *Workload {
	if o.People == 0 {
		o.People = 25
	}
	w := &Workload{t: s.Tenant(tenant), s: s, rng: rand.New(rand.NewPCG(o.Seed, 0x776f726b)), names: map[int]string{}, office: o.Office}
	w.t.Action(func(tx *Tx) {
		for range o.People {
			w.hire(tx)
		}
	})
	return w
}

// PersonName returns the name of the person with that id, "" if there never was one.
func (w *Workload) PersonName(id int) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.names[id]
}

func (w *Workload) call(id int, name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.names[id] = name
}

// Backfill makes the clockings of the working days before today, not before 1 January of last year, and returns how
// many there are. They bear the times of their days, the late corrections and deletions among them too.
func (w *Workload) Backfill(days int) int {
	now := w.s.Now()
	n := 0
	for d := days; d > 0; d-- {
		date := time.Date(now.Year(), now.Month(), now.Day()-d, 0, 0, 0, 0, time.UTC)
		if date.Year() < now.Year()-1 || date.Weekday() == time.Saturday || date.Weekday() == time.Sunday {
			continue
		}
		n += w.backfillDay(date)
		if w.office {
			w.at(date.Add(9*time.Hour), func(tx *Tx) { w.decide(tx, date) })
		}
	}
	for p := range w.people {
		w.people[p].next = w.rng.IntN(len(w.people[p].plan))
	}
	return n
}

func (w *Workload) backfillDay(date time.Time) (n int) {
	type due struct {
		person *worker
		moment
	}
	var all []due
	for p := range w.people {
		if w.rng.IntN(12) == 0 {
			continue // a day off
		}
		for _, m := range w.people[p].plan {
			m.minute += w.rng.IntN(21) - 10
			all = append(all, due{&w.people[p], m})
		}
	}
	slices.SortStableFunc(all, func(a, b due) int { return a.minute - b.minute })
	for _, m := range all {
		when := date.Add(time.Duration(m.minute) * time.Minute)
		w.at(when, func(tx *Tx) { w.clock(tx, m.person, m.moment, date, false) })
		n++
		switch w.rng.IntN(100) {
		case 0, 1, 2: // forgotten, and put right before the day is over
			w.at(date.Add(23*time.Hour), func(tx *Tx) { w.correct(tx, len(w.recent)-1) })
		case 3: // clocked twice
			w.at(when, func(tx *Tx) {
				tx.SoftDelete("clockings", w.clock(tx, m.person, m.moment, date, false))
				w.forget(len(w.recent) - 1)
			})
			n++
		}
	}
	return n
}

// Step makes one action at the server's now.
func (w *Workload) Step() (e Event) {
	now := w.s.Now()
	w.t.Action(func(tx *Tx) {
		if w.office && w.rng.IntN(4) == 0 {
			e = w.officeStep(tx, now)
			return
		}
		dice := w.rng.IntN(100)
		if len(w.recent) < 5 {
			dice = 99
		}
		switch {
		case dice < 12:
			e = w.correct(tx, w.rng.IntN(len(w.recent)))
		case dice < 16:
			i := w.rng.IntN(len(w.recent))
			e = w.recent[i].event("deleted by hand")
			tx.SoftDelete("clockings", e.ID)
			w.forget(i)
		case dice < 20:
			e = w.recalculate(tx, now)
		default:
			p := &w.people[w.rng.IntN(len(w.people))]
			m := p.plan[p.next]
			p.next = (p.next + 1) % len(p.plan)
			m.minute = now.Hour()*60 + now.Minute()
			w.clock(tx, p, m, now, false)
			e = w.recent[len(w.recent)-1].event(m.what)
		}
	})
	return e
}

// recalculate takes a generated clocking away, and touches one more of that person; without one to take, it generates one.
func (w *Workload) recalculate(tx *Tx, now time.Time) Event {
	i := slices.IndexFunc(w.recent, func(c clocked) bool { return c.generated })
	if i < 0 {
		p := &w.people[w.rng.IntN(len(w.people))]
		w.clock(tx, p, moment{12 * 60, "InOut", ""}, now, true)
		return w.recent[len(w.recent)-1].event("generated by calculation")
	}
	gone := w.recent[i]
	tx.Remove("clockings", gone.id)
	w.forget(i)
	for _, c := range slices.Backward(w.recent) {
		if c.person == gone.person {
			tx.Update("clockings", c.id, map[string]any{"calculatedTimeOfDayInMinutes": c.minute / 5 * 5})
			break
		}
	}
	return gone.event("removed by recalculation")
}

// correct moves a clocking by up to a quarter of an hour.
func (w *Workload) correct(tx *Tx, i int) Event {
	c := &w.recent[i]
	was := c.minute
	c.minute = was - 1 - w.rng.IntN(15)
	if c.minute < 0 {
		c.minute = was + 1 + w.rng.IntN(15)
	}
	tx.Update("clockings", c.id, map[string]any{"timeOfDayInMinutes": c.minute})
	what := fmt.Sprintf("corrected %s to %s", clockTime(was), clockTime(c.minute))
	if c.date != w.s.now().Format(time.DateOnly) {
		what += " of " + c.date
	}
	return c.event(what)
}

// clock adds a clocking.
func (w *Workload) clock(tx *Tx, p *worker, m moment, date time.Time, generated bool) (id string) {
	c := clocked{person: p.id, date: date.Format(time.DateOnly), minute: m.minute, kind: m.kind, generated: generated}
	fields := map[string]any{
		"person": map[string]any{"id": c.person}, "date": c.date, "timeOfDayInMinutes": c.minute, "kind": c.kind, "isGenerated": generated,
	}
	switch {
	case c.kind == "Reason":
		fields["reason"] = map[string]any{"id": 3}
		fields["isOpen"] = true
	case c.kind == "Activity":
		definition := fmt.Sprintf("5b1f0c3e-6d1a-4f57-9d35-8f0e4a2c%04d", 1+w.rng.IntN(4))
		fields["activityLevels"] = []any{map[string]any{"level": 1, "activityDefinition": map[string]any{"id": definition}}}
	case !generated:
		fields["terminal"] = map[string]any{"id": 1 + c.person%3}
	}
	c.id = tx.Insert("clockings", fields)
	w.recent = append(w.recent, c)
	if len(w.recent) > 200 {
		w.recent = append([]clocked(nil), w.recent[100:]...)
	}
	return c.id
}

// at runs an action whose changes bear another time than now.
func (w *Workload) at(when time.Time, do func(tx *Tx)) {
	w.t.Action(func(tx *Tx) {
		tx.at = when
		do(tx)
	})
}

func (w *Workload) forget(i int) { w.recent = slices.Delete(w.recent, i, i+1) }

func (c *clocked) event(what string) Event {
	return Event{Collection: "clockings", ID: c.id, PersonID: c.person, Kind: c.kind, What: what}
}

func clockTime(minute int) string { return fmt.Sprintf("%02d:%02d", minute/60, minute%60) }
