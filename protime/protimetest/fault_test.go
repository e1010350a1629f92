package protimetest

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestFail(t *testing.T) {
	begin := func(t *testing.T, f Fault) (*caller, string, func()) {
		c := newCaller(t, Options{})
		fill(c, 5)
		link := c.start()
		return c, link, c.s.Fail(f)
	}
	t.Run("Status", func(t *testing.T) {
		c, link, _ := begin(t, Fault{Kind: Status, Status: 500, Times: 2})
		c.want(c.get(link), 500, `{"error":{"code":"InternalServerError"`)
		c.want(c.get(link), 500, "")
		c.want(c.get(link), 200, "value")
	})
	t.Run("RetryAfter", func(t *testing.T) {
		c, link, cancel := begin(t, Fault{Kind: Status, Status: 429, RetryAfter: "7"})
		for range 3 {
			got := c.get(link)
			c.want(got, 429, `"TooManyRequests"`)
			if after := got.header.Get("Retry-After"); after != "7" {
				t.Errorf("Retry-After %q, want 7", after)
			}
		}
		cancel()
		cancel() // again is harmless
		c.want(c.get(link), 200, "value")
	})
	t.Run("Match", func(t *testing.T) {
		c, link, _ := begin(t, Fault{Kind: Status, Match: func(r *http.Request) bool { return strings.HasPrefix(r.URL.Path, Root+"delta/") }})
		c.want(c.get("clockings/19250"), 200, "")
		c.want(c.get(link), 503, `"ServiceUnavailable"`)
	})
	t.Run("TokenEndpointOnlyIfMatched", func(t *testing.T) {
		c, _, cancel := begin(t, Fault{Kind: Status})
		c.login("acme", "demo", allScopes)
		cancel()
		c.s.Fail(Fault{Kind: Status, Match: func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/connect/token") }})
		got := c.send("POST", "/tenants/acme/connect/token", "", "Content-Type", "application/x-www-form-urlencoded")
		c.want(got, 503, "")
	})
	t.Run("Chance", func(t *testing.T) {
		statuses := func() (all []int) {
			c, _, _ := begin(t, Fault{Kind: Status, Chance: 0.5})
			for range 50 {
				all = append(all, c.get("clockings/19250").status)
			}
			return all
		}
		a, b := statuses(), statuses()
		n := 0
		for i := range a {
			if a[i] != b[i] {
				t.Fatal("the same seed gave other faults")
			}
			if a[i] == 503 {
				n++
			}
		}
		if n < 10 || n > 40 {
			t.Errorf("%d of 50 failed, want about half", n)
		}
	})
	t.Run("Cut", func(t *testing.T) {
		c, link, _ := begin(t, Fault{Kind: Cut, After: 100, Times: 1})
		got := c.get(link)
		if got.status != 200 || len(got.body) != 100 || !errors.Is(got.err, io.ErrUnexpectedEOF) {
			t.Errorf("got %d, %d bytes, %v; want 200, 100 bytes, unexpected EOF", got.status, len(got.body), got.err)
		}
		c.want(c.get(link), 200, "deltaLink")
	})
	t.Run("CutBeforeTheBody", func(t *testing.T) {
		for _, after := range []int{0, -1} {
			c, link, _ := begin(t, Fault{Kind: Cut, After: after})
			if got := c.get(link); got.body != "" || !errors.Is(got.err, io.ErrUnexpectedEOF) {
				t.Errorf("got %q and %v, want nothing and unexpected EOF", got.body, got.err)
			}
		}
	})
	t.Run("WrongContent", func(t *testing.T) {
		c, link, _ := begin(t, Fault{Kind: WrongContent, Times: 1})
		got := c.get(link)
		c.want(got, 200, "<html>")
		if kind := got.header.Get("Content-Type"); !strings.HasPrefix(kind, "text/html") {
			t.Errorf("Content-Type %q", kind)
		}
	})
	t.Run("OwnBody", func(t *testing.T) {
		c, link, _ := begin(t, Fault{Kind: Status, Status: 502, Body: "bad gateway", ContentType: "text/plain"})
		c.want(c.get(link), 502, "bad gateway")
	})
	t.Run("NoValue", func(t *testing.T) {
		c, link, _ := begin(t, Fault{Kind: NoValue, Times: 1})
		c.want(c.get("clockings/19250"), 200, `"id":19250`) // it waits for a page
		if body := c.get(link).body; !strings.HasPrefix(body, `{"deltaLink":`) || !json.Valid([]byte(body)) {
			t.Errorf("got %s", body)
		}
	})
	t.Run("NoLink", func(t *testing.T) {
		c, link, _ := begin(t, Fault{Kind: NoLink, Times: 1})
		if body := c.get(link).body; strings.Contains(body, "Link") || !json.Valid([]byte(body)) {
			t.Errorf("got %s", body)
		}
	})
	t.Run("Garbage", func(t *testing.T) {
		c, link, _ := begin(t, Fault{Kind: Garbage, Times: 1})
		if body := c.get(link).body; json.Valid([]byte(body)) || !strings.Contains(body, `"deltaLink":"`) {
			t.Errorf("got %s", body)
		}
	})
	t.Run("TokenDeath", func(t *testing.T) {
		c, link, _ := begin(t, Fault{Kind: TokenDeath, Times: 1})
		c.want(c.get(link), 401, "Unauthorized")
		c.want(c.get(link), 401, "Unauthorized") // dead it stays
		c.token = c.login("acme", "demo", allScopes)
		c.want(c.get(link), 200, "value")
	})
	t.Run("Gone", func(t *testing.T) {
		c, link, _ := begin(t, Fault{Kind: Gone, Times: 1})
		c.want(c.get("clockings/19250"), 200, "") // it waits for a delta's link
		c.want(c.get(link), 410, "Gone")
		c.want(c.get(link), 410, "Gone")
		c.want(c.get(c.start()), 200, "value")
	})
}

// TestFail_Slow also shows that the server can be used where the time is not real.
func TestFail_Slow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCaller(t, Options{Now: time.Now})
		began := time.Now()
		c.s.Fail(Fault{Kind: Slow, Delay: time.Hour, Times: 2})
		c.get("clockings/1")
		if took := time.Since(began); took != time.Hour {
			t.Errorf("took %s, want 1h", took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		r, err := http.NewRequestWithContext(ctx, "GET", "http://api.test"+Root+"clockings", nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.s.Transport().RoundTrip(r); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the deadline", err)
		}
		if took := time.Since(began); took != time.Hour+time.Minute {
			t.Errorf("gave up after %s, want 1m", took-time.Hour)
		}
	})
}

func TestRateLimit(t *testing.T) {
	c := newCaller(t, Options{RateLimit: 3}) // its token is the first of the three
	c.want(c.get("people"), 200, "")
	c.want(c.get("people"), 200, "")
	c.s.Advance(20 * time.Second)
	got := c.get("people")
	c.want(got, 429, `{"error":{"code":"TooManyRequests"`)
	if after := got.header.Get("Retry-After"); after != "41" {
		t.Errorf("Retry-After %q, want 41: the rest of the minute", after)
	}
	c.want(c.send("POST", "/tenants/acme/connect/token", ""), 429, "")
	c.want(c.send("POST", "/tenants/other/connect/token", ""), 400, "") // every tenant has its own
	c.s.Advance(41 * time.Second)
	c.want(c.get("people"), 200, "")
}

func TestUnavailable(t *testing.T) {
	for _, after := range []string{"", "120"} {
		c := newCaller(t, Options{})
		c.s.o.UnavailableChance, c.s.o.RetryAfter = 1, after
		got := c.get("people")
		c.want(got, 503, `"ServiceUnavailable"`)
		if now := got.header.Get("Retry-After"); now != after {
			t.Errorf("Retry-After %q, want %q", now, after)
		}
	}
}

// TestServer_SlowReader: whoever does not read their page holds up nobody.
func TestServer_SlowReader(t *testing.T) {
	s := New(Options{Now: today})
	c := &caller{t: t, s: s}
	c.token = c.login("acme", "demo", allScopes)
	s.Fill("clockings", 100, 3000)
	r, err := http.NewRequest("GET", "http://api.test"+wireURL(since), nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("User-Agent", "Test/1.0 (Example)")
	r.Header.Set("Authorization", "Bearer "+c.token)
	resp, err := s.Transport().RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	s.Update("clockings", "19250", map[string]any{"timeOfDayInMinutes": 5})
	c.want(c.get("clockings/19250"), 200, `"timeOfDayInMinutes":5`)
	b, err := io.ReadAll(resp.Body)
	if err != nil || !json.Valid(b) || strings.Contains(string(b), `"originalTimeOfDayInMinutes"`) {
		t.Errorf("the page shows what came later, or is broken: %v", err)
	}
	resp.Body.Close()
}

func wireURL(target string) string { return Root + wire(target) }
