package protimetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
)

func TestServer_Tenant(t *testing.T) {
	s := New(Options{Now: today})
	s.Insert("clockings", clocking(1, 510)) // before anybody has a name
	c := &caller{t: t, s: s}
	c.token = c.login("acme", "demo", allScopes)
	c.want(c.get("clockings/19250"), 200, "")
	s.Tenant("other").Insert("clockings", clocking(2, 510))
	s.Tenant("other").Insert("clockings", clocking(3, 510))
	c.want(c.get("clockings/19251"), 404, "")
	if n := len(s.Truth("clockings")); n != 1 {
		t.Errorf("the first tenant has %d records, want 1", n)
	}
	c.token = c.login("other", "demo", allScopes)
	c.want(c.get("clockings/19250"), 200, `"person":{"id":2}`)
}

func TestServer_Truth(t *testing.T) {
	c := newCaller(t, Options{})
	a := c.s.Insert("clockings", clocking(1, 510))
	b := c.s.Insert("clockings", map[string]any{"date": "2026-01-15", "remark": `<"é">`, "nothing": nil})
	c.s.Update("clockings", a, map[string]any{"kind": "Reason"})
	c.s.Remove("clockings", b)
	truth, versions := c.s.Truth("clockings"), c.s.Versions("clockings")
	if got := c.get("clockings/" + a).body; got != string(truth[a].Data) || truth[a].Removed || truth[a].ID != a {
		t.Errorf("GET says %s, Truth %+v", got, truth[a])
	}
	if want := fmt.Sprintf(`{"changeVersion":%q,"id":%s}`, truth[b].Version, b); string(truth[b].Data) != want || !truth[b].Removed {
		t.Errorf("Truth of the removed one: %s, want %s", truth[b].Data, want)
	}
	if len(versions[a]) != 2 || len(versions[b]) != 2 || versions[b][0].Removed || !versions[b][1].Removed {
		t.Errorf("versions %+v", versions)
	}
	if data := string(versions[b][0].Data); strings.Contains(data, "nothing") || !json.Valid([]byte(data)) {
		t.Errorf("got %s", data)
	}
}

// TestNewServer uses a real socket.
func TestNewServer(t *testing.T) {
	s := NewServer(Options{Prefix: "/sim"})
	defer s.Close()
	s.Fill("clockings", 10, 200)
	resp, err := http.Post(s.URL+"/tenants/acme/connect/token", "application/x-www-form-urlencoded",
		strings.NewReader("grant_type=client_credentials&client_id=demo&client_secret=demo&scope=connector-protimeapi-clockings.read"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var token struct {
		Token string `json:"access_token"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&token); err != nil {
		t.Fatal(err)
	}
	get := func() ([]byte, error) {
		r, err := http.NewRequest("GET", s.URL+Root+"clockings?filter=date%20ge%20'2020-01-01'", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("User-Agent", "Test/1.0 (Example)")
		r.Header.Set("Authorization", "Bearer "+token.Token)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		return io.ReadAll(resp.Body)
	}
	if b, err := get(); err != nil || strings.Count(string(b), `"changeVersion"`) != 10 {
		t.Errorf("got %s, %v", b, err)
	}
	s.Fail(Fault{Kind: Cut, After: 500})
	if b, err := get(); len(b) != 500 || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cut after %d bytes with %v, want 500 and unexpected EOF", len(b), err)
	}
}

func TestTransport(t *testing.T) {
	c := newCaller(t, Options{})
	c.s.Fill("clockings", 100, 1000)
	request := func(ctx context.Context, query string) *http.Request {
		r, err := http.NewRequestWithContext(ctx, "GET", "http://api.test", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.URL.Path, r.URL.RawQuery = Root+"clockings", query
		r.Header.Set("User-Agent", "Test/1.0 (Example)")
		r.Header.Set("Authorization", "Bearer "+c.token)
		return r
	}
	t.Run("RawSpaceIsRefused", func(t *testing.T) {
		if _, err := c.s.Transport().RoundTrip(request(t.Context(), "filter=date ge '2026-01-01'")); err == nil {
			t.Error("a request line with a raw space was understood")
		}
	})
	t.Run("ContextEndsTheBody", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		resp, err := c.s.Transport().RoundTrip(request(ctx, "filter=date%20ge%20'2026-01-01'"))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if _, err := io.ReadFull(resp.Body, make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
		cancel()
		if _, err := io.ReadAll(resp.Body); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want context canceled", err)
		}
	})
	t.Run("ManyAtOnce", func(t *testing.T) {
		var all sync.WaitGroup
		for i := range 8 {
			all.Go(func() {
				for range 20 {
					resp, err := c.s.Transport().RoundTrip(request(t.Context(), "filter=date%20ge%20'2026-01-01'"))
					if err != nil {
						t.Error(err)
						return
					}
					if b, err := io.ReadAll(resp.Body); err != nil || !json.Valid(b) {
						t.Errorf("a page of %d bytes, %v", len(b), err)
					}
					resp.Body.Close()
					c.s.Update("clockings", fmt.Sprint(19250+i), map[string]any{"timeOfDayInMinutes": i})
					c.s.Truth("people")
				}
			})
		}
		all.Wait()
	})
}
