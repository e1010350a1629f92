package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"clockbridge/bridge"
	"clockbridge/bridge/subscribe"
	"clockbridge/protime/protimetest"
)

// filled is a server with a stream of n clockings that clockbridge wrote.
func filled(t testing.TB, n int) (js jetstream.JetStream, sim *protimetest.Server, url string) {
	t.Helper()
	noEnvironment(t)
	sim = protimetest.NewServer(protimetest.Options{Tenant: "acme", PageSize: 1000})
	t.Cleanup(sim.Close)
	sim.Tenant("acme").Fill("clockings", n, benchSize)
	js, url = testJetStream(t)
	cmd := follow(t, t.TempDir(), sim.URL, url)
	ok := poll(time.Minute, func() bool { return lastPosition(js, bridge.StreamName("acme", "clockings")) >= uint64(n) })
	cmd.Process.Signal(os.Interrupt)
	if err := cmd.Wait(); err != nil || !ok {
		t.Fatalf("the stream is not filled: %v\n%s", err, cmd.Stderr)
	}
	return js, sim, url
}

func lastPosition(js jetstream.JetStream, stream string) uint64 {
	s, err := js.Stream(context.Background(), stream)
	if err != nil {
		return 0
	}
	return s.CachedInfo().State.LastSeq
}

// TestReplay_killed kills a replay at random, again and again, and starts it anew: the stream that it is for holds each message
// once, in order; whoever listens without a stream gets each at least once.
func TestReplay_killed(t *testing.T) {
	seed := *killSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("replay with -kill-seed=%d", seed)
	rng := rand.New(rand.NewPCG(seed, 2))
	const n = 30_000
	js, sim, url := filled(t, n)
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "AGAIN", Subjects: []string{"again.*"}}); err != nil {
		t.Fatal(err)
	}
	for _, subject := range []string{"again.*", "heard.*"} {
		t.Run(subject, func(t *testing.T) {
			heard, err := js.Conn().SubscribeSync("heard.*")
			if err != nil {
				t.Fatal(err)
			}
			heard.SetPendingLimits(-1, -1)
			defer heard.Unsubscribe()
			note := filepath.Join(t.TempDir(), "replay.json")
			killed, between := 0, map[uint64]bool{}
			for done := false; !done; {
				cmd := command(sim.URL, url, "replay", "--to-subject", subject, "--resume", note)
				stderr := new(logBuffer)
				cmd.Stderr = stderr
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				ended := make(chan error, 1)
				go func() { ended <- cmd.Wait() }()
				// It dies a moment after it has moved on from where the last one was; the moment is random.
				from := notedPosition(note)
				poll(time.Minute, func() bool { return len(ended) > 0 || notedPosition(note) > from })
				select {
				case err := <-ended:
					if err != nil {
						t.Fatalf("%v\n%s", err, stderr)
					}
					done = true
				case <-time.After(time.Duration(rng.IntN(10)) * time.Millisecond):
					cmd.Process.Kill()
					done = <-ended == nil
					killed++
					between[notedPosition(note)] = true
				}
			}
			if len(between) < 3 {
				t.Errorf("killed %d times, at only %d places", killed, len(between))
			}
			t.Logf("killed %d times, at %d places", killed, len(between))
			if subject == "heard.*" {
				judgeHeard(t, heard, n)
				return
			}
			consumer, err := js.OrderedConsumer(t.Context(), "AGAIN", jetstream.OrderedConsumerConfig{})
			if err != nil {
				t.Fatal(err)
			}
			for want := 1; want <= n; want++ {
				m, err := consumer.Next()
				if err != nil {
					t.Fatal(err)
				}
				if got := m.Headers().Get(headerReplay); got != fmt.Sprintf("PROTIME_ACME_CLOCKINGS/%d", want) {
					t.Fatalf("message %d is a replay of %s", want, got)
				}
			}
			if last := lastPosition(js, "AGAIN"); last != n {
				t.Errorf("%d messages, want %d", last, n)
			}
		})
	}
}

// judgeHeard holds what a plain subscriber heard: every position, and one that comes again comes with all that were behind it.
func judgeHeard(t *testing.T, heard *nats.Subscription, n int) {
	last, again := 0, 0
	for last < n {
		m, err := heard.NextMsg(10 * time.Second)
		if err != nil {
			t.Fatalf("behind %d: %v", last, err)
		}
		at, _ := strconv.Atoi(strings.TrimPrefix(m.Header.Get(headerReplay), "PROTIME_ACME_CLOCKINGS/"))
		if at > last+1 {
			t.Fatalf("%d comes behind %d", at, last)
		}
		if at <= last {
			again++
		}
		last = at
	}
	t.Logf("%d came again", again)
}

func notedPosition(file string) uint64 {
	var note replayNote
	text, _ := os.ReadFile(file)
	_ = json.Unmarshal(text, &note)
	return note.Position
}

// A replay has the headers of the original, but for those that speak to a stream, and says of what it is one.
func TestReplay_headers(t *testing.T) {
	js, sim, url := filled(t, 3)
	heard, err := js.Conn().SubscribeSync("again")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := command(sim.URL, url, "replay", "--to-subject", "again", "--from", "2", "--to", "2").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	got, err := heard.NextMsg(10 * time.Second)
	if err != nil {
		t.Fatal(err)
	}
	s, err := js.Stream(t.Context(), "PROTIME_ACME_CLOCKINGS")
	if err != nil {
		t.Fatal(err)
	}
	want, err := s.GetMsg(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	if string(got.Data) != string(want.Data) {
		t.Errorf("data %s, want %s", got.Data, want.Data)
	}
	for name, values := range want.Header {
		if wanted := !strings.HasPrefix(name, "Nats-"); wanted != slices.Equal(got.Header[name], values) {
			t.Errorf("header %s: %q, of the original %q", name, got.Header[name], values)
		}
	}
	if id := "PROTIME_ACME_CLOCKINGS/2"; got.Header.Get(headerReplay) != id || got.Header.Get("Nats-Msg-Id") != id {
		t.Errorf("header %v", got.Header)
	}
}

// A feed's stream may hold other subjects than its own name says: no replay goes there either.
func TestReplay_feedsStream(t *testing.T) {
	js, sim, url := filled(t, 1)
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "PROTIME_ACME_PEOPLE", Subjects: []string{"elsewhere.>"}}); err != nil {
		t.Fatal(err)
	}
	for _, subject := range []string{"elsewhere.1", "elsewhere.*"} {
		cmd := command(sim.URL, url, "replay", "--collection", "clockings", "--to-subject", subject)
		out, _ := cmd.CombinedOutput()
		if cmd.ProcessState.ExitCode() != exitUsage || !strings.Contains(string(out), "held by PROTIME_ACME_PEOPLE") {
			t.Errorf("%s: code %d\n%s", subject, cmd.ProcessState.ExitCode(), out)
		}
	}
	if last := lastPosition(js, "PROTIME_ACME_PEOPLE"); last != 0 {
		t.Errorf("the feed's stream has %d messages", last)
	}
}

// SIGINT ends a replay that waits for its time, and one that cannot publish.
func TestReplay_interrupted(t *testing.T) {
	js, sim, url := filled(t, 1)
	sim.Tenant("acme").Insert("clockings", map[string]any{"person": map[string]any{"id": 1}, "date": "2026-01-15", "timeOfDayInMinutes": 510, "kind": "InOut"})
	cmd := follow(t, t.TempDir(), sim.URL, url)
	if !poll(time.Minute, func() bool { return lastPosition(js, "PROTIME_ACME_CLOCKINGS") == 2 }) {
		t.Fatalf("no change\n%s", cmd.Stderr)
	}
	cmd.Process.Signal(os.Interrupt)
	cmd.Wait()
	out, errs := new(logBuffer), new(logBuffer)
	replay := command(sim.URL, url, "replay", "--speed", "0.001x")
	replay.Stdout, replay.Stderr = out, errs
	interruptAfter(t, replay, func() bool { return strings.Contains(out.String(), `"position":1`) })
	if code := replay.ProcessState.ExitCode(); code != exitFailed || strings.TrimSpace(errs.String()) != "clockbridge: interrupted" {
		t.Errorf("code %d\n%s", code, errs)
	}
}

// interruptAfter starts a command, and interrupts it when ok says so.
func interruptAfter(t *testing.T, cmd *exec.Cmd, ok func() bool) {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	if !poll(time.Minute, ok) {
		t.Errorf("waited a minute for %v", cmd.Args)
	}
	cmd.Process.Signal(os.Interrupt)
	cmd.Wait()
}

func TestPace_due(t *testing.T) {
	start := time.Date(2026, 1, 1, 8, 0, 0, 0, time.UTC)
	now := time.Date(2026, 11, 20, 9, 0, 0, 0, time.UTC)
	p := &pace{speed: 10}
	for _, tt := range []struct{ after, passed, want time.Duration }{
		{0, 0, 0},
		{10 * time.Second, 0, time.Second},
		{10 * time.Second, 400 * time.Millisecond, 600 * time.Millisecond},
		{5 * time.Second, time.Second, -500 * time.Millisecond}, // read before the one before it
		{time.Minute, 2 * time.Second, 4 * time.Second},
	} {
		if got := p.due(start.Add(tt.after), now.Add(tt.passed)); got != tt.want {
			t.Errorf("%v after the first, %v later: due in %v, want %v", tt.after, tt.passed, got, tt.want)
		}
	}
	if got := (&pace{}).due(start, now); got != 0 {
		t.Errorf("as fast as it goes: due in %v", got)
	}
	if got := p.due(time.Time{}, now); got != 0 {
		t.Errorf("of an unknown time: due in %v", got)
	}
}

func TestParseSpeed(t *testing.T) {
	for text, want := range map[string]float64{"max": 0, "10x": 10, "1x": 1, "0.5x": 0.5, "3": 3} {
		if got, err := parseSpeed(text); err != nil || got != want {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "0x", "-1x", "fast", "1e9x", "NaN", "Inf", "x"} {
		if got, err := parseSpeed(text); err == nil {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func TestParsePoint(t *testing.T) {
	now := time.Date(2026, 11, 20, 9, 0, 0, 0, time.UTC)
	for text, want := range map[string]point{
		"17":                   {position: 17},
		"90m":                  {time: now.Add(-90 * time.Minute)},
		"7d":                   {time: now.AddDate(0, 0, -7)},
		"2026-01-31":           {time: time.Date(2026, 1, 31, 0, 0, 0, 0, time.Local)},
		"2026-01-31T08:00":     {time: time.Date(2026, 1, 31, 8, 0, 0, 0, time.Local)},
		"2026-01-31T08:00:00Z": {time: time.Date(2026, 1, 31, 8, 0, 0, 0, time.UTC)},
	} {
		if got, err := parsePoint(text, now); err != nil || got.position != want.position || !got.time.Equal(want.time) {
			t.Errorf("%s: %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "-5m", "-1", "yesterday", "2026-13-01"} {
		if got, err := parsePoint(text, now); err == nil {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func TestSelection(t *testing.T) {
	record := func(person int, date, kind string) []byte {
		return fmt.Appendf(nil, `{"id":1,"person":{"id":%d},"date":"%s","kind":"%s"}`, person, date, kind)
	}
	upsert := subscribe.Message{Subject: "protime.acme.clockings.1", Event: bridge.Event{ID: "1", Date: "2026-01-15", Origin: "delta", Data: record(7, "2026-01-15", "InOut")}}
	deletion := subscribe.Message{Event: bridge.Event{ID: "1", Deleted: true, Origin: "delta", Data: []byte(`{"id":1}`)}}
	own := subscribe.Message{Subject: "protime.acme.people.7", Event: bridge.Event{ID: "7", Data: []byte(`{"id":7}`)}}
	if c := (selection{Person: "7"}); !c.match(&own) {
		t.Error("the person's own record is not found")
	}
	unreadable := subscribe.Message{Event: bridge.Event{Reason: "no id", Origin: "snapshot"}}
	for _, tt := range []struct {
		selection
		want [3]bool // upsert, deletion, unreadable
	}{
		{selection{}, [3]bool{true, true, true}},
		{selection{Person: "7"}, [3]bool{true, false, false}},
		{selection{Person: "70"}, [3]bool{}},
		{selection{Kind: "InOut"}, [3]bool{true, false, false}},
		{selection{Kind: "inout"}, [3]bool{}},
		{selection{Date: "2026-01-15"}, [3]bool{true, false, false}},
		{selection{Date: "2026-01-16.."}, [3]bool{}},
		{selection{Date: "..2026-01-15"}, [3]bool{true, false, false}},
		{selection{Date: "2026-01-01..2026-01-14"}, [3]bool{}},
		{selection{Type: "deleted"}, [3]bool{false, true, false}},
		{selection{Type: "unreadable"}, [3]bool{false, false, true}},
		{selection{Origin: "delta", Type: "upserted"}, [3]bool{true, false, false}},
		{selection{Origin: "snapshot"}, [3]bool{false, false, true}},
	} {
		if err := tt.check(); err != nil {
			t.Fatal(err)
		}
		if got := [3]bool{tt.match(&upsert), tt.match(&deletion), tt.match(&unreadable)}; got != tt.want {
			t.Errorf("%+v chooses %v, want %v", tt.selection, got, tt.want)
		}
	}
	for _, date := range []string{"..", "today", "2026-01-01..tomorrow", "2026-1-1"} {
		if err := (&selection{Date: date}).check(); err == nil {
			t.Errorf("date %q is taken", date)
		}
	}
}
