package main

import (
	"fmt"
	"regexp"
	"strconv"
	"time"

	"clockbridge/protime"
)

const lastYear = "last-year"

var daysRE = regexp.MustCompile(`^([0-9]{1,4})d$`)

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

// filterFor returns the filter of a collection's delta, as the engine asks for it: its own, that of the tenant, or what
// since means for it.
func (t *tenantConfig) filterFor(collection string) func(time.Time) string {
	if filter, ok := t.Filters[collection]; ok {
		return func(time.Time) string { return filter }
	}
	if t.Filter != "" {
		return func(time.Time) string { return t.Filter }
	}
	known, _ := protime.CollectionOf(collection)
	return func(now time.Time) string {
		date, _ := sinceDate(t.Since, now) // complete has checked it
		return known.SinceFilter(date)
	}
}
