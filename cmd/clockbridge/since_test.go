package main

import (
	"strings"
	"testing"
	"time"
)

func TestSinceDate(t *testing.T) {
	// Half past midnight on New Year's Day in Brussels is still last year in UTC.
	brussels := time.Date(2026, 1, 1, 0, 30, 0, 0, time.FixedZone("CET", 3600))
	for _, test := range []struct {
		name, since string
		now         time.Time
		want        string
	}{
		{"a date is itself", "2026-01-31", time.Date(2027, 5, 1, 0, 0, 0, 0, time.UTC), "2026-01-31"},
		{"last year begins on 1 January", "last-year", time.Date(2026, 11, 23, 15, 0, 0, 0, time.UTC), "2025-01-01"},
		{"last year is reckoned in UTC", "last-year", brussels, "2024-01-01"},
		{"days count back", "90d", time.Date(2026, 3, 31, 23, 59, 0, 0, time.UTC), "2025-12-31"},
		{"days are reckoned in UTC", "0d", brussels, "2025-12-31"},
		{"days cross 29 February", "1d", time.Date(2028, 3, 1, 0, 0, 0, 0, time.UTC), "2028-02-29"},
	} {
		t.Run(test.name, func(t *testing.T) {
			for range 2 { // nothing but since and now matters
				got, err := sinceDate(test.since, test.now)
				if err != nil || got != test.want {
					t.Errorf("sinceDate(%q) = %q, %v, want %q", test.since, got, err, test.want)
				}
			}
		})
	}
	for _, since := range []string{"", "yesterday", "2026-02-30", "2026-1-1", "90", "-90d", "90 d", "12345d", "2026-01-01T00:00:00Z", "2026-01-01' or '1"} {
		t.Run("refused "+since, func(t *testing.T) {
			got, err := sinceDate(since, brussels)
			if err == nil || !strings.HasPrefix(err.Error(), "since: ") {
				t.Errorf("sinceDate(%q) = %q, %v, want an error that names since", since, got, err)
			}
		})
	}
}

func TestTenantConfig_filterFor(t *testing.T) {
	now := time.Date(2026, 11, 23, 15, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		name       string
		tenant     tenantConfig
		collection string
		want       string
	}{
		{"a collection with dates", tenantConfig{Since: "last-year"}, "clockings", "date ge '2025-01-01'"},
		{"days back", tenantConfig{Since: "10d"}, "breaks", "date ge '2026-11-13'"},
		{"one that nobody knows", tenantConfig{Since: "10d"}, "unheard-of", ""},
		{"its own filter", tenantConfig{Since: "10d", Filters: map[string]string{"counters": "date ge '2026-01-01' and status eq 'A'"}}, "counters", "date ge '2026-01-01' and status eq 'A'"},
		{"its own filter before the tenant's", tenantConfig{Filter: "date eq '2026-01-01'", Filters: map[string]string{"people": ""}}, "people", ""},
		{"another's filter", tenantConfig{Since: "10d", Filters: map[string]string{"counters": "x"}}, "clockings", "date ge '2026-11-13'"},
		{"one without dates", tenantConfig{Since: "last-year"}, "people", ""},
		{"the whole expression", tenantConfig{Filter: "date eq '2026-01-01'"}, "clockings", "date eq '2026-01-01'"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := test.tenant.filterFor(test.collection)(now); got != test.want {
				t.Errorf("got filter %q, want %q", got, test.want)
			}
		})
	}
}
