package main

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"time"
)

const lastYear = "last-year"

var daysRE = regexp.MustCompile(`^([0-9]{1,4})d$`)

// undated are the collections with a delta that takes no filter. Any other gets one on date.
var undated = []string{
	"absence-definitions", "absence-groups", "break-definitions", "contracts", "counter-definitions", "counter-groups",
	"people", "shift-definitions",
}

// sinceDate returns the day that a since setting means when reckoned at now. It depends on nothing else: the engine
// reckons it again for the past to see whether the setting has changed.
func sinceDate(since string, now time.Time) (string, error) {
	now = now.UTC()
	if since == lastYear {
		return fmt.Sprintf("%04d-01-01", now.Year()-1), nil
	}
	if m := daysRE.FindStringSubmatch(since); m != nil {
		days, err := strconv.Atoi(m[1])
		if err != nil {
			return "", fmt.Errorf("since: %w", err)
		}
		return now.AddDate(0, 0, -days).Format(time.DateOnly), nil
	}
	if _, err := time.Parse(time.DateOnly, since); err != nil {
		return "", fmt.Errorf("since: %q: must be a date such as 2026-01-31, a number of days such as 90d, or last-year", since)
	}
	return since, nil
}

// filterFor returns the filter of a collection's delta, as the engine asks for it.
func (t *tenantConfig) filterFor(collection string) func(time.Time) string {
	switch {
	case t.Filter != "":
		return func(time.Time) string { return t.Filter }
	case slices.Contains(undated, collection):
		return func(time.Time) string { return "" }
	}
	return func(now time.Time) string {
		date, _ := sinceDate(t.Since, now) // complete has checked it
		return "date ge '" + date + "'"
	}
}
