package main

import "testing"

func TestOffice_tell(t *testing.T) {
	o := newOffice()
	for _, step := range []struct {
		collection, id, data string
		deleted              bool
		want                 line
	}{
		{"absences", "1", `{"person":{"id":7},"date":"2026-02-03","status":"Requested","periodType":"FullDay"}`, false,
			line{"absence", "person 7", "requested for 2026-02-03, full day", false, false}},
		{"people", "7", `{"firstName":"An","lastName":"Maes","bankAccount":"BE68"}`, false, line{"person", "An Maes", "joined the company", false, false}},
		{"people", "7", `{"firstName":"An","lastName":"Claes"}`, false, line{"person", "An Claes", "was called An Maes", false, true}},
		{"people", "7", `{"firstName":"An","lastName":"Claes"}`, false, line{"person", "An Claes", "changed, under the same name", false, true}},
		{"absences", "1", `{"person":{"id":7},"date":"2026-02-03","status":"Approved","periodType":"FullDay"}`, false,
			line{"absence", "An Claes", "approved for 2026-02-03, full day", false, true}},
		{"absences", "1", `{"id":1}`, true, line{"absence", "An Claes", "cancelled for 2026-02-03, full day", true, true}},
		{"people", "7", `{"id":7}`, true, line{"person", "An Claes", "left the company", true, false}},
		{"absences", "2", `{"id":2}`, true, line{"absence", "", "cancelled", true, false}},
	} {
		if got := o.tell(step.collection, published{id: step.id, data: []byte(step.data), deleted: step.deleted}); got != step.want {
			t.Errorf("%s %s: got %+v, want %+v", step.collection, step.data, got, step.want)
		}
	}
}
