package bridge

import (
	"context"
	"strings"
	"testing"
	"time"

	"clockbridge/protime"
	"clockbridge/protime/protimetest"
)

// watched is a source that tells of every fetch before it happens.
type watched struct {
	Source
	fetching func(cursor string)
}

func (s watched) Fetch(ctx context.Context, cursor string) (*protime.Page, error) {
	s.fetching(cursor)
	return s.Source.Fetch(ctx, cursor)
}

// TestFetch_DeltaLinkIsCommittedFirst: each delta response replaces the last link, so a deltaLink that is asked for before
// the checkpoint holds it is lost with a crash.
func TestFetch_DeltaLinkIsCommittedFirst(t *testing.T) {
	for name, o := range map[string]protimetest.Options{"OnePage": {PageSize: 10}, "DeltaPages": {PageSize: 2, DeltaPages: true}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, startServer(t), o)
			deltas := 0
			w.cfg.Source = watched{w.cfg.Source, func(cursor string) {
				if !strings.Contains(cursor, "/delta/") {
					return
				}
				deltas++
				if at := w.checkpoint(); at.Cursor != cursor {
					t.Errorf("asked for %q while the checkpoint holds %q", cursor, at.Cursor)
				}
			}}
			w.reopen()
			ids := w.company(35)
			w.settle()
			for round := range 3 {
				w.bustle(ids, round)
				w.settle()
			}
			if deltas == 0 {
				t.Error("no deltaLink was asked for")
			}
			w.judge()
		})
	}
}

// TestFetch_AheadInAListing: while one page of a listing is appended, the next is fetched.
func TestFetch_AheadInAListing(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{PageSize: 10})
	fetched := make(chan string, 100)
	w.cfg.Source = watched{w.cfg.Source, func(cursor string) { fetched <- cursor }}
	w.reopen()
	w.company(35)
	first := true
	w.faults.set(func(int) (int, error) {
		if !first {
			return 0, nil
		}
		first = false
		for range 2 { // the page in hand, and the one behind it
			select {
			case <-fetched:
			case <-time.After(10 * time.Second):
				t.Error("the next page is not fetched while this one is appended")
			}
		}
		return 0, nil
	}, nil)
	w.settle()
	w.judge()
}

// TestFetch_RunsStaySmall: one page of any size is appended in runs, by number and by bytes.
func TestFetch_RunsStaySmall(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{PageSize: 5000})
	var sizes []int
	w.faults.set(func(n int) (int, error) { sizes = append(sizes, n); return 0, nil }, nil)
	w.sim.Fill("clockings", 2500, 300)
	w.settle()
	for _, n := range sizes {
		if n > maxRun {
			t.Errorf("an append of %d messages, more than %d", n, maxRun)
		}
	}
	if len(sizes) < 3 {
		t.Errorf("%d appends for 2,500 records, want at least 3", len(sizes))
	}
	sizes = nil
	w.sim.Touch("clockings", 20, 700<<10)
	w.settle()
	smallest := maxRunBytes
	for _, r := range w.sim.Truth("clockings") {
		if len(r.Data) > 100<<10 {
			smallest = min(smallest, len(r.Data))
		}
	}
	for _, n := range sizes {
		if (n-1)*smallest > maxRunBytes { // the simulator makes one of them small
			t.Errorf("an append of %d messages, all but one of %d bytes or more: more than %d", n, smallest, maxRunBytes)
		}
	}
	if len(sizes) < 4 {
		t.Errorf("%d appends for 20 records of 700 KiB, want at least 4", len(sizes))
	}
	w.judge()
}
