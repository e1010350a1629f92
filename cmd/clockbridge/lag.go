package main

import (
	"slices"
	"time"
)

// lags measures how long it takes from a change in the simulator until its message is seen. It is for one goroutine at a
// time.
type lags struct {
	waiting map[string]time.Time // when records were changed whose message is still to come
	took    []time.Duration
}

func newLags() *lags { return &lags{waiting: map[string]time.Time{}} }

// made notes a change. Of several of one record that wait together the first one counts: one message may bring them all.
func (l *lags) made(id string, at time.Time) {
	if _, ok := l.waiting[id]; !ok {
		l.waiting[id] = at
	}
}

// seen notes a message.
func (l *lags) seen(id string, at time.Time) {
	if made, ok := l.waiting[id]; ok {
		l.took = append(l.took, at.Sub(made))
		delete(l.waiting, id)
	}
}

// median returns the median and the worst; ok is false if nothing was measured.
func (l *lags) median() (median, worst time.Duration, ok bool) {
	if len(l.took) == 0 {
		return 0, 0, false
	}
	sorted := slices.Sorted(slices.Values(l.took))
	return sorted[(len(sorted)-1)/2], sorted[len(sorted)-1], true
}
