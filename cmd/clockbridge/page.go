package main

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"html/template"
	"io"
	"io/fs"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"clockbridge/bridge"
)

//go:embed page
var pageFiles embed.FS

var (
	pageTemplate = template.Must(template.New("").Funcs(template.FuncMap{
		"moment": moment, "number": number, "sentence": sentence,
	}).ParseFS(pageFiles, "page/*.html"))

	// pageBuild tells one build's page from another's.
	pageBuild = fingerprint()
)

// pageParts are the templates of the elements that live streams. Each is one element, whose id is its name.
var pageParts = []string{"summary", "feeds", "changes"}

func fingerprint() string {
	sum := sha256.New()
	err := fs.WalkDir(pageFiles, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := pageFiles.ReadFile(path)
		sum.Write(text)
		return err
	})
	if err != nil {
		panic(err) // what is embedded can be read
	}
	return hex.EncodeToString(sum.Sum(nil)[:8])
}

// assets serves what the page loads.
func assets() http.Handler {
	files := http.FileServerFS(pageFiles)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/") || strings.HasSuffix(r.URL.Path, ".html") {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Cache-Control", "no-cache") // but asked for again, since another build has others
		w.Header().Set("ETag", `"`+pageBuild+`"`)
		files.ServeHTTP(w, r)
	})
}

// render executes one of the page's templates.
func render(w io.Writer, name string, p page) {
	pageTemplate.ExecuteTemplate(w, name, p) //nolint:errcheck // the client is gone
}

// page is what the templates show.
type page struct {
	Version, Build string
	Now            time.Time
	Still          bool // it does not reload itself
	Title          string
	Summary        headline
	Feeds          []feedView
	Changes        []changeView // newest first
	Limit          int          // of Changes
}

// Tones: how good or bad something is. Each has a colour, and a shape and words beside it.
const (
	toneGood = "good"
	toneBusy = "busy" // well, and at work on something large
	toneIdle = "idle" // well, and the work is done elsewhere
	toneHold = "hold" // not done, because somebody wants it so
	toneWait = "wait" // not well, and expected to pass by itself
	toneBad  = "bad"  // somebody has to do something
)

// headline is what there is to know at first sight.
type headline struct {
	Tone, Title, Text string
	Troubled          []feedView
}

func newPage(version string, s engineState, now time.Time, still bool) page {
	p := page{Version: version, Build: pageBuild, Now: now.UTC(), Still: still, Limit: bridge.RecentChanges}
	for _, f := range s.feeds {
		p.Feeds = append(p.Feeds, newFeedView(f, now))
		for _, c := range f.recent.Changes {
			p.Changes = append(p.Changes, newChangeView(f.Status, c))
		}
	}
	slices.SortStableFunc(p.Changes, func(a, b changeView) int { return b.At.Compare(a.At) })
	p.Changes = p.Changes[:min(len(p.Changes), p.Limit)]
	p.Summary = summarize(s, p.Feeds)
	p.Title = p.Summary.Title + " – clockbridge"
	return p
}

func summarize(s engineState, feeds []feedView) headline {
	var sum headline
	count := map[string]int{}
	for _, f := range feeds {
		count[f.Tone]++
		if !f.Ready() {
			sum.Troubled = append(sum.Troubled, f)
		}
	}
	all := feedsInWords(len(feeds))
	switch {
	case s.broken != nil:
		sum.Tone, sum.Title, sum.Text = toneBad, "This process has to be started again", sentence(oneLine(s.broken.Error()))
	case count[toneBad] > 0:
		sum.Tone, sum.Title = toneBad, fmt.Sprintf("%d of %s %s somebody’s help", count[toneBad], all, agree(count[toneBad], "needs", "need"))
		sum.Text = "What to do stands below."
		if count[toneBad] < len(feeds) {
			sum.Text += " The other feeds go on meanwhile."
		}
	case s.nats != natsConnected:
		sum.Tone, sum.Title = toneWait, "No connection to NATS"
		sum.Text = "It is tried again by itself, for ever. Until it is back no change is stored, and none is lost."
	case count[toneWait] > 0:
		sum.Tone, sum.Title = toneWait, fmt.Sprintf("%d of %s %s not up to date", count[toneWait], all, agree(count[toneWait], "is", "are"))
		sum.Text = "That is expected to pass by itself."
	case count[toneHold] > 0:
		sum.Tone, sum.Title = toneHold, fmt.Sprintf("%d of %s %s paused", count[toneHold], all, agree(count[toneHold], "is", "are"))
		sum.Text = "Somebody wants it so. No change arrives until it is resumed, and none is lost."
	case count[toneBusy] > 0:
		sum.Tone, sum.Title = toneBusy, "All is well, and a whole list is being read"
		sum.Text = fmt.Sprintf("%s; %d of them %s at it.", all, count[toneBusy], agree(count[toneBusy], "is", "are"))
	case count[toneIdle] == len(feeds):
		sum.Tone, sum.Title = toneIdle, "All is well, and this instance stands by"
		sum.Text = all + ", followed elsewhere."
	default:
		sum.Tone, sum.Title = toneGood, "All is well"
		sum.Text = all + ", up to date."
		if count[toneIdle] > 0 {
			sum.Text = fmt.Sprintf("%s, up to date; %d of them %s followed by another instance.", all, count[toneIdle], agree(count[toneIdle], "is", "are"))
		}
	}
	return sum
}

// feedView is a feed as the page shows it.
type feedView struct {
	bridge.Status
	ID, Name string
	Here     bool // this instance follows it, or would
	Tone     string
	Word     string // the state, for a badge
	Sentence string // what that means
	Chart    chart
	Cursor   cursorView
	Changed  string // how long ago, or ""
	Verified string // what the last verification found
}

func newFeedView(f feedState, now time.Time) feedView {
	v := feedView{
		Status: f.Status, Here: f.State != bridge.StateStandby, ID: "feed." + f.Tenant + "." + f.Collection, Name: f.Tenant + "/" + f.Collection,
		Word: string(f.State), Chart: newChart(f.recent.Minutes, now), Cursor: newCursorView(f.FetchedAt, now),
	}
	v.Tone, v.Sentence = meaning(f.Status)
	if v.Tone == toneBusy {
		v.Word += ", reading"
	}
	if !f.ChangedAt.IsZero() {
		v.Changed = span(now.Sub(f.ChangedAt), "just now")
	}
	v.Verified = verdictOn(f.LastVerify)
	return v
}

// meaning puts a feed's state into a sentence that needs no knowledge of the program, and says how bad it is.
func meaning(s bridge.Status) (tone, sentence string) {
	switch s.State {
	case bridge.StateHealthy:
		switch s.Phase {
		case bridge.OriginSnapshot:
			return toneBusy, "The first list of all records is being read, and every record is put into the stream."
		case bridge.OriginResync:
			why := ""
			if s.LastResync != "" {
				why = " (" + s.LastResync + ")"
			}
			return toneBusy, "The delta had to begin anew" + why + ": the whole list is read again, and what differs from the stream is put into it. Nothing is lost, and nothing is published twice."
		}
		return toneGood, "Up to date: every change that the API has reported is in the stream."
	case bridge.StateStandby:
		holder := s.Holder
		if holder == "" {
			holder = "Another instance"
		}
		return toneIdle, holder + " follows this feed. This instance is ready, and takes over if that one stops."
	case bridge.StatePaused:
		return toneHold, "Somebody has paused this feed, so nobody asks the API for changes. Resumed, it goes on where it was: nothing is lost."
	case bridge.StateStarting:
		return toneWait, "The feed has been taken up, and compares its stream with what it knows. It has not been through yet."
	case bridge.StateRetrying:
		return toneWait, "Something on the way fails: the network, the API or NATS. It is tried again by itself, and goes on where it was: nothing is lost."
	case bridge.StateUnauthorized:
		return toneBad, "The API refuses these credentials, or what they may read. No change arrives until somebody puts that right."
	case bridge.StateMisconfigured:
		return toneBad, "A setting is refused, by the API or by NATS. No change arrives until somebody corrects it."
	case bridge.StateConflict:
		return toneBad, "Somebody else writes into this feed’s stream, so the feed has stopped before the two could mix."
	case bridge.StateStale:
		return toneBad, "The API reports only changes that are older than those in the stream. Somebody has to say which of the two is right."
	case bridge.StateStopped:
		return toneBad, "What was reached cannot be written to disk, so the process ends. Its next start goes on from what is on disk."
	}
	return toneBad, "The state is " + string(s.State) + "."
}

// cursorView is the age of a feed's cursor.
type cursorView struct {
	Known bool
	Age   string
	Used  int    // percent of bridge.DeltaLife
	Tone  string // good up to 24 h, wait up to 60 h
}

func newCursorView(answered, now time.Time) cursorView {
	if answered.IsZero() {
		return cursorView{}
	}
	age := max(now.Sub(answered), 0)
	v := cursorView{Known: true, Age: span(age, "under a minute"), Used: int(min(100*age/bridge.DeltaLife, 100)), Tone: toneGood}
	switch {
	case age >= 60*time.Hour:
		v.Tone = toneBad
	case age >= 24*time.Hour:
		v.Tone = toneWait
	}
	return v
}

func verdictOn(r *bridge.VerifyReport) string {
	switch {
	case r == nil:
		return ""
	case r.Error != "":
		return "not to the end: " + r.Error
	case !r.Differs():
		return "the stream says what the API says"
	}
	var parts []string
	for _, k := range bridge.Kinds {
		if n := r.Count(k); n > 0 {
			parts = append(parts, number(n)+" "+string(k))
		}
	}
	if r.Unchecked > 0 {
		parts = append(parts, number(r.Unchecked)+" unchecked")
	}
	return "the stream differs from the API: " + strings.Join(parts, ", ") + "; see clockbridge verify"
}

// changeView is a line of the last changes.
type changeView struct {
	bridge.Stored
	Key, Feed string
	What      string // happened to the record, in words
	Shown     string // of its data; "" unless that is switched on
}

func newChangeView(s bridge.Status, c bridge.Stored) changeView {
	v := changeView{
		Stored: c, Feed: s.Tenant + "/" + s.Collection,
		Key: fmt.Sprintf("change.%s.%s.%d", s.Tenant, s.Collection, c.Position), Shown: excerpt(c),
	}
	v.What = map[string]string{
		bridge.TypeUpserted: "new or changed", bridge.TypeDeleted: "deleted", bridge.TypeUnreadable: "unreadable, kept aside",
	}[c.Type]
	v.What += map[string]string{
		bridge.OriginSnapshot: ", in the first list", bridge.OriginResync: ", found by a resync", bridge.OriginRepair: ", repaired",
		bridge.OriginErasure: ", a person was forgotten",
	}[c.Origin]
	return v
}

// maxExcerpt is how much is shown of a record that is no clocking, in characters.
const maxExcerpt = 160

// excerpt puts a record's data into a few words: of a clocking who, what and when.
func excerpt(c bridge.Stored) string {
	if c.Type == bridge.TypeDeleted {
		return "" // all that is left of it is its id
	}
	r := readClocking(c.Data)
	if r.Kind == "" || r.Person.ID == "" || r.Minutes == nil {
		text := []rune(string(c.Data))
		if len(text) > maxExcerpt {
			return string(text[:maxExcerpt]) + "…"
		}
		return string(text)
	}
	words := fmt.Sprintf("person %s: %s on %s at %s", r.Person.ID, r.Kind, r.Date, timeOfDay(r.Minutes))
	if r.Status != "" && r.Status != "Active" {
		words += ", " + strings.ToLower(r.Status)
	}
	return words
}

// moment is a time for people and machines.
func moment(t time.Time) template.HTML {
	if t.IsZero() {
		return "never"
	}
	t = t.UTC()
	return template.HTML(fmt.Sprintf(`<time datetime="%s">%s</time>`, //nolint:gosec // digits and letters of a time
		t.Format(time.RFC3339), t.Format("2 Jan 2006, 15:04:05")))
}

// span says how long something is, as roughly as people do; brief is what it says of less than a minute.
func span(d time.Duration, brief string) string {
	switch {
	case d < time.Minute:
		return brief
	case d < time.Hour:
		return fmt.Sprintf("%d min", d/time.Minute)
	case d < 10*time.Hour:
		return fmt.Sprintf("%d h %d min", d/time.Hour, d%time.Hour/time.Minute)
	case d < 2*bridge.DeltaLife:
		return fmt.Sprintf("%d h", d/time.Hour)
	}
	return fmt.Sprintf("%d days", d/(24*time.Hour))
}

// number writes a count with a narrow space, which breaks no line, between thousands.
func number(n any) string {
	digits := fmt.Sprint(n)
	var b strings.Builder
	for i, d := range digits {
		if i > 0 && (len(digits)-i)%3 == 0 {
			b.WriteString("\u202f")
		}
		b.WriteRune(d)
	}
	return b.String()
}

func feedsInWords(n int) string { return fmt.Sprintf("%d %s", n, agree(n, "feed", "feeds")) }

// agree returns the word that goes with one, or with another number.
func agree(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

// sentence begins with a capital letter, as on a page and unlike in a log.
func sentence(s string) string {
	if s == "" {
		return ""
	}
	first, size := utf8.DecodeRuneInString(s)
	return string(unicode.ToUpper(first)) + s[size:]
}
