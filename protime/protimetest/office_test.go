package protimetest

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestWorkload_Office: people and absences change beside clockings, and each delta brings what its own collection became.
func TestWorkload_Office(t *testing.T) {
	run := func() (events []Event) {
		c := newCaller(t, Options{})
		c.token = c.login("acme", "demo", allScopes+" connector-protimeapi-absences.read")
		w := NewWorkload(c.s, "", WorkloadOptions{People: 5, Seed: 2, Office: true})
		w.Backfill(20)
		links := map[string]string{}
		for name, start := range map[string]string{
			"clockings": "clockings?filter=date ge '2025-01-01'&delta", "people": "people?delta", "absences": "absences?filter=date ge '2025-01-01'&delta",
		} {
			ids, last := c.walk(start)
			if len(ids) == 0 || last.DeltaLink == "" {
				t.Fatalf("%s: %d records in the first listing", name, len(ids))
			}
			links[name] = last.DeltaLink
		}
		changed := map[string]bool{}
		for range 600 {
			c.s.Advance(time.Minute)
			e := w.Step()
			events = append(events, e)
			changed[e.Collection+" "+e.ID] = true
		}
		c.token = c.login("acme", "demo", allScopes+" connector-protimeapi-absences.read") // the first one has expired
		for name, link := range links {
			told := map[string]bool{}
			for _, change := range shownChanges(c.page(link)) {
				told[name+" "+strings.Fields(change)[1]] = true
			}
			for key := range changed {
				if strings.HasPrefix(key, name+" ") && !told[key] {
					t.Errorf("the delta does not tell of %s", key)
				}
			}
		}
		return events
	}
	events := run()
	told := map[string]bool{}
	for _, e := range events {
		told[e.Collection+" "+e.What] = true
	}
	for _, what := range []string{"people hired", "people renamed", "people left", "absences requested", "absences approved", "absences refused", "absences cancelled"} {
		if !told[what] {
			t.Errorf("never: %s", what)
		}
	}
	if fmt.Sprint(events) != fmt.Sprint(run()) {
		t.Error("the same seed made other events")
	}
}

// TestCollectionRules: each collection has its own scope, filters and ids.
func TestCollectionRules(t *testing.T) {
	c := newCaller(t, Options{More: []Collection{{Name: "badges", Scope: "badges", GUID: true}}})
	c.token = c.login("acme", "demo", "connector-protimeapi-people.read connector-protimeapi-absences.read connector-protimeapi-badges.read")
	c.want(c.get("clockings?filter=date ge '2026-01-01'&delta"), 403, "connector-protimeapi-clockings.read")
	c.want(c.get("absences?delta"), 400, "A filter on date is required")
	c.want(c.get("absences?filter=date ge '2024-12-31'&delta"), 400, "before 1 January of the previous year")
	c.want(c.get("absences?filter=date ge '2026-01-01' and date le '2027-01-02'&delta"), 400, "The provided date range is invalid")
	c.want(c.get("absences?filter=date ge '2026-01-01' and person eq 1&delta"), 400, "cannot be filtered on")
	c.want(c.get("absences?filter=date ge '2026-01-01' and person eq 1"), 200, `"value":[]`)
	c.want(c.get("people?filter=person eq 1&delta"), 400, "cannot be filtered on")

	id := c.s.Insert("badges", map[string]any{"number": "12"})
	if len(id) != 36 {
		t.Fatalf("id %q, want a GUID", id)
	}
	c.want(c.get("badges/"+id), 200, `"id":"`+id+`"`)
	c.want(c.get("badges/"+strings.ToUpper(id)), 404, "")
	_, last := c.walk("badges?delta")
	c.s.Remove("badges", id)
	c.want(c.get(last.DeltaLink), 200, `"changeType":"Delete"`)
	c.want(c.get("badges/"+id), 404, "")
}
