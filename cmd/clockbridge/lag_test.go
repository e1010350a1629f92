package main

import (
	"testing"
	"time"
)

func TestLags(t *testing.T) {
	start := time.Date(2026, 1, 15, 8, 30, 0, 0, time.UTC)
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	l := newLags()
	if _, _, ok := l.median(); ok {
		t.Error("nothing was measured, want no median")
	}
	l.seen("0", at(0)) // of the first listing: nobody waits for it
	l.made("1", at(0))
	l.made("2", at(10))
	l.made("1", at(20)) // before its first message was seen
	l.seen("1", at(100))
	l.seen("2", at(40))
	l.seen("1", at(500)) // nothing waits any more
	l.made("1", at(600))
	l.seen("1", at(900))
	median, worst, ok := l.median()
	if !ok || median != 100*time.Millisecond || worst != 300*time.Millisecond {
		t.Errorf("got median %s, worst %s, %t; want 100ms, 300ms, true", median, worst, ok)
	}
	if len(l.waiting) != 0 {
		t.Errorf("%v still wait, want none", l.waiting)
	}
}
