//go:build browser

package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/prometheus/client_golang/prometheus"

	"clockbridge/bridge"
	"clockbridge/protime/protimetest"
)

// These tests look at the status page with a real Chromium, while real feeds go through their states:
//
//	go test -tags browser ./cmd/clockbridge -run Browser -axe=/path/to/axe.min.js
var (
	chromium    = flag.String("chromium", "chromium", "the browser")
	axe         = flag.String("axe", "", "axe.min.js of the npm package axe-core")
	screenshots = flag.String("screenshots", "", "a directory for pictures of every state")
)

// tab is a page in a browser of its own.
type tab struct {
	t   *testing.T
	ctx context.Context
}

func openTab(t *testing.T) *tab {
	t.Helper()
	flags := []chromedp.ExecAllocatorOption{chromedp.ExecPath(*chromium), chromedp.UserDataDir(t.TempDir()), chromedp.NoSandbox}
	for _, name := range []string{"headless", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
		"disable-component-update", "disable-sync"} {
		flags = append(flags, chromedp.Flag(name, true))
	}
	ctx, stop := chromedp.NewExecAllocator(t.Context(), flags...)
	t.Cleanup(stop)
	ctx, closeTab := chromedp.NewContext(ctx)
	t.Cleanup(closeTab)
	return &tab{t, ctx}
}

func (b *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	if err := chromedp.Do(b.ctx, steps...); err != nil {
		b.t.Fatal(err)
	}
}

// get returns the value of an expression as text.
func (b *tab) get(expression string) string {
	b.t.Helper()
	v, err := chromedp.Run(b.ctx, chromedp.Evaluate[string]("String("+expression+")"))
	if err != nil {
		b.t.Fatalf("%s: %v", expression, err)
	}
	return v
}

// see waits until an element shows a text.
func (b *tab) see(selector, want string) {
	b.t.Helper()
	shown := ""
	ok := poll(30*time.Second, func() bool {
		shown = b.get(fmt.Sprintf("document.querySelector(%q)?.innerText", selector))
		return strings.Contains(shown, want)
	})
	if !ok {
		b.t.Fatalf("waited 30 s for %q in %s, which shows:\n%s", want, selector, shown)
	}
}

func (b *tab) prefers(scheme string) {
	b.t.Helper()
	_, err := chromedp.Call(b.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: "reduce"}},
	})
	if err != nil {
		b.t.Fatal(err)
	}
}

// inspect looks at the page as it is, on a desk and on a phone, by day and by night: nothing may stick out, and axe may find no fault.
func (b *tab) inspect(state string) {
	b.t.Helper()
	for _, screen := range []struct {
		name string
		size chromedp.Action[chromedp.Void]
	}{{"phone", chromedp.EmulateViewport(390, 844, chromedp.EmulateMobile)}, {"wide", chromedp.EmulateViewport(1280, 1000)}} {
		b.do(screen.size)
		for _, scheme := range []string{"light", "dark"} {
			b.prefers(scheme)
			name := state + "-" + screen.name + "-" + scheme
			if over := b.get("document.documentElement.scrollWidth - document.documentElement.clientWidth"); over != "0" {
				b.t.Errorf("%s: the page is %s pixels wider than the screen", name, over)
			}
			b.accessible(name)
			b.picture(name)
		}
	}
}

// accessible lets axe look for faults.
func (b *tab) accessible(name string) {
	b.t.Helper()
	if b.get("typeof axe") == "undefined" {
		source, err := os.ReadFile(*axe)
		if err != nil {
			b.t.Fatalf("axe-core is needed, see -axe: %v", err)
		}
		b.do(chromedp.Evaluate[chromedp.Void](string(source) + "\n;undefined"))
	}
	found, err := chromedp.Run(b.ctx, chromedp.Evaluate[string](`axe.run({resultTypes: ['violations']}).then(r => JSON.stringify({
		checked: r.passes.length,
		violations: r.violations.map(v => ({id: v.id, help: v.help, at: v.nodes.map(n => n.target.join(' ') + ': ' + n.failureSummary)})),
	}))`, chromedp.EvalAwaitPromise))
	if err != nil {
		b.t.Fatalf("%s: axe: %v", name, err)
	}
	var result struct {
		Checked    int
		Violations []struct {
			ID, Help string
			At       []string
		}
	}
	if err := json.Unmarshal([]byte(found), &result); err != nil {
		b.t.Fatalf("%s: axe: %v in %s", name, err, found)
	}
	if result.Checked < 20 {
		b.t.Errorf("%s: axe has passed %d rules only", name, result.Checked)
	}
	for _, v := range result.Violations {
		b.t.Errorf("%s: axe: %s: %s\n  %s", name, v.ID, v.Help, strings.Join(v.At, "\n  "))
	}
}

func (b *tab) picture(name string) {
	b.t.Helper()
	if *screenshots == "" {
		return
	}
	png, err := chromedp.Run(b.ctx, chromedp.FullScreenshot(100))
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(*screenshots, name+".png"), png, 0o644); err != nil {
		b.t.Fatal(err)
	}
}

// company is a site whose people have clocked for a while.
func company(t *testing.T, showData bool) (*site, *protimetest.Workload) {
	t.Helper()
	var work *protimetest.Workload
	s := newSite(t, showData, func(sim *protimetest.Server) {
		sim.Fill("people", 25, 200)
		work = protimetest.NewWorkload(sim, "acme", protimetest.WorkloadOptions{People: 25, Seed: 1})
		work.Backfill(20)
	})
	return s, work
}

// TestBrowser_states: one tab, opened once, shows every state as it comes.
func TestBrowser_states(t *testing.T) {
	s, work := company(t, false)
	b := openTab(t)
	b.do(chromedp.Navigate(s.url))
	b.see("#live-word", "Live")
	b.get("window.untouched = true")
	work.Step()

	const feed, summary = `[id="feed.acme.clockings"]`, "#summary"
	recovered := func() {
		s.engine.sync()
		b.see(summary, "All is well")
		b.see(feed, "healthy")
	}
	deny := func(f protimetest.Fault) (allow func()) {
		f.Match = func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/clockings") }
		return s.sim.Fail(f)
	}
	recovered()
	b.see(feed, "Up to date")
	b.inspect("healthy")

	allow := deny(protimetest.Fault{Kind: protimetest.Status, Status: 503})
	b.see(feed, "Something on the way fails")
	b.see(feed, "Next try")
	b.see(summary, "acme/clockings: retrying")
	b.inspect("retrying")
	allow()
	recovered()

	allow = deny(protimetest.Fault{Kind: protimetest.Status, Status: 403})
	b.see(feed, "The API refuses these credentials")
	b.see(feed, "connector-protimeapi-clockings.read")
	b.see(summary, "1 of 2 feeds needs somebody’s help")
	b.inspect("unauthorized")
	b.do(chromedp.Click(chromedp.CSS(summary + " a")))
	if at := b.get("decodeURIComponent(location.hash)"); at != "#feed.acme.clockings" {
		t.Errorf("the summary's link leads to %q", at)
	}
	allow()
	recovered()

	allow = deny(protimetest.Fault{Kind: protimetest.Slow, Delay: 3 * time.Second})
	s.sim.Expire("clockings")
	b.see(feed, "The delta had to begin anew (expired)")
	b.see(summary, "All is well, and a whole list is being read")
	b.inspect("expired")
	allow()
	recovered()

	if _, err := bridge.RequestPause(t.Context(), s.engine.nc, "acme", "clockings"); err != nil {
		t.Fatal(err)
	}
	b.see(feed, "Somebody has paused this feed")
	b.see(feed, "Resume it: clockbridge resume")
	b.inspect("paused")
	if _, err := bridge.RequestResume(t.Context(), s.engine.nc, "acme", "clockings"); err != nil {
		t.Fatal(err)
	}
	recovered()

	s.stopNATS()
	b.see(summary, "No connection to NATS")
	b.see(feed, "Something on the way fails")
	b.inspect("without-nats")
	s.startNATS()
	recovered()

	other, url := s.join(false)
	if !poll(20*time.Second, func() bool {
		return len(standbys(s.engine)) == 1 && len(standbys(other)) == 1
	}) {
		t.Fatalf("two instances do not share two feeds: %+v, %+v", s.engine.status(), other.status())
	}
	b.see("#feeds", "standby")
	if got := b.get("window.untouched"); got != "true" {
		t.Error("the page was loaded again meanwhile")
	}
	b.do(chromedp.Navigate(url))
	b.see("#feeds", "follows this feed. This instance is ready")
	b.inspect("standby")
}

func standbys(e *engine) (all []string) {
	for _, f := range e.status() {
		if f.State == bridge.StateStandby {
			all = append(all, f.Collection)
		}
	}
	return all
}

// TestBrowser_changes: changes land without a reload, the data of a record is shown if that is switched on, and a page that cannot be true
// any more says so until the server is back.
func TestBrowser_changes(t *testing.T) {
	s, _ := company(t, true)
	url, stop, err := serveHTTP("127.0.0.1:0", "1.2", s.engine, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	b := openTab(t)
	b.do(chromedp.Navigate(url))
	b.see("#live-word", "Live")
	b.see("#changes", "first list")
	b.get("window.untouched = true")
	id := s.sim.Insert("clockings", map[string]any{
		"person": map[string]any{"id": 4711}, "date": time.Now().Format(time.DateOnly), "timeOfDayInMinutes": 510, "kind": "InOut",
	})
	b.see("tbody tr", "person 4711: InOut on "+time.Now().Format(time.DateOnly)+" at 08:30")
	b.see("tbody tr", id)
	s.sim.Remove("clockings", id)
	b.see("tbody tr", "deleted")
	if rows := b.get("document.querySelectorAll('tbody tr').length"); rows != "100" {
		t.Errorf("%s changes, want the last hundred", rows)
	}
	if chart := b.get("document.querySelector('.chart').getAttribute('aria-label')"); !strings.HasPrefix(chart, "Changes a minute in the last hour: ") {
		t.Errorf("text of the chart %q", chart)
	}
	b.inspect("data")

	if err := stop(); err != nil {
		t.Fatal(err)
	}
	b.see("#lost", "clockbridge has not answered since")
	if title := b.get("document.title"); title != "clockbridge" {
		t.Errorf("title %q, which nobody knows to be true", title)
	}
	b.inspect("lost")
	_, stop, err = serveHTTP(strings.TrimPrefix(url, "http://"), "1.2", s.engine, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	b.see("#live-word", "Live")
	if shown := b.get("document.getElementById('lost').hidden"); shown != "true" {
		t.Error("the page still says that the server does not answer")
	}
	s.sim.Insert("clockings", map[string]any{
		"person": map[string]any{"id": 4712}, "date": time.Now().Format(time.DateOnly), "timeOfDayInMinutes": 520, "kind": "InOut",
	})
	b.see("tbody tr", "person 4712")
	if got := b.get("window.untouched"); got != "true" {
		t.Error("the page was loaded again meanwhile")
	}
}

// TestBrowser_keyboard: everything is reached and worked by keys, and stays where it is while the page changes.
func TestBrowser_keyboard(t *testing.T) {
	s, work := company(t, false)
	b := openTab(t)
	b.do(chromedp.Navigate(s.url))
	b.see("#live-word", "Live")
	b.see("#changes", "first list")
	focus := func() string {
		return b.get("(document.activeElement.id || document.activeElement.innerText.trim().split('\\n')[0])")
	}
	tabTo := func(want string) {
		t.Helper()
		for range 30 {
			b.do(chromedp.KeyEvent(kb.Tab))
			if focus() == want {
				if outline := b.get("getComputedStyle(document.activeElement).outlineStyle"); outline != "solid" {
					t.Errorf("%s has the focus, and its outline is %s", want, outline)
				}
				return
			}
		}
		t.Fatalf("no key leads to %q; the last was %q", want, focus())
	}
	tabTo("Skip to the last changes")
	b.do(chromedp.KeyEvent(kb.Enter))
	if got := focus(); got != "changes" {
		t.Errorf("the first link leads to %q", got)
	}
	b.do(chromedp.Navigate(s.url))
	b.see("#live-word", "Live")
	tabTo("More of acme/clockings")
	b.do(chromedp.KeyEvent(kb.Enter))
	b.see(`[id="feed.acme.clockings"] details[open]`, "PROTIME_ACME_CLOCKINGS")
	position := b.get(`document.querySelector('[id="feed.acme.clockings"] .facts').innerText`)
	work.Step()
	if !poll(20*time.Second, func() bool {
		return b.get(`document.querySelector('[id="feed.acme.clockings"] .facts').innerText`) != position
	}) {
		t.Fatal("nothing has changed")
	}
	kept := func(when string) {
		t.Helper()
		if got, open := focus(), b.get(`document.activeElement.parentNode.open`); got != "More of acme/clockings" || open != "true" {
			t.Errorf("%s: the focus went to %q, open %s", when, got, open)
		}
	}
	kept("a change landed")
	allow := s.sim.Fail(protimetest.Fault{Kind: protimetest.Status, Status: 503})
	b.see(`[id="feed.acme.clockings"]`, "What fails")
	kept("an error appeared")
	b.inspect("details")
	allow()
	s.engine.sync()
	b.see(`[id="feed.acme.clockings"]`, "Up to date")
	kept("the error went")
	b.do(chromedp.Navigate(s.url))
	b.see("#live-word", "Live")
	tabTo("hold")
	b.do(chromedp.KeyEvent(" "))
	b.see("#live-word", "Held still")
	newest := b.get("document.querySelector('tbody tr').id")
	work.Step()
	if !poll(20*time.Second, func() bool {
		return len(s.engine.state().feeds[0].recent.Changes) > 0 && !strings.HasSuffix(newest, fmt.Sprint(".", s.engine.state().feeds[0].recent.Changes[0].Position))
	}) {
		t.Fatal("no change has landed")
	}
	if got := b.get("source.readyState === EventSource.CLOSED"); got != "true" {
		t.Error("the page is held still and listens all the same")
	}
	if got := b.get("document.querySelector('tbody tr').id"); got != newest {
		t.Errorf("the page is held still and shows %s in place of %s", got, newest)
	}
	b.do(chromedp.KeyEvent(kb.Enter))
	b.see("#live-word", "Live")
	if !poll(20*time.Second, func() bool { return b.get("document.querySelector('tbody tr').id") != newest }) {
		t.Error("the page does not go on")
	}
}

// TestBrowser_noScript: the page says everything without a script, and reloads itself, or holds still.
func TestBrowser_noScript(t *testing.T) {
	s, work := company(t, false)
	if !poll(20*time.Second, func() bool { code, _ := s.page("/readyz"); return code == http.StatusOK }) {
		t.Fatal("the feeds do not get ready")
	}
	b := openTab(t)
	if _, err := chromedp.Call(b.ctx, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true}); err != nil {
		t.Fatal(err)
	}
	b.do(chromedp.Navigate(s.url))
	b.see("header", "Reloads every 10 s")
	b.see("#summary", "All is well")
	b.see("#changes", "first list")
	if hidden := b.get("getComputedStyle(document.getElementById('live')).display"); hidden != "none" {
		t.Error("there is a button that does nothing")
	}
	b.picture("noscript")
	newest := b.get("document.querySelector('tbody tr').id")
	work.Step()
	if !poll(20*time.Second, func() bool { return b.get("document.querySelector('tbody tr')?.id") != newest }) {
		t.Error("the page does not reload itself")
	}
	b.do(chromedp.Click(chromedp.CSS("noscript a")))
	b.see("header", "Held still")
	if n := b.get("document.querySelectorAll('meta[http-equiv]').length"); n != "0" {
		t.Error("the page that holds still reloads itself")
	}
}
