package protime

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"net/http"
	"strings"
	"time"
)

const clockings = "clockings"

// Kinds of clockings.
const (
	KindInOut       = "InOut"
	KindReason      = "Reason"
	KindActivity    = "Activity"
	KindActivityEnd = "ActivityEnd"
)

// ClockingsQuery selects clockings.
type ClockingsQuery struct {
	From, To string // the first and the last day, YYYY-MM-DD; required
	Person   int64  // 0 = everyone
	Kind     string // "" = every kind
}

// NewClocking is a clocking to create. Where a field has a Ref beside it, external references such as
// {"@badge-number": "6767676"} may stand for the id.
type NewClocking struct {
	Person      int64 // required, or PersonRef
	PersonRef   map[string]string
	Date        string // YYYY-MM-DD; required
	Minutes     int    // time of day, 0..1439; -1440..-1 on the day before, 1440..2880 on the day after
	Kind        string // required
	Terminal    int64  // 0 = none
	TerminalRef map[string]string
	Geolocation *Geolocation // nil = none
	Reason      int64        // an absence definition, with KindReason only; 0 = none
	ReasonRef   map[string]string
	IsOpen      *bool           // with KindReason only; nil = not said
	Activities  []ActivityLevel // with KindActivity only
}

// Geolocation is a place, in degrees.
type Geolocation struct {
	Longitude float64 `json:"longitude"`
	Latitude  float64 `json:"latitude"`
}

// ActivityLevel is one level of an activity. Definition is a GUID.
type ActivityLevel struct {
	Level         int
	Definition    string
	DefinitionRef map[string]string
}

// Clockings lists clockings in windows of at most one year, the most that the API takes, from the earliest on.
// It ends after the first error.
func (c *Client) Clockings(ctx context.Context, q ClockingsQuery) iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) {
		windows, err := q.windows()
		if err != nil {
			yield(Change{}, fmt.Errorf("list clockings: %w", err))
			return
		}
		for _, filter := range windows {
			for change, err := range c.List(ctx, clockings, filter) {
				if !yield(change, err) || err != nil {
					return
				}
			}
		}
	}
}

// windows returns the filters that together cover q: in order, without overlap or gap, none longer than a year.
func (q ClockingsQuery) windows() ([]string, error) {
	from, err := time.Parse(time.DateOnly, q.From)
	if err != nil {
		return nil, fmt.Errorf("from %q is not a date like 2026-01-31", q.From)
	}
	to, err := time.Parse(time.DateOnly, q.To)
	if err != nil {
		return nil, fmt.Errorf("to %q is not a date like 2026-01-31", q.To)
	}
	if to.Before(from) {
		return nil, fmt.Errorf("from %s is after to %s", q.From, q.To)
	}
	if strings.Contains(q.Kind, "'") {
		return nil, fmt.Errorf("kind %q holds a quote", q.Kind) // the grammar has no way to write it
	}
	var filters []string
	for !from.After(to) {
		next := from.AddDate(1, 0, 0)
		last := next.AddDate(0, 0, -1)
		if last.After(to) {
			last = to
		}
		filter := fmt.Sprintf("date ge '%s' and date le '%s'", from.Format(time.DateOnly), last.Format(time.DateOnly))
		if q.Person != 0 {
			filter += fmt.Sprintf(" and person eq %d", q.Person)
		}
		if q.Kind != "" {
			filter += fmt.Sprintf(" and kind eq '%s'", q.Kind)
		}
		filters = append(filters, filter)
		from = next
	}
	return filters, nil
}

// CreateClocking creates a clocking and returns its id, which the API tells by the Location of its answer.
//
// It is never repeated (but after a 401, which means that nothing was done): the API takes the same clocking twice for two. Where
// it cannot tell whether the clocking was created (the connection broke, a 5xx, a 202, no usable Location), the error is
// ErrOutcomeUnknown.
func (c *Client) CreateClocking(ctx context.Context, n NewClocking) (id string, err error) {
	body, err := json.Marshal(n.body())
	if err != nil {
		return "", fmt.Errorf("create clocking: %w", err)
	}
	u, err := c.base.resolve(apiPath + clockings)
	if err != nil {
		return "", err
	}
	resp, err := c.do(ctx, http.MethodPost, u, body)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	discard(resp.Body)
	if resp.StatusCode != http.StatusCreated {
		return "", fmt.Errorf("create clocking: %s: %w", status(resp.StatusCode), ErrOutcomeUnknown)
	}
	created, err := c.base.resolve(resp.Header.Get("Location"))
	if err != nil {
		return "", fmt.Errorf("create clocking: no location to take the id from: %w: %w", ErrOutcomeUnknown, err)
	}
	id, ok := strings.CutPrefix(created.Path, u.Path+"/")
	if !ok || id == "" || strings.Contains(id, "/") {
		return "", fmt.Errorf("create clocking: location is not that of a clocking: %w", ErrOutcomeUnknown)
	}
	return id, nil
}

// body is n as the API takes it: what is not set is absent.
func (n NewClocking) body() any {
	type activity struct {
		Level      int        `json:"level"`
		Definition *reference `json:"activityDefinition"`
	}
	var activities []activity
	for _, a := range n.Activities {
		activities = append(activities, activity{a.Level, refer(a.Definition, a.DefinitionRef)})
	}
	return struct {
		Person      *reference   `json:"person,omitempty"`
		Date        string       `json:"date"`
		Minutes     int          `json:"timeOfDayInMinutes"`
		Kind        string       `json:"kind"`
		Terminal    *reference   `json:"terminal,omitempty"`
		Geolocation *Geolocation `json:"geolocation,omitempty"`
		Reason      *reference   `json:"reason,omitempty"`
		IsOpen      *bool        `json:"isOpen,omitempty"`
		Activities  []activity   `json:"activityLevels,omitempty"`
	}{
		refer(n.Person, n.PersonRef), n.Date, n.Minutes, n.Kind, refer(n.Terminal, n.TerminalRef),
		n.Geolocation, refer(n.Reason, n.ReasonRef), n.IsOpen, activities,
	}
}

// reference names another record.
type reference struct {
	ID       any               `json:"id,omitempty"`
	External map[string]string `json:"externalReferences,omitempty"`
}

// refer returns nil if there is nothing to refer to.
func refer[ID int64 | string](id ID, external map[string]string) *reference {
	var none ID
	switch {
	case id != none:
		return &reference{ID: id, External: external}
	case len(external) > 0:
		return &reference{External: external}
	}
	return nil
}
