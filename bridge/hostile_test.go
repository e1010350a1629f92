package bridge

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/url"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"

	"clockbridge/protime"
	"clockbridge/protime/protimetest"
)

// scripted is an API that answers every cursor with what page, or body, says.
type scripted struct {
	Source
	page func(cursor string) string
	body func(cursor string) io.Reader
}

func (s scripted) Fetch(ctx context.Context, cursor string) (*protime.Page, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	body := s.body
	if body == nil {
		body = func(cursor string) io.Reader { return strings.NewReader(s.page(cursor)) }
	}
	return protime.NewPage(io.NopCloser(body(cursor)), strings.Contains(cursor, "/delta/")), nil
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
			w.cfg.Source = scripted{Source: w.cfg.Source, page: func(cursor string) string {
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
			w.cfg.Source = scripted{Source: w.cfg.Source, page: func(cursor string) string {
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
	w.cfg.Source = scripted{Source: w.cfg.Source, page: func(cursor string) string {
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

// TestHostile_IDs: whatever a collection calls its records, each has a subject of its own from which its id can be told, or is kept aside;
// and an index that is built anew from the stream knows them all.
func TestHostile_IDs(t *testing.T) {
	good := map[string]string{ // the id as JSON, and as text
		`0`: "0", `-7`: "-7", `-0`: "-0", `1.5`: "1.5", `1E400`: "1E400", `123456789012345678901234567890`: "123456789012345678901234567890",
		`-99999999999999999999`: "-99999999999999999999", `"a.b"`: "a.b", `"a b"`: "a b", `" "`: " ", `"."`: ".", `".."`: "..", `"*"`: "*", `">"`: ">", `"a.*.>"`: "a.*.>",
		`"%"`: "%", `"%2E"`: "%2E", `"%zz"`: "%zz", `"invalid"`: "invalid", `"Invalid"`: "Invalid", `"%69nvalid"`: "%69nvalid", `"$JS.API.>"`: "$JS.API.>",
		`"\u00e9"`: "\u00e9", `"\ud83d\ude00"`: "\U0001f600", `"\u202e"`: "\u202e",
		`"6f9619ff-8b86-d011-b42d-00c04fc964ff"`: "6f9619ff-8b86-d011-b42d-00c04fc964ff", `"100-17-3"`: "100-17-3", `"true"`: "true", `"null"`: "null",
		`"` + strings.Repeat("9", maxID) + `"`: strings.Repeat("9", maxID), `"` + strings.Repeat("\u00e9", maxID/2) + `"`: strings.Repeat("\u00e9", maxID/2),
	}
	bad := []string{ // kept aside
		`null`, `true`, `[1]`, `{"id":1}`, `""`, `"\u0000"`, `"\u0000x"`, `"a\u0000b"`, `"\t"`, `"\r\nX-Y: z"`, `"\ufffe"`, "\"\xff\xfe\"", `"\ud83d"`, strings.Repeat("9", maxID+1), `"` + strings.Repeat(".", maxID+1) + `"`,
	}
	var items []string
	for id := range good {
		items = append(items, id)
	}
	for i, id := range append(items, bad...) {
		items = append(items[:i], fmt.Sprintf(`{"id":%s,"changeVersion":"0000090300000000000A"}`, id))
	}
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.cfg.Source = scripted{Source: w.cfg.Source, page: func(cursor string) string {
		if strings.Contains(cursor, "/delta/") {
			return `{"value":[],"deltaLink":"` + apiRoot + `delta/clockings?deltaToken=y"}`
		}
		return `{"value":[` + strings.Join(items, ",") + `],"deltaLink":"` + apiRoot + `delta/clockings?deltaToken=x"}`
	}}
	w.reopen()
	w.settle()
	ids := map[string]uint64{}
	aside := 0
	for _, m := range w.messages() {
		last, ok := strings.CutPrefix(m.subject, SubjectPrefix(w.tenant, "clockings")+".")
		if !ok || strings.ContainsAny(last, ".*> \t\r\n") {
			t.Errorf("message %d is on %q", m.seq, m.subject)
		}
		if last == invalidToken {
			aside++
			continue
		}
		id, err := url.PathUnescape(last)
		if err != nil || ids[id] != 0 {
			t.Errorf("message %d is on %q, of record %q like message %d", m.seq, m.subject, id, ids[id])
		}
		ids[id] = m.seq
		if attribute, err := url.PathUnescape(m.id); err != nil || attribute != id {
			t.Errorf("message %d on %q is about %q", m.seq, m.subject, m.id)
		}
	}
	if len(ids) != len(good) || aside != len(bad) {
		t.Errorf("%d records and %d changes kept aside, want %d and %d", len(ids), aside, len(good), len(bad))
	}
	n := len(w.messages())
	w.store.Close()
	if err := os.Remove(w.path); err != nil {
		t.Fatal(err)
	}
	w.reopen()
	w.settle() // a walk again: all of it is known
	for _, id := range good {
		if e, err := w.feed.lookup(id); err != nil || ids[id] == 0 || e.Position != ids[id] {
			t.Errorf("record %q is at %d in the stream, and at %d in the index, %v", id, ids[id], e.Position, err)
		}
	}
	if got := len(w.messages()); got != n {
		t.Errorf("%d messages after a start with an empty store, want the %d of before", got, n)
	}
}

// TestHostile_VersionShrinks: within a page, and with every page. The feed counts it, keeps what is newer, and says so.
func TestHostile_VersionShrinks(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	page := 0
	w.cfg.Source = scripted{Source: w.cfg.Source, page: func(string) string {
		page++
		return fmt.Sprintf(`{"value":[
			{"changeType":"InsertOrUpdate","data":{"id":1,"changeVersion":"%020d","n":1}},
			{"changeType":"Delete","data":{"id":1,"changeVersion":"%020d"}}
			],"deltaLink":"`+apiRoot+`delta/clockings?deltaToken=%d"}`, 1000-page, 500-page, page)
	}}
	w.reopen()
	at := w.checkpoint()
	to := at
	to.Cursor, to.Origin, to.Filter, to.Begun = apiRoot+"delta/clockings?deltaToken=0", OriginDelta, filterAll, now()
	if err := w.store.Commit(w.feed.name, at, to, nil); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		w.step()
		w.feed.recovered()
	}
	msgs := w.messages()
	if len(msgs) != 1 || msgs[0].id != "1" || msgs[0].version != fmt.Sprintf("%020d", 999) {
		t.Errorf("got %+v, want the first version alone", msgs)
	}
	if s := w.feed.Status(); s.Stale != 9 || s.State != StateStale || s.Advice == "" {
		t.Errorf("status is %+v, want 9 stale changes, and the state %s with an advice", s, StateStale)
	}
}

var hostileChanges = flag.Int("hostile.changes", 200_000, "changes in the one body that TestHostile_OneBody reads")

// millions is a delta page of that many changes, made while it is read; each runs now and then.
type millions struct {
	changes, made int
	each          func()
	rest          []byte
}

func (m *millions) Read(b []byte) (n int, err error) {
	for n < len(b) {
		if len(m.rest) == 0 {
			switch m.made++; {
			case m.made == 1:
				m.rest = append(m.rest, `{"value":[`...)
			case m.made <= m.changes+1:
				end := ","
				if m.made == m.changes+1 {
					end = ""
				}
				m.rest = fmt.Appendf(m.rest, `{"changeType":"InsertOrUpdate","data":{"changeVersion":"%020X","id":%d,"calculatedTimeOfDayInMinutes":510,`+
					`"isGenerated":false,"status":"Active","person":{"id":%d},"date":"2026-01-15","timeOfDayInMinutes":510,"kind":"InOut"}}%s`,
					m.made, m.made, m.made%1000, end)
			case m.made == m.changes+2:
				m.rest = append(m.rest, `],"deltaLink":"`+apiRoot+`delta/clockings?deltaToken=x"}`...)
			default:
				return n, io.EOF
			}
			if m.made%50_000 == 0 {
				m.each()
			}
		}
		k := copy(b[n:], m.rest)
		m.rest = m.rest[:copy(m.rest, m.rest[k:])]
		n += k
	}
	return n, nil
}

// discarded is a stream that takes everything: what is measured is the feed, not the server's memory for millions of subjects.
type discarded struct{ appendLog }

func (discarded) Append(_ context.Context, msgs []message, at uint64) (uint64, error) {
	var m nats.Msg
	m.Header = nats.Header{}
	c := newCodec("acme", "clockings", "https://acme.myprotime.eu/connector/protimeapi/api/v1/clockings")
	for i := range msgs {
		c.encode(&m, &msgs[i], stamp{})
	}
	return at + uint64(len(msgs)), nil
}

// TestHostile_OneBody: a delta page of any number of changes in one body takes no more memory than one of a few, and all of it is
// published. Ten million: go test ./bridge -run TestHostile_OneBody -hostile.changes=10000000 -v
func TestHostile_OneBody(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	var m runtime.MemStats
	peak := uint64(0)
	w.cfg.Source = scripted{Source: w.cfg.Source, body: func(string) io.Reader {
		return &millions{changes: *hostileChanges, each: func() {
			runtime.ReadMemStats(&m)
			peak = max(peak, m.HeapAlloc)
		}}
	}}
	w.reopen()
	at := w.checkpoint()
	to := at
	to.Cursor, to.Origin, to.Filter, to.Begun = apiRoot+"delta/clockings?deltaToken=0", OriginDelta, filterAll, now()
	if err := w.store.Commit(w.feed.name, at, to, nil); err != nil {
		t.Fatal(err)
	}
	w.feed.out = discarded{w.feed.out}
	runtime.GC()
	runtime.ReadMemStats(&m)
	before := m.HeapAlloc
	began := time.Now()
	w.step()
	took := time.Since(began)
	if at := w.checkpoint(); at.Position != uint64(*hostileChanges) || !strings.HasSuffix(at.Cursor, "deltaToken=x") {
		t.Errorf("the checkpoint is %+v, want position %d and the page's deltaLink", at, *hostileChanges)
	}
	if peak > before+48<<20 {
		t.Errorf("the heap grew from %d to %d MiB", before>>20, peak>>20)
	}
	t.Logf("%d changes in %s: %.0f/s, heap from %d to at most %d MiB", *hostileChanges, took.Round(time.Millisecond),
		float64(*hostileChanges)/took.Seconds(), before>>20, peak>>20)
}
