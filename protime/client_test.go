package protime

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
)

const root = "/connector/protimeapi/api/v1/"

// newServer serves the API by handler under a non-empty path, and tokens beside it. It is at the same time what a request
// without a token, without a User-Agent or outside the path is refused by.
func newServer(t *testing.T, handler http.HandlerFunc) (*Client, *atomic.Int64) {
	t.Helper()
	var tokens atomic.Int64
	mux := http.NewServeMux()
	mux.HandleFunc("POST /auth/tenants/acme/connect/token", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"access_token":"%s%d","expires_in":1800,"token_type":"Bearer"}`, testToken, tokens.Add(1))
	})
	mux.Handle("/sim/", http.StripPrefix("/sim", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.Header.Get("Authorization"), "Bearer "+testToken) || r.Header.Get("User-Agent") != "clockbridge/1.0 (Example Company)" {
			t.Errorf("got a request with header %v", r.Header)
		}
		handler(w, r)
	})))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		t.Errorf("got a request for %s, which lies outside the API", r.URL)
	})
	server := httptest.NewServer(mux)
	config := testConfig(nil)
	config.APIURL, config.AuthURL = server.URL+"/sim/", server.URL+"/auth"
	c, err := NewClient(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.CloseIdleConnections(); server.Close() })
	return c, &tokens
}

func TestNewClient_namesTheField(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"Tenant":       {func(c *Config) { c.Tenant = "acme.evil" }, `Tenant: "acme.evil" is not the name of a subdomain`},
		"NoTenant":     {func(c *Config) { c.Tenant = "" }, "Tenant: "},
		"ClientID":     {func(c *Config) { c.ClientID = "" }, "ClientID: required"},
		"Secret":       {func(c *Config) { c.Secret = nil }, "Secret: required"},
		"Scopes":       {func(c *Config) { c.Scopes = nil }, "Scopes: at least one"},
		"TwoInOne":     {func(c *Config) { c.Scopes = []string{"a b"} }, `Scopes: "a b" is not one scope`},
		"UserAgent":    {func(c *Config) { c.UserAgent = "" }, "UserAgent: "},
		"AgentForm":    {func(c *Config) { c.UserAgent = "bridge/1\r\nX: (y)" }, "UserAgent: "},
		"APIURL":       {func(c *Config) { c.APIURL = "acme.myprotime.eu" }, "APIURL: scheme is not https or http"},
		"AuthURL":      {func(c *Config) { c.AuthURL = "https://u:p@x" }, "AuthURL: more than"},
		"StallTimeout": {func(c *Config) { c.StallTimeout = -1 }, "StallTimeout: negative"},
	} {
		t.Run(name, func(t *testing.T) {
			config := testConfig(nil)
			test.change(&config)
			if _, err := NewClient(config); err == nil || !strings.HasPrefix(err.Error(), "new client: "+test.want) {
				t.Errorf("got %v, want new client: %s", err, test.want)
			}
		})
	}
}

func TestClient_names(t *testing.T) {
	c := newTestClient(t, nil)
	for got, want := range map[string]string{
		ReadScope("clockings"):                               "connector-protimeapi-clockings.read",
		ReadScope("paid-presences"):                          "connector-protimeapi-calculated-totals.read",
		WriteScope("clockings"):                              "connector-protimeapi-clockings.write",
		c.CollectionURL("clockings"):                         "https://acme.myprotime.eu/connector/protimeapi/api/v1/clockings",
		c.DeltaStart("clockings", "date ge '2026-01-01'"):    "/connector/protimeapi/api/v1/clockings?filter=date ge '2026-01-01'&delta",
		c.DeltaStart("people", ""):                           "/connector/protimeapi/api/v1/people?delta",
		c.DeltaStart("x", "a eq '100% & + #;' and b eq 'c'"): "/connector/protimeapi/api/v1/x?filter=a eq '100%25 %26 %2B %23%3B' and b eq 'c'&delta",
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// A first listing through an empty page, its deltaLink, and the changes there: each link comes back as it was given.
func TestClient_Fetch_followsADelta(t *testing.T) {
	link := func(path, query string) string { return root + path + "?" + query }
	var asked []string
	c, _ := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		query, err := url.ParseQuery(r.URL.RawQuery)
		if err != nil {
			t.Error(err)
		}
		asked = append(asked, r.RequestURI)
		reply := func(value, name, link string) {
			json.NewEncoder(w).Encode(map[string]any{"value": json.RawMessage(value), name: link})
		}
		filter := query.Get("filter") == "date ge '2026-01-01'"
		switch {
		case r.URL.Path == root+"clockings" && filter && query.Has("delta"):
			reply(`[{"id":1}]`, "nextLink", link("clockings", "filter=date ge '2026-01-01'&continuationToken=a+/=&deltaToken=d+="))
		case r.URL.Path == root+"clockings" && filter && query.Get("continuationToken") == "a+/=" && query.Get("deltaToken") == "d+=":
			reply(`[]`, "nextLink", link("clockings", "filter=date%20ge%20%272026-01-01%27&continuationToken=b%2B"))
		case r.URL.Path == root+"clockings" && filter && query.Get("continuationToken") == "b+":
			reply(`[{"id":2}]`, "deltaLink", link("delta/clockings", "deltaToken=e++=="))
		case r.URL.Path == root+"delta/clockings" && query.Get("deltaToken") == "e++==":
			reply(`[{"changeType":"Delete","data":{"id":1}}]`, "deltaLink", link("delta/clockings", "deltaToken=last"))
		default:
			t.Errorf("got request %s", r.RequestURI)
			w.WriteHeader(400)
		}
	})
	var got []string
	cursor := c.DeltaStart("clockings", "date ge '2026-01-01'")
	for cursor != root+"delta/clockings?deltaToken=last" {
		p, err := c.Fetch(t.Context(), cursor)
		if err != nil {
			t.Fatal(err)
		}
		for {
			change, err := p.Next()
			if err == io.EOF {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			got = append(got, string(change.Type)+" "+change.ID)
		}
		if cursor = p.NextLink(); cursor == "" {
			cursor = p.DeltaLink()
		}
		p.Close()
	}
	if want := []string{"InsertOrUpdate 1", "InsertOrUpdate 2", "Delete 1"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if want := "/sim" + root + "clockings?filter=date%20ge%20'2026-01-01'&delta"; asked[0] != want {
		t.Errorf("first asked for %s, want %s", asked[0], want)
	}
	if want := "/sim" + root + "delta/clockings?deltaToken=e%2B%2B=="; len(asked) != 4 || asked[3] != want {
		t.Errorf("last asked for %s, want %s", asked, want)
	}
}

func TestClient_Fetch_refusesThePage(t *testing.T) {
	good := `{"value":[],"deltaLink":"` + after + `"}`
	var link *LinkError
	for name, test := range map[string]struct {
		answer func(w http.ResponseWriter)
		as     any
		want   string
	}{
		"NoContent":   {func(w http.ResponseWriter) { w.WriteHeader(204) }, nil, "no page comes with 204"},
		"NotModified": {func(w http.ResponseWriter) { w.WriteHeader(304) }, nil, "no page comes with 304"},
		"Accepted":    {func(w http.ResponseWriter) { w.WriteHeader(202); io.WriteString(w, good) }, nil, "no page comes with 202"},
		"EmptyBody":   {func(w http.ResponseWriter) {}, nil, "cut short"},
		"HTML": {func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			io.WriteString(w, "<html>")
		}, nil, "not a JSON object (text/html)"},
		"NoLink": {func(w http.ResponseWriter) { io.WriteString(w, `{"value":[]}`) }, nil, "neither nextLink nor deltaLink"},
		"LinkElsewhere": {func(w http.ResponseWriter) {
			io.WriteString(w, `{"value":[],"deltaLink":"https://evil.example/connector/protimeapi/api/v1/delta/clockings?deltaToken=x"}`)
		}, &link, `leads to host "evil.example"`},
		"LinkOutside": {func(w http.ResponseWriter) { io.WriteString(w, `{"value":[],"nextLink":"/connector/x?deltaToken=x"}`) }, &link, "leads outside"},
		"CutByLength": {func(w http.ResponseWriter) { w.Header().Set("Content-Length", "1000"); io.WriteString(w, good) }, nil, "something follows the end: unexpected EOF"},
		"CutInChunks": {func(w http.ResponseWriter) {
			io.WriteString(w, good)
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}, nil, "something follows the end: unexpected EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			c, _ := newServer(t, func(w http.ResponseWriter, r *http.Request) { test.answer(w) })
			p, err := c.Fetch(t.Context(), after)
			if err == nil {
				defer p.Close()
				_, err = p.Next()
				if p.NextLink()+p.DeltaLink() != "" {
					t.Error("got a link")
				}
			}
			var bad *PageError
			if !errors.As(err, &bad) || !strings.Contains(err.Error(), test.want) || test.as != nil && !errors.As(err, test.as) {
				t.Errorf("got %v, want a PageError: %s", err, test.want)
			}
		})
	}
	t.Run("CursorElsewhere", func(t *testing.T) {
		c := newTestClient(t, answers(func(r *http.Request) (*http.Response, error) {
			t.Errorf("asked for %s", r.URL)
			return answer(500, ""), nil
		}))
		if _, err := c.Fetch(t.Context(), "https://evil.example"+after); !errors.As(err, &link) {
			t.Errorf("got %v, want a LinkError", err)
		}
	})
	t.Run("GzipIsUnpacked", func(t *testing.T) {
		c, _ := newServer(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			io.WriteString(z, good)
			z.Close()
		})
		p, err := c.Fetch(t.Context(), after)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		if _, err := p.Next(); !errors.Is(err, io.EOF) || p.DeltaLink() != after {
			t.Errorf("got %v and link %q", err, p.DeltaLink())
		}
	})
}

func TestClient_Get(t *testing.T) {
	const record = `{"changeVersion":"0000090200004CE0000A", "id":19250,"person":{"id":1},"date":"2026-01-15" }`
	t.Run("OK", func(t *testing.T) {
		for name, body := range map[string]string{"Bare": record, "Space": "\r\n " + record + "\n\n", "ByteOrderMark": "\ufeff" + record} {
			c, _ := newServer(t, func(w http.ResponseWriter, r *http.Request) {
				if want := "/sim" + root + "clockings/19250"; r.RequestURI != want || r.Method != "GET" || r.Header.Get("Accept") != "application/json" {
					t.Errorf("got %s %s, want GET %s", r.Method, r.RequestURI, want)
				}
				io.WriteString(w, body)
			})
			got, err := c.Get(t.Context(), "clockings", "19250")
			if want := (Change{Upsert, "19250", "0000090200004CE0000A", "2026-01-15", []byte(record)}); err != nil || !equal(got, want) {
				t.Errorf("%s: got %q, error %v, want %q", name, got, err, want)
			}
		}
	})
	t.Run("AnyIDInThePath", func(t *testing.T) {
		for _, id := range []string{"a/b", "a b?c#d%2e", "é\xff", "3f2504e0-4f89-11d3-9a0c-0305e82c3301", "...", "a b/c"} {
			c, _ := newServer(t, func(w http.ResponseWriter, r *http.Request) {
				if got := strings.TrimPrefix(r.URL.Path, root+"clockings/"); got != id || strings.Count(r.RequestURI, "/") != strings.Count("/sim"+root+"clockings/", "/") {
					t.Errorf("got id %q by %s, want %q", got, r.RequestURI, id)
				}
				io.WriteString(w, `{}`)
			})
			if _, err := c.Get(t.Context(), "clockings", id); err != nil {
				t.Errorf("%q: %v", id, err)
			}
		}
	})
	t.Run("NotFound", func(t *testing.T) {
		c, _ := newServer(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(404) })
		if _, err := c.Get(t.Context(), "clockings", "7"); !errors.Is(err, ErrNotFound) {
			t.Errorf("got %v, want ErrNotFound", err)
		}
	})
	for name, body := range map[string]string{"Empty": "", "Null": "null", "Array": "[]", "HTML": "<html>", "Two": "{}{}", "Cut": `{"id":7`, "OtherRecord": `{"id":8}`} {
		t.Run(name, func(t *testing.T) {
			c, _ := newServer(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, body) })
			var bad *PageError
			if got, err := c.Get(t.Context(), "clockings", "7"); !errors.As(err, &bad) {
				t.Errorf("got %q, error %v, want a PageError", got, err)
			}
		})
	}
	t.Run("TooLong", func(t *testing.T) {
		endless := &repeat{before: `{"id":7,"x":"`, part: strings.Repeat("x", 1024), times: 1 << 30}
		c := newTestClient(t, answers(func(r *http.Request) (*http.Response, error) {
			resp := answer(200, `{"access_token":"x"}`)
			if !isToken(r) {
				resp.Body = io.NopCloser(endless)
			}
			return resp, nil
		}))
		_, err := c.Get(t.Context(), "clockings", "7")
		if want := "an item of more than 67108864 bytes"; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	})
	t.Run("NoURLForTheID", func(t *testing.T) {
		c := newTestClient(t, answers(func(r *http.Request) (*http.Response, error) { return nil, errors.New("asked") }))
		for _, id := range []string{"", ".", ".."} {
			if _, err := c.Get(t.Context(), "clockings", id); err == nil || strings.Contains(err.Error(), "asked") {
				t.Errorf("%q: got %v, want an error without a request", id, err)
			}
		}
	})
}

func TestClient_List(t *testing.T) {
	page := func(w http.ResponseWriter, value, next string) {
		body := map[string]any{"value": json.RawMessage(value)}
		if next != "" {
			body["nextLink"] = root + "clockings?filter=date ge '2026-01-01'&continuationToken=" + next
		}
		json.NewEncoder(w).Encode(body)
	}
	pages := func(w http.ResponseWriter, r *http.Request) {
		switch token := r.URL.Query().Get("continuationToken"); token {
		case "":
			page(w, `[{"id":1},{"id":2}]`, "a+")
		case "a+":
			page(w, `[]`, "b+")
		case "b+":
			page(w, `[{"id":3}]`, "")
		}
	}
	read := func(c *Client, most int) (ids []string, err error) {
		for change, err := range c.List(t.Context(), "clockings", "date ge '2026-01-01'") {
			if err != nil {
				return ids, err
			}
			if ids = append(ids, change.ID); len(ids) == most {
				break
			}
		}
		return ids, nil
	}
	t.Run("ThroughEmptyPages", func(t *testing.T) {
		c, _ := newServer(t, pages)
		if got, err := read(c, 0); err != nil || !slices.Equal(got, []string{"1", "2", "3"}) {
			t.Errorf("got %v, error %v", got, err)
		}
	})
	t.Run("StopsWithItsCaller", func(t *testing.T) {
		c, _ := newServer(t, pages)
		if got, err := read(c, 1); err != nil || !slices.Equal(got, []string{"1"}) {
			t.Errorf("got %v, error %v", got, err)
		}
	})
	for name, test := range map[string]struct {
		handler http.HandlerFunc
		want    string
	}{
		"SamePageAgain": {func(w http.ResponseWriter, r *http.Request) { page(w, "[]", "a") }, "nextLink leads back to an earlier page"},
		"InACircle": {func(w http.ResponseWriter, r *http.Request) {
			page(w, `[{"id":1}]`, map[string]string{"": "a", "a": "b", "b": "c", "c": "a"}[r.URL.Query().Get("continuationToken")])
		}, "nextLink leads back to an earlier page"},
		"EmptyForEver": {func(w http.ResponseWriter, r *http.Request) {
			page(w, "[]", r.URL.Query().Get("continuationToken")+"a")
		}, "10000 pages in a row without a record"},
		"DeltaLink": {func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, `{"value":[],"deltaLink":"`+after+`"}`)
		}, "a deltaLink ends a plain listing"},
		"Refused": {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(400) }, "400 bad request"},
		"CutLater": {func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Has("continuationToken") {
				io.WriteString(w, `{"value":[{"id":3}`)
				return
			}
			page(w, `[{"id":1}]`, "a")
		}, "cut short"},
	} {
		t.Run(name, func(t *testing.T) {
			c, _ := newServer(t, test.handler)
			if _, err := read(c, 0); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %s", err, test.want)
			}
		})
	}
}

func TestClient_CheckAccess(t *testing.T) {
	c, _ := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("delta") || r.URL.Query().Get("filter") != "x eq 1" {
			t.Errorf("got query %s", r.URL.RawQuery)
		}
		if r.URL.Path == root+"people" {
			w.WriteHeader(403)
			return
		}
		io.WriteString(w, `{"value":[{"id":1}],"nextLink":"`+next+`"}`)
	})
	if err := c.CheckAccess(t.Context(), "clockings", "x eq 1"); err != nil {
		t.Error(err)
	}
	var refused *APIError
	if err := c.CheckAccess(t.Context(), "people", "x eq 1"); !errors.As(err, &refused) || refused.Status != 403 {
		t.Errorf("got %v, want a 403", err)
	}
}
