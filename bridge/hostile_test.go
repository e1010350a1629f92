package bridge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"clockbridge/protime"
	"clockbridge/protime/protimetest"
)

// scripted is an API that answers every cursor with what page says.
type scripted struct {
	Source
	page func(cursor string) string
}

func (s scripted) Fetch(ctx context.Context, cursor string) (*protime.Page, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return protime.NewPage(io.NopCloser(strings.NewReader(s.page(cursor))), strings.Contains(cursor, "/delta/")), nil
}

const apiRoot = "/connector/protimeapi/api/v1/"

// listed is a page of a listing: the records of ids, all of one version, and the link to go on with.
func listed(next string, ids ...int) string {
	records := make([]string, len(ids))
	for i, id := range ids {
		records[i] = fmt.Sprintf(`{"id":%d,"changeVersion":"0000090300000000000A"}`, id)
	}
	return `{"value":[` + strings.Join(records, ",") + `],"nextLink":"` + apiRoot + "clockings?continuationToken=" + next + `"}`
}

// TestHostile_NextLinksInACircle: a listing that leads back to itself is not walked for ever; the feed says so, and keeps what it saw.
func TestHostile_NextLinksInACircle(t *testing.T) {
	next := map[string]string{"": "a", "a": "b", "b": "c", "c": "d", "d": "b"}
	for name, ids := range map[string][]int{"WithRecords": {1, 2}, "Empty": nil} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, startServer(t), protimetest.Options{})
			fetched, ended := 0, false
			w.cfg.Source = scripted{w.cfg.Source, func(cursor string) string {
				_, token, _ := strings.Cut(cursor, "continuationToken=")
				if fetched++; ended {
					return `{"value":[],"deltaLink":"` + apiRoot + `delta/clockings?deltaToken=x"}`
				}
				return listed(next[token], ids...)
			}}
			w.reopen()
			var cursor string
			for try := range 5 {
				err := w.feed.Step(context.Background())
				if p := w.feed.plan(err, time.Second); !errors.Is(err, protime.ErrCircle) || p.state != StateRetrying || p.advice != adviceCircle || p.wait == 0 {
					t.Fatalf("try %d: step: %v, plan %+v; want %v and an advice", try, err, p, protime.ErrCircle)
				}
				if at := w.checkpoint().Cursor; try > 0 && at != cursor {
					t.Errorf("try %d moved the cursor from %q to %q", try, cursor, at)
				} else {
					cursor = at
				}
			}
			if fetched > 20 {
				t.Errorf("%d pages fetched in 5 tries", fetched)
			}
			if got := len(w.messages()); got != len(ids) {
				t.Errorf("%d messages, want %d: what the circle shows is true", got, len(ids))
			}
			ended = true // the vendor has mended it
			w.settle()
			if got := len(w.messages()); got != len(ids) {
				t.Errorf("%d messages at the end, want %d", got, len(ids))
			}
		})
	}
}

// TestHostile_ListingWithoutEnd: a listing whose links are always new, and which shows nothing new, is followed at leisure, in case it
// ends after all, and the feed says what it does.
func TestHostile_ListingWithoutEnd(t *testing.T) {
	for name, ids := range map[string][]int{"Empty": nil, "TheSameRecords": {1, 2, 3}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, startServer(t), protimetest.Options{})
			page := 0
			end := 0
			w.cfg.Source = scripted{w.cfg.Source, func(cursor string) string {
				if strings.Contains(cursor, "/delta/") {
					return `{"value":[],"deltaLink":"` + apiRoot + `delta/clockings?deltaToken=y"}`
				}
				if page++; page == end {
					return `{"value":[{"id":9,"changeVersion":"0000090300000000000A"}],"deltaLink":"` + apiRoot + `delta/clockings?deltaToken=x"}`
				}
				return listed(fmt.Sprint(page), ids...)
			}}
			w.reopen()
			for try := range 3 {
				before, cursor := page, w.checkpoint().Cursor
				err := w.feed.Step(context.Background())
				p := w.feed.plan(err, time.Second)
				w.feed.fail(p, err)
				if !errors.Is(err, protime.ErrCircle) || p.advice != adviceCircle {
					t.Fatalf("step: %v, plan %+v; want %v and an advice", err, p, protime.ErrCircle)
				}
				if got := page - before; got < maxBarren-4*maxRunPages || got > maxBarren+4*maxRunPages {
					t.Errorf("try %d fetched %d pages, want about %d", try, got, maxBarren)
				}
				if w.checkpoint().Cursor == cursor {
					t.Errorf("try %d has not moved the cursor", try)
				}
			}
			if s := w.feed.Status(); s.State != StateRetrying || s.Attempts != 3 {
				t.Errorf("status is %+v, want %s after 3 attempts", s, StateRetrying)
			}
			end = page + 300 // it was only long
			w.settle()
			if got := len(w.messages()); got != len(ids)+1 {
				t.Errorf("%d messages, want %d", got, len(ids)+1)
			}
		})
	}
}

// TestHostile_LongEmptyListing: the API may send empty pages, so a few hundred of them are no reason to say anything.
func TestHostile_LongEmptyListing(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	page := 0
	w.cfg.Source = scripted{w.cfg.Source, func(cursor string) string {
		if page++; page < maxBarren {
			return listed(fmt.Sprint(page))
		}
		return `{"value":[],"deltaLink":"` + apiRoot + `delta/clockings?deltaToken=x"}`
	}}
	w.reopen()
	w.step()
}

// TestHostile_CircleBacksOff: what leads nowhere is asked for less and less often.
func TestHostile_CircleBacksOff(t *testing.T) {
	for name, moves := range map[string]bool{"Circle": false, "WithoutEnd": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := idle(new(logBuffer))
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				var steps atomic.Int64
				if err := f.loop(ctx, func(context.Context) error {
					n := steps.Add(1)
					if moves {
						f.at.Cursor = fmt.Sprint(n)
						return f.tread(run{pages: maxBarren}, false)
					}
					return onCursor(&protime.PageError{Reason: "x", Err: protime.ErrCircle})
				}); err != nil {
					t.Fatal(err)
				}
				if n := steps.Load(); n > 150 {
					t.Errorf("%d tries in an hour", n)
				}
				if s := f.Status(); s.State != StateRetrying || s.Advice != adviceCircle {
					t.Errorf("status is %+v, want %s with an advice", s, StateRetrying)
				}
			})
		})
	}
}
