package protimetest

import (
	"fmt"
	"slices"
	"strconv"
	"time"
)

// absence is one that was asked for.
type absence struct {
	id     string
	person int
	date   string
	status string // as its record says; the documentation names the field but not its values
}

// Statuses of an absence.
const (
	requested = "Requested"
	approved  = "Approved"
	refused   = "Refused"
)

// hire adds a person.
func (w *Workload) hire(tx *Tx) Event {
	i := w.hired
	w.hired++
	first, last := firstNames[i%len(firstNames)], lastNames[(i*7+i/len(firstNames))%len(lastNames)]
	id, _ := strconv.Atoi(tx.Insert("people", map[string]any{ // ids are numbers
		"firstName": first, "lastName": last, "badgeNumber": fmt.Sprintf("67%05d", i+1), "employeeNumber": fmt.Sprintf("E%04d", i+1),
	}))
	w.people = append(w.people, worker{id: id, plan: shifts[i%5%len(shifts)]})
	w.call(id, first+" "+last)
	return personEvent(id, "hired")
}

// officeStep makes one action of the personnel office.
func (w *Workload) officeStep(tx *Tx, now time.Time) Event {
	switch dice := w.rng.IntN(20); {
	case dice < 2:
		return w.hire(tx)
	case dice < 5:
		p := w.people[w.rng.IntN(len(w.people))]
		last := lastNames[w.rng.IntN(len(lastNames))]
		first, _ := decodeFields(tx.s.collection(tx.t, "people").find(strconv.Itoa(p.id)).data)["firstName"].(string)
		tx.Update("people", strconv.Itoa(p.id), map[string]any{"lastName": last})
		w.call(p.id, first+" "+last)
		return personEvent(p.id, "renamed")
	case dice < 6 && len(w.people) > 2:
		i := w.rng.IntN(len(w.people))
		id := w.people[i].id
		w.people = slices.Delete(w.people, i, i+1)
		tx.Remove("people", strconv.Itoa(id))
		return personEvent(id, "left")
	}
	return w.decide(tx, now)
}

// decide asks for an absence, or decides on one that was asked for: it is approved or refused, and what is approved may be
// cancelled, which takes it away for good.
func (w *Workload) decide(tx *Tx, now time.Time) Event {
	if len(w.asked) == 0 || len(w.asked) < 20 && w.rng.IntN(2) == 0 {
		return w.ask(tx, now)
	}
	i := w.rng.IntN(len(w.asked))
	a := &w.asked[i]
	switch {
	case a.status == approved:
		gone := *a
		tx.Remove("absences", gone.id)
		w.asked = slices.Delete(w.asked, i, i+1)
		return gone.event("cancelled")
	case w.rng.IntN(4) > 0:
		a.status = approved
		tx.Update("absences", a.id, map[string]any{"status": approved, "approvalLevel": 1})
		return a.event("approved")
	}
	lost := *a
	tx.Update("absences", lost.id, map[string]any{"status": refused})
	w.asked = slices.Delete(w.asked, i, i+1)
	return lost.event("refused")
}

func (w *Workload) ask(tx *Tx, now time.Time) Event {
	p := w.people[w.rng.IntN(len(w.people))]
	a := absence{person: p.id, date: now.AddDate(0, 0, 1+w.rng.IntN(60)).Format(time.DateOnly), status: requested}
	number := len(tx.s.collection(tx.t, "absences").newest) + 1
	a.id = tx.Insert("absences", map[string]any{
		"person": map[string]any{"id": a.person}, "date": a.date, "status": a.status, "approvalLevel": 0, "isLocked": false,
		"periodType": []string{"FullDay", "Morning", "Afternoon"}[w.rng.IntN(3)], "absenceDefinition": map[string]any{"id": 1 + w.rng.IntN(4)},
		"request": map[string]any{"id": fmt.Sprintf("1-%d-%d", a.person, number)},
	})
	w.asked = append(w.asked, a)
	return a.event("requested")
}

func (a *absence) event(what string) Event {
	return Event{Collection: "absences", ID: a.id, PersonID: a.person, What: what}
}

func personEvent(id int, what string) Event {
	return Event{Collection: "people", ID: strconv.Itoa(id), PersonID: id, What: what}
}
