package protimetest

import (
	"fmt"
	"math/rand/v2"
	"time"
)

// WorkloadOptions describe a company.
type WorkloadOptions struct {
	People int    // 0 = 25
	Seed   uint64 // the same seed, clock and calls make the same clockings
}

// Workload makes a tenant look like a company: people come, take breaks and go, forget to and correct it later, delete
// by hand what they clocked by mistake; and now and then a recalculation takes a generated clocking away.
type Workload struct {
	t      *Tenant
	s      *Server
	rng    *rand.Rand
	people []person
	recent []shown // clockings that may still be corrected
}

type person struct {
	id    int
	name  string
	state int // where in the day: out, working, on break, working again
}

type shown struct {
	id     string
	person int
	minute int
}

// Event is one action, as a person would tell it.
type Event struct {
	Collection string
	ID         string
	PersonID   int
	Kind       string // InOut, Reason, Activity; for corrections and deletions that of the clocking
	What       string // such as "clocked in", "corrected 08:30 to 08:25"
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
	w := &Workload{t: s.Tenant(tenant), s: s, rng: rand.New(rand.NewPCG(o.Seed, 0x776f726b))}
	w.t.Action(func(tx *Tx) {
		for i := range o.People {
			first, last := firstNames[i%len(firstNames)], lastNames[(i*7+i/len(firstNames))%len(lastNames)]
			w.people = append(w.people, person{id: i + 1, name: first + " " + last})
			tx.Insert("people", map[string]any{"firstName": first, "lastName": last})
		}
	})
	return w
}

// PersonName returns the name of the person with that id, "" if there is none.
func (w *Workload) PersonName(id int) string {
	if id < 1 || id > len(w.people) {
		return ""
	}
	return w.people[id-1].name
}

// day is what a working day looks like: when, and what is clocked.
var day = []struct {
	minute int
	kind   string
	what   string
}{
	{8*60 + 30, "InOut", "clocked in"},
	{12*60 + 15, "Reason", "went on a break"},
	{13 * 60, "InOut", "came back from a break"},
	{17 * 60, "InOut", "clocked out"},
}

// Backfill makes the clockings of the working days before today, and returns how many. They look as if they had been
// made on their day.
func (w *Workload) Backfill(days int) int {
	now := w.s.Now()
	earliest := time.Date(now.Year()-1, 1, 1, 0, 0, 0, 0, time.UTC)
	n := 0
	for d := days; d > 0; d-- {
		date := now.AddDate(0, 0, -d)
		if date.Before(earliest) || date.Weekday() == time.Saturday || date.Weekday() == time.Sunday {
			continue
		}
		for p := range w.people {
			if w.rng.IntN(12) == 0 {
				continue // a day off
			}
			for i := range day {
				w.at(date, func(tx *Tx) { w.clock(tx, &w.people[p], i, date, day[i].minute+w.rng.IntN(21)-10) })
				n++
			}
		}
	}
	for p := range w.people {
		w.people[p].state = w.rng.IntN(len(day))
	}
	w.recent = w.recent[max(0, len(w.recent)-2*len(w.people)):] // of the last day, more or less
	return n
}

// at runs an action whose changes bear another time than now.
func (w *Workload) at(when time.Time, do func(tx *Tx)) {
	w.t.Action(func(tx *Tx) {
		tx.at = when
		do(tx)
	})
}

func (w *Workload) clock(tx *Tx, p *person, step int, date time.Time, minute int) string {
	fields := map[string]any{
		"person": map[string]any{"id": p.id}, "date": date.Format(time.DateOnly), "timeOfDayInMinutes": minute, "kind": day[step].kind,
	}
	if day[step].kind == "Reason" {
		fields["reason"] = map[string]any{"id": 3}
	}
	id := tx.Insert("clockings", fields)
	w.recent = append(w.recent, shown{id, p.id, minute})
	if len(w.recent) > 200 {
		w.recent = w.recent[100:]
	}
	return id
}

// Step makes one action at the server's now.
func (w *Workload) Step() Event {
	now := w.s.Now()
	if len(w.recent) > 5 {
		i := w.rng.IntN(len(w.recent))
		c := w.recent[i]
		e := Event{Collection: "clockings", ID: c.id, PersonID: c.person, Kind: "InOut"}
		switch dice := w.rng.IntN(100); {
		case dice < 12:
			minute := c.minute - 1 - w.rng.IntN(15)
			w.t.Update("clockings", c.id, map[string]any{"timeOfDayInMinutes": minute})
			w.recent[i].minute = minute
			e.What = fmt.Sprintf("corrected %s to %s", clockTime(c.minute), clockTime(minute))
			return e
		case dice < 16:
			w.t.SoftDelete("clockings", c.id)
			w.forget(i)
			e.What = "deleted by hand"
			return e
		case dice < 19:
			w.t.Remove("clockings", c.id)
			w.forget(i)
			e.What = "removed by recalculation"
			return e
		}
	}
	p := &w.people[w.rng.IntN(len(w.people))]
	step := p.state
	p.state = (p.state + 1) % len(day)
	var id string
	w.t.Action(func(tx *Tx) { id = w.clock(tx, p, step, now, now.Hour()*60+now.Minute()) })
	return Event{Collection: "clockings", ID: id, PersonID: p.id, Kind: day[step].kind, What: day[step].what}
}

func (w *Workload) forget(i int) {
	w.recent = append(w.recent[:i:i], w.recent[i+1:]...)
}

func clockTime(minute int) string { return fmt.Sprintf("%02d:%02d", minute/60, minute%60) }
