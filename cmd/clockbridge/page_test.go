package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"html"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"clockbridge/bridge"
)

// noon is when the pages of these tests are made.
var noon = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// rendered is the text of a template as a reader sees it: without tags, and with single spaces.
func rendered(t *testing.T, name string, s engineState) string {
	t.Helper()
	var b bytes.Buffer
	if err := pageTemplate.ExecuteTemplate(&b, name, newPage("1.2", s, noon, false)); err != nil {
		t.Fatal(err)
	}
	text := regexp.MustCompile(`<[^>]*>`).ReplaceAllString(b.String(), " ")
	return strings.Join(strings.Fields(html.UnescapeString(text)), " ")
}

func TestPage_summary(t *testing.T) {
	healthy := bridge.Status{Tenant: "acme", Collection: "people", State: bridge.StateHealthy, Phase: bridge.OriginDelta}
	in := func(state bridge.State) bridge.Status {
		return bridge.Status{Tenant: "acme", Collection: "clockings", State: state}
	}
	walking := bridge.Status{Tenant: "acme", Collection: "clockings", State: bridge.StateHealthy, Phase: bridge.OriginSnapshot}
	apart, dead := feeds(healthy), feeds(healthy)
	apart.nats, dead.broken = "reconnecting", errors.New("no feed is followed any more")
	for _, test := range []struct {
		name   string
		engine engineState
		want   string
	}{
		{"well", feeds(healthy, healthy), "All is well 2 feeds, up to date."},
		{"one", feeds(healthy), "All is well 1 feed, up to date."},
		{"shared", feeds(healthy, in(bridge.StateStandby)), "All is well 2 feeds, up to date; 1 of them is followed by another instance."},
		{"standby", feeds(in(bridge.StateStandby)), "All is well, and this instance stands by 1 feed, followed elsewhere."},
		{"walking", feeds(healthy, walking), "All is well, and a whole list is being read 2 feeds; 1 of them is at it."},
		{"waiting", feeds(healthy, in(bridge.StateRetrying)), "1 of 2 feeds is not up to date That is expected to pass by itself. acme/clockings : retrying"},
		{"starting", feeds(in(bridge.StateStarting)), "1 of 1 feed is not up to date That is expected to pass by itself. acme/clockings : starting"},
		{"one of two", feeds(healthy, in(bridge.StateUnauthorized)), "1 of 2 feeds needs somebody’s help What to do stands below. The other feeds go on meanwhile. acme/clockings : unauthorized"},
		{"worst first", feeds(in(bridge.StateConflict), in(bridge.StateRetrying), in(bridge.StateStale)),
			"2 of 3 feeds need somebody’s help What to do stands below. The other feeds go on meanwhile. acme/clockings : conflict acme/clockings : retrying acme/clockings : stale"},
		{"all", feeds(in(bridge.StateMisconfigured)), "1 of 1 feed needs somebody’s help What to do stands below. acme/clockings : misconfigured"},
		{"paused", feeds(healthy, in(bridge.StatePaused)), "1 of 2 feeds is paused Somebody wants it so. No change arrives until it is resumed, and none is lost. acme/clockings : paused"},
		{"NATS away, which no feed has noticed", apart, "No connection to NATS It is tried again by itself, for ever. Until it is back no change is stored, and none is lost."},
		{"dead", dead, "This process has to be started again No feed is followed any more"},
	} {
		if got := rendered(t, "summary", test.engine); got != test.want {
			t.Errorf("%s: got  %s\nwant %s", test.name, got, test.want)
		}
	}
}

// Every state has a sentence for whoever does not know the word.
func TestMeaning(t *testing.T) {
	said := map[string]bridge.State{}
	for _, state := range bridge.States {
		tone, sentence := meaning(bridge.Status{State: state})
		if strings.Contains(sentence, string(state)+".") || len(strings.Fields(sentence)) < 8 || !strings.HasSuffix(sentence, ".") {
			t.Errorf("%s is no sentence about state %s", sentence, state)
		}
		if other, twice := said[sentence]; twice {
			t.Errorf("states %s and %s are said to be the same: %s", state, other, sentence)
		}
		said[sentence] = state
		ready := bridge.Status{State: state}.Ready()
		if well := tone == toneGood || tone == toneBusy || tone == toneIdle; well != ready {
			t.Errorf("state %s, ready %t, has the tone %s", state, ready, tone)
		}
	}
	for phase, want := range map[string]string{
		bridge.OriginSnapshot: "The first list of all records is being read",
		bridge.OriginResync:   "The delta had to begin anew (expired):",
		bridge.OriginDelta:    "Up to date:",
	} {
		if _, got := meaning(bridge.Status{State: bridge.StateHealthy, Phase: phase, LastResync: "expired"}); !strings.HasPrefix(got, want) {
			t.Errorf("healthy in phase %s: %s", phase, got)
		}
	}
	if _, got := meaning(bridge.Status{State: bridge.StateStandby, Holder: "host:7"}); !strings.HasPrefix(got, "host:7 follows this feed.") {
		t.Errorf("standby: %s", got)
	}
}

func TestPage_feed(t *testing.T) {
	base := bridge.Status{
		Tenant: "acme", Collection: "clockings", Stream: "PROTIME_ACME_CLOCKINGS", State: bridge.StateHealthy, Phase: bridge.OriginDelta,
		Holder: "host:7", Position: 1234567, FetchedAt: noon.Add(-30 * time.Hour), ChangedAt: noon.Add(-90 * time.Minute),
	}
	with := func(change func(*bridge.Status)) bridge.Status {
		s := base
		change(&s)
		return s
	}
	verified := func(r bridge.VerifyReport) bridge.Status {
		r.At = noon.Add(-time.Hour)
		return with(func(s *bridge.Status) { s.LastVerify = &r })
	}
	for _, test := range []struct {
		name string
		feed bridge.Status
		want []string
	}{
		{"healthy", base, []string{"acme/clockings healthy Up to date", "Last change 1 h 30 min ago 20 Nov 2026, 10:30:00", "Cursor age 30 h of 72 h", "Position 1 234 567",
			"Holder host:7", "This instance has stored no change in the last hour.", "Verified not by this instance"}},
		{"nothing yet", bridge.Status{State: bridge.StateStarting}, []string{"Last change none since", "Cursor age no answer is known of", "Position 0", "Holder nobody yet"}},
		{"retrying", with(func(s *bridge.Status) {
			s.State, s.Error, s.Advice, s.Attempts, s.RetryAt = bridge.StateRetrying, "503 unavailable", "nothing yet", 4, noon.Add(time.Minute)
		}), []string{"What fails 503 unavailable What to do Nothing yet Tried 4 times. Next try: 20 Nov 2026, 12:01:00 UTC"}},
		{"stopped", with(func(s *bridge.Status) { s.State, s.Error, s.Attempts = bridge.StateConflict, "a foreign message", 1 }),
			[]string{"What fails a foreign message Not tried again by itself."}},
		{"stale, which is no error", with(func(s *bridge.Status) { s.State, s.Advice = bridge.StateStale, "ask the vendor" }), []string{"What to do Ask the vendor"}},
		{"exact", verified(bridge.VerifyReport{Records: 3}), []string{"Verified 20 Nov 2026, 11:00:00 : the stream says what the API says"}},
		{"differs", verified(bridge.VerifyReport{Missing: 1, Phantom: 2000, Unchecked: 3}), []string{"differs from the API: 1 missing, 2 000 phantom, 3 unchecked; see clockbridge verify"}},
		{"not verified", verified(bridge.VerifyReport{Error: "no <answer>"}), []string{"not to the end: no <answer>"}},
		{"resyncs", with(func(s *bridge.Status) { s.Resyncs, s.LastResync, s.PurgedTo = 2, "expired", 7 }), []string{"Resyncs 2; the last one: expired", "Purged up to position 7"}},
	} {
		got := rendered(t, "feeds", feeds(test.feed))
		for _, want := range test.want {
			if !strings.Contains(got, want) {
				t.Errorf("%s: no %q in\n%s", test.name, want, got)
			}
		}
	}
	standby := rendered(t, "feeds", feeds(with(func(s *bridge.Status) { s.State, s.Since = bridge.StateStandby, noon })))
	if !strings.Contains(standby, "Holder host:7 Standing by since 20 Nov 2026, 12:00:00") || strings.Contains(standby, "Cursor age") || strings.Contains(standby, "no change") {
		t.Errorf("standby shows what only the holder knows:\n%s", standby)
	}
}

func TestCursorView(t *testing.T) {
	for age, want := range map[time.Duration]cursorView{
		-time.Hour:       {true, "under a minute", 0, toneGood},
		59 * time.Second: {true, "under a minute", 0, toneGood},
		18 * time.Hour:   {true, "18 h", 25, toneGood},
		24 * time.Hour:   {true, "24 h", 33, toneWait},
		60 * time.Hour:   {true, "60 h", 83, toneBad},
		72 * time.Hour:   {true, "72 h", 100, toneBad},
		500 * time.Hour:  {true, "20 days", 100, toneBad},
	} {
		if got := newCursorView(noon.Add(-age), noon); got != want {
			t.Errorf("%s: got %+v, want %+v", age, got, want)
		}
	}
}

func TestChart(t *testing.T) {
	var counts [bridge.RecentMinutes]int
	if got := newChart(counts, noon); !got.Empty || got.Words != "This instance has stored no change in the last hour." {
		t.Errorf("nothing: %+v", got)
	}
	counts[0], counts[57], counts[58], counts[59] = 1, 2000, 1000, 3
	got := newChart(counts, noon)
	if want := "Changes a minute in the last hour: 3\u202f004 in all, at most 2\u202f000 a minute, at 11:58 UTC; 1\u202f000 in the last minute that is over."; got.Words != want {
		t.Errorf("got  %s\nwant %s", got.Words, want)
	}
	want := []bar{{0, 46, 4, 2}, {285, 0, 4, 48}, {290, 24, 4, 24}, {295, 46, 4, 2}}
	if fmt.Sprint(got.Bars) != fmt.Sprint(want) || got.Width != 300 || got.Height != 48 {
		t.Errorf("got %v in %d by %d, want %v", got.Bars, got.Width, got.Height, want)
	}
	s := feeds(bridge.Status{State: bridge.StateHealthy})
	s.feeds[0].recent.Minutes = counts
	var b bytes.Buffer
	if err := pageTemplate.ExecuteTemplate(&b, "feeds", newPage("1.2", s, noon, false)); err != nil {
		t.Fatal(err)
	}
	chart := regexp.MustCompile(`(?s)<svg class="chart".*?</svg>`).FindString(b.String())
	var svg struct {
		Role  string `xml:"role,attr"`
		Words string `xml:"aria-label,attr"`
		Bars  []struct {
			Height int `xml:"height,attr"`
		} `xml:"rect"`
	}
	if err := xml.Unmarshal([]byte(chart), &svg); err != nil || svg.Role != "img" || svg.Words != got.Words || len(svg.Bars) != 4 || svg.Bars[1].Height != 48 {
		t.Errorf("drawn as %+v, %v:\n%s", svg, err, chart)
	}
}

// The changes of all feeds are one list, newest first, and no longer than the longest of a feed.
func TestPage_changes(t *testing.T) {
	if got := rendered(t, "changes", feeds(bridge.Status{})); !strings.Contains(got, "Nothing yet since this instance started") {
		t.Errorf("without changes: %s", got)
	}
	s := feeds(bridge.Status{Tenant: "acme", Collection: "clockings"}, bridge.Status{Tenant: "acme", Collection: "people"})
	for i := range 2 * bridge.RecentChanges {
		f := &s.feeds[i%2].recent
		f.Changes = append(f.Changes, bridge.Stored{
			At: noon.Add(-time.Duration(i) * time.Second), Position: uint64(1000 - i), ID: fmt.Sprint(1000 - i), Type: bridge.TypeUpserted, Origin: bridge.OriginDelta,
		})
	}
	got := rendered(t, "changes", s)
	if !strings.Contains(got, "What happened 12:00:00 acme/clockings/ 1000 new or changed 11:59:59 acme/people/ 999 new or changed 11:59:58") {
		t.Errorf("got %s", got)
	}
	if n := strings.Count(got, "new or changed"); n != bridge.RecentChanges {
		t.Errorf("%d changes, want %d", n, bridge.RecentChanges)
	}
	for _, test := range []struct {
		change bridge.Stored
		want   string
	}{
		{bridge.Stored{ID: "7", Type: bridge.TypeDeleted, Origin: bridge.OriginResync, Data: []byte(`{"id":7}`)}, "7 deleted, found by a resync"},
		{bridge.Stored{Type: bridge.TypeUnreadable, Origin: bridge.OriginDelta}, "no id unreadable, kept aside"},
		{bridge.Stored{ID: "7", Type: bridge.TypeUpserted, Origin: bridge.OriginRepair}, "7 new or changed, repaired"},
		{bridge.Stored{ID: "7", Type: bridge.TypeUpserted, Origin: bridge.OriginSnapshot, Data: []byte(`{"person":{"id":4711},"kind":"InOut","date":"2026-11-20","timeOfDayInMinutes":510,"status":"Deleted"}`)},
			"7 new or changed, in the first list person 4711: InOut on 2026-11-20 at 08:30, deleted"},
		{bridge.Stored{ID: "7", Type: bridge.TypeUpserted, Data: []byte(`{"name":"` + strings.Repeat("é", 200) + `"}`)}, `{"name":"` + strings.Repeat("é", maxExcerpt-9) + "…"},
		{bridge.Stored{ID: "7", Type: bridge.TypeUpserted, Data: []byte("not JSON")}, "not JSON"},
	} {
		s := feeds(bridge.Status{Tenant: "acme", Collection: "clockings"})
		s.feeds[0].recent.Changes = []bridge.Stored{test.change}
		if got := rendered(t, "changes", s); !strings.HasSuffix(got, test.want) {
			t.Errorf("%+v: got %s, want %s", test.change, got, test.want)
		}
	}
}

// Whatever an id, a version, an error or a holder says, it is text.
func TestPage_hostile(t *testing.T) {
	evil := "\"><script>alert('x')</script><img src=x onerror=alert(1)>\r\nevent: build\r\ndata: x\r\n\r\n{{.}} ]]>--> \u202e javascript:alert(1)\x00"
	s := feeds(bridge.Status{
		Tenant: "acme", Collection: "clockings", State: bridge.State(evil), Holder: evil, Error: evil, Advice: evil, LastResync: evil, Stream: evil, Attempts: 1,
		LastVerify: &bridge.VerifyReport{Error: evil},
	})
	s.nats, s.broken = evil, errors.New(evil)
	s.feeds[0].recent.Changes = []bridge.Stored{{ID: evil, Type: bridge.TypeUpserted, Origin: evil, Data: []byte(evil)},
		{ID: "2", Type: evil, Data: []byte(`{"person":{"id":1},"kind":"<script>","date":"<script>","timeOfDayInMinutes":1,"status":"<script>"}`)}}
	for _, path := range []string{"/", "/?still"} {
		body := get(handler(t, s), path).Body.String()
		for _, bad := range []string{"<script>", "<img", "onerror=alert(1)>", "\x00"} {
			if strings.Contains(body, bad) {
				t.Errorf("%s shows %q as it is", path, bad)
			}
		}
		if n := strings.Count(body, "<script"); n != 1 {
			t.Errorf("%s has %d scripts", path, n)
		}
		if !strings.Contains(body, "&lt;script&gt;alert(&#39;x&#39;)") {
			t.Errorf("%s does not show what it was told", path)
		}
	}
	for _, path := range []string{"/readyz", "/healthz", "/status.json"} {
		if kind := get(handler(t, s), path).Header().Get("Content-Type"); strings.Contains(kind, "html") {
			t.Errorf("%s is %s", path, kind)
		}
	}
}

// A browser is told to load nothing from elsewhere and to keep nothing, and there is nothing that it would have to.
func TestPage_selfContained(t *testing.T) {
	h := handler(t, feeds(bridge.Status{Tenant: "acme", Collection: "clockings", State: bridge.StateHealthy}))
	page := get(h, "/")
	for header, want := range map[string]string{
		"Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
		"X-Content-Type-Options":  "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store", "Content-Type": "text/html; charset=utf-8",
	} {
		if got := page.Header().Get(header); got != want {
			t.Errorf("%s: %q, want %q", header, got, want)
		}
	}
	text := page.Body.String()
	for _, inline := range []string{"style=", "<style", " onclick", " onload", "javascript:", "http://", "https://", "//"} {
		if strings.Contains(text, inline) {
			t.Errorf("the page has %q", inline)
		}
	}
	loaded := regexp.MustCompile(`(?:src|href)="(page/[^"]*)"`).FindAllStringSubmatch(text, -1)
	if len(loaded) != 3 {
		t.Errorf("the page loads %v, want style, script and icon", loaded)
	}
	for _, m := range loaded {
		asset := get(h, "/"+m[1])
		if asset.Code != http.StatusOK || asset.Body.Len() == 0 || asset.Header().Get("ETag") == "" {
			t.Errorf("%s: %d, %d bytes, ETag %q", m[1], asset.Code, asset.Body.Len(), asset.Header().Get("ETag"))
		}
	}
	for _, path := range []string{"/page/", "/page/page.html", "/page/none"} {
		if got := get(h, path); got.Code != http.StatusNotFound {
			t.Errorf("%s: %d", path, got.Code)
		}
	}
}

// Without a script the page reloads itself, unless it is held still.
func TestPage_still(t *testing.T) {
	h := handler(t, feeds(bridge.Status{}))
	const refresh = `<noscript><meta http-equiv="refresh" content="10"></noscript>`
	if body := get(h, "/").Body.String(); !strings.Contains(body, refresh) || !strings.Contains(body, `<a href="?still">Hold still</a>`) {
		t.Errorf("the page does not reload itself:\n%s", body)
	}
	if body := get(h, "/?still").Body.String(); strings.Contains(body, refresh) || !strings.Contains(body, `<a href="./">Reload every 10 s</a>`) {
		t.Errorf("the page does not hold still:\n%s", body)
	}
}

// Every time on the page is one for machines too.
func TestPage_times(t *testing.T) {
	at := time.Date(2026, 11, 20, 13, 30, 0, 0, time.FixedZone("CET", 3600))
	s := feeds(bridge.Status{State: bridge.StateRetrying, Error: "x", Since: at, FetchedAt: at, ChangedAt: at, RetryAt: at, LastVerify: &bridge.VerifyReport{At: at}})
	s.feeds[0].recent.Changes = []bridge.Stored{{At: at.UTC(), ID: "1"}}
	body := get(handler(t, s), "/").Body.String()
	if n := strings.Count(body, `<time datetime="2026-11-20T12:30:00Z">20 Nov 2026, 12:30:00</time>`); n != 5 {
		t.Errorf("%d times, want the five of the feed:\n%s", n, body)
	}
	if !strings.Contains(body, `<time datetime="2026-11-20T12:30:00.000Z">12:30:00</time>`) {
		t.Errorf("the change has no time:\n%s", body)
	}
}

// The page is well formed, so that what is streamed of it is the same element that stands in it.
func TestPage_parts(t *testing.T) {
	s := feeds(bridge.Status{Tenant: "acme", Collection: "clockings", State: bridge.StateRetrying, Error: "x", Advice: "y"})
	s.feeds[0].recent.Changes = []bridge.Stored{{At: noon, ID: "1"}}
	for _, name := range pageParts {
		var b bytes.Buffer
		if err := pageTemplate.ExecuteTemplate(&b, name, newPage("1.2", s, noon, false)); err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(b.String(), `<section id="`+name+`"`) {
			t.Errorf("part %s begins with %.60s", name, b.String())
		}
		ids := map[string]bool{}
		for _, m := range regexp.MustCompile(` id="([^"]*)"`).FindAllStringSubmatch(b.String(), -1) {
			if ids[m[1]] {
				t.Errorf("part %s has the id %s twice", name, m[1])
			}
			ids[m[1]] = true
		}
		decoder := xml.NewDecoder(strings.NewReader(strings.ReplaceAll(b.String(), "<wbr>", "")))
		decoder.Strict, decoder.AutoClose, decoder.Entity = true, []string{"br"}, xml.HTMLEntity
		for {
			if _, err := decoder.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("part %s: %v", name, err)
			}
		}
	}
}
