package protime

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
)

func TestClockingsQuery_windows(t *testing.T) {
	for name, test := range map[string]struct {
		query ClockingsQuery
		want  []string
	}{
		"OneDay":  {ClockingsQuery{From: "2026-01-15", To: "2026-01-15"}, []string{"date ge '2026-01-15' and date le '2026-01-15'"}},
		"OneYear": {ClockingsQuery{From: "2025-01-01", To: "2025-12-31"}, []string{"date ge '2025-01-01' and date le '2025-12-31'"}},
		"OneMore": {ClockingsQuery{From: "2025-01-01", To: "2026-01-01"}, []string{"date ge '2025-01-01' and date le '2025-12-31'", "date ge '2026-01-01' and date le '2026-01-01'"}},
		"LeapDay": {ClockingsQuery{From: "2024-02-29", To: "2026-03-01"}, []string{
			"date ge '2024-02-29' and date le '2025-02-28'", "date ge '2025-03-01' and date le '2026-02-28'", "date ge '2026-03-01' and date le '2026-03-01'"}},
		"Selected": {ClockingsQuery{From: "2026-01-15", To: "2026-01-16", Person: 7, Kind: KindInOut}, []string{"date ge '2026-01-15' and date le '2026-01-16' and person eq 7 and kind eq 'InOut'"}},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := test.query.windows(); err != nil || !slices.Equal(got, test.want) {
				t.Errorf("got %q, error %v, want %q", got, err, test.want)
			}
		})
	}
	for name, query := range map[string]ClockingsQuery{
		"NoFrom":      {To: "2026-01-15"},
		"NoTo":        {From: "2026-01-15"},
		"Backwards":   {From: "2026-01-16", To: "2026-01-15"},
		"NoSuchDay":   {From: "2026-02-30", To: "2026-03-01"},
		"QuoteInKind": {From: "2026-01-15", To: "2026-01-15", Kind: "x' or kind eq 'y"},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := query.windows(); err == nil {
				t.Errorf("got %q, want an error", got)
			}
		})
	}
}

func TestClient_Clockings(t *testing.T) {
	c, _ := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		filter := r.URL.Query().Get("filter")
		fmt.Fprintf(w, `{"value":[{"id":%q}]}`, filter)
	})
	var got []string
	for change, err := range c.Clockings(t.Context(), ClockingsQuery{From: "2024-06-01", To: "2026-01-15"}) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, change.ID)
	}
	if want := []string{"date ge '2024-06-01' and date le '2025-05-31'", "date ge '2025-06-01' and date le '2026-01-15'"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, err := range c.Clockings(t.Context(), ClockingsQuery{}) {
		if err == nil {
			t.Error("got no error for a query without dates")
		}
	}
}

func TestClient_CreateClocking(t *testing.T) {
	tutorial := NewClocking{Person: 1, Date: "2026-01-15", Minutes: 510, Kind: KindInOut}
	open := true
	for name, test := range map[string]struct {
		clocking NewClocking
		want     string
	}{
		"Tutorial": {tutorial, `{"person":{"id":1},"date":"2026-01-15","timeOfDayInMinutes":510,"kind":"InOut"}`},
		"Midnight": {NewClocking{Person: 1, Date: "2026-01-15", Kind: KindInOut}, `{"person":{"id":1},"date":"2026-01-15","timeOfDayInMinutes":0,"kind":"InOut"}`},
		"Everything": {
			NewClocking{
				PersonRef: map[string]string{"@badge-number": "6767676"}, Date: "2026-01-15", Minutes: -5, Kind: KindActivity, Terminal: 3,
				Geolocation: &Geolocation{4.35, 50.85}, Reason: 9, IsOpen: &open, Activities: []ActivityLevel{{Level: 1, Definition: "3f25"}},
			},
			`{"person":{"externalReferences":{"@badge-number":"6767676"}},"date":"2026-01-15","timeOfDayInMinutes":-5,"kind":"Activity","terminal":{"id":3},` +
				`"geolocation":{"longitude":4.35,"latitude":50.85},"reason":{"id":9},"isOpen":true,"activityLevels":[{"level":1,"activityDefinition":{"id":"3f25"}}]}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, _ := newServer(t, func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				if got := r.Method + " " + r.URL.Path; got != "POST "+root+"clockings" || r.Header.Get("Content-Type") != "application/json" {
					t.Errorf("got %s with %v", got, r.Header)
				}
				if string(body) != test.want {
					t.Errorf("got  %s\nwant %s", body, test.want)
				}
				w.Header().Set("Location", root+"clockings/19250")
				w.WriteHeader(201)
			})
			if id, err := c.CreateClocking(t.Context(), test.clocking); err != nil || id != "19250" {
				t.Errorf("got id %q, error %v", id, err)
			}
		})
	}

	for name, test := range map[string]struct {
		status   int
		location string
		unknown  bool // whether it was created
		asked    int
	}{
		"Refused":           {400, "", false, 1},
		"StillUnauthorized": {401, "", false, 2},
		"Accepted":          {202, root + "clockings/7", true, 1},
		"OK":                {200, root + "clockings/7", true, 1},
		"Unavailable":       {503, "", true, 1},
		"Redirect":          {307, root + "clockings", true, 1},
		"NoLocation":        {201, "", true, 1},
		"LocationElsewhere": {201, "https://evil.example" + root + "clockings/7", true, 1},
		"LocationOfAnother": {201, root + "people/7", true, 1},
		"LocationOfTheList": {201, root + "clockings/", true, 1},
	} {
		t.Run(name, func(t *testing.T) {
			asked := 0
			c, _ := newServer(t, func(w http.ResponseWriter, r *http.Request) {
				asked++
				if test.location != "" {
					w.Header().Set("Location", test.location)
				}
				w.WriteHeader(test.status)
			})
			id, err := c.CreateClocking(t.Context(), tutorial)
			if err == nil || id != "" || errors.Is(err, ErrOutcomeUnknown) != test.unknown || asked != test.asked {
				t.Errorf("got id %q, error %v after %d requests, want an error, of unknown outcome: %v, after %d", id, err, asked, test.unknown, test.asked)
			}
		})
	}
	t.Run("BrokenConnection", func(t *testing.T) {
		var asked atomic.Int64
		c, _ := newServer(t, func(w http.ResponseWriter, r *http.Request) {
			asked.Add(1)
			panic(http.ErrAbortHandler)
		})
		if _, err := c.CreateClocking(t.Context(), tutorial); !errors.Is(err, ErrOutcomeUnknown) || asked.Load() != 1 {
			t.Errorf("got %v after %d requests, want ErrOutcomeUnknown after 1", err, asked.Load())
		}
	})
	t.Run("RepeatedAfterUnauthorized", func(t *testing.T) {
		var bodies []string
		c, _ := newServer(t, func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			if bodies = append(bodies, string(body)); len(bodies) == 1 {
				w.WriteHeader(401)
				return
			}
			w.Header().Set("Location", root+"clockings/7")
			w.WriteHeader(201)
		})
		id, err := c.CreateClocking(t.Context(), tutorial)
		if err != nil || id != "7" || len(bodies) != 2 || bodies[0] != bodies[1] || !strings.Contains(bodies[0], "510") {
			t.Errorf("got id %q, error %v, bodies %q", id, err, bodies)
		}
	})
}
