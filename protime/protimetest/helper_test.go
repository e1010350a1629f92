package protimetest

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

// today is what the servers of these tests show as now, so that filters in them do not age.
func today() time.Time { return time.Date(2026, 1, 20, 9, 0, 0, 0, time.UTC) }

const allScopes = "connector-protimeapi-clockings.read connector-protimeapi-clockings.write connector-protimeapi-people.read " +
	"connector-protimeapi-counters.read connector-protimeapi-contracts.read connector-protimeapi-assignments.read " +
	"connector-protimeapi-calculated-totals.read connector-protimeapi-absence-groups.read"

// caller is a client that does nothing on its own.
type caller struct {
	t     *testing.T
	s     *Server
	token string
}

func newCaller(t *testing.T, o Options) *caller {
	t.Helper()
	if o.Now == nil {
		o.Now = today
	}
	c := &caller{t: t, s: New(o)}
	c.token = c.login("acme", "demo", allScopes)
	return c
}

func (c *caller) login(tenant, client, scope string) string {
	c.t.Helper()
	got := c.send("POST", "/tenants/"+tenant+"/connect/token", url.Values{
		"grant_type": {"client_credentials"}, "client_id": {client}, "client_secret": {"demo"}, "scope": {scope},
	}.Encode(), "Content-Type", "application/x-www-form-urlencoded")
	var token struct {
		Token string `json:"access_token"`
	}
	if err := json.Unmarshal([]byte(got.body), &token); err != nil || token.Token == "" {
		c.t.Fatalf("token: %d %s", got.status, got.body)
	}
	return token.Token
}

type reply struct {
	status int
	header http.Header
	body   string
	err    error // of reading the body
}

// send sends a request as it is: no header but those given, no encoding.
func (c *caller) send(method, target, body string, headers ...string) reply {
	c.t.Helper()
	r, err := http.NewRequest(method, "http://api.test", strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	path, query, _ := strings.Cut(target, "?")
	r.URL.Path, r.URL.RawQuery = path, query
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	resp, err := c.s.Transport().RoundTrip(r)
	if err != nil {
		c.t.Fatalf("%s %s: %v", method, target, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, resp.Header, string(b), err}
}

// call sends a request with all that the API asks for. Targets that begin with / are links; others lie below Root.
func (c *caller) call(method, target, body string) reply {
	c.t.Helper()
	if !strings.HasPrefix(target, "/") {
		target = Root + target
	}
	return c.send(method, wire(target), body, "User-Agent", "Test/1.0 (Example)", "Authorization", "Bearer "+c.token,
		"Content-Type", "application/json")
}

// wire makes a link fit for a request line: spaces, and the plus of Base64.
func wire(link string) string {
	return strings.NewReplacer(" ", "%20", "+", "%2B").Replace(link)
}

func (c *caller) get(target string) reply { c.t.Helper(); return c.call("GET", target, "") }

// answer is a page as a client reads it.
type answer struct {
	Value     []map[string]any `json:"value"`
	NextLink  string           `json:"nextLink"`
	DeltaLink string           `json:"deltaLink"`
}

// page gets a page that must be there.
func (c *caller) page(target string) answer {
	c.t.Helper()
	got := c.get(target)
	if got.status != http.StatusOK {
		c.t.Fatalf("GET %s: %d %s", target, got.status, got.body)
	}
	var a answer
	if err := json.Unmarshal([]byte(got.body), &a); err != nil {
		c.t.Fatalf("GET %s: %v in %s", target, err, got.body)
	}
	if a.Value == nil {
		c.t.Fatalf("GET %s: no value in %s", target, got.body)
	}
	return a
}

// walk follows nextLinks to the end and returns the ids that it saw, and the last page.
func (c *caller) walk(target string) (ids []string, last answer) {
	c.t.Helper()
	for {
		last = c.page(target)
		for _, v := range last.Value {
			if data, ok := v["data"].(map[string]any); ok {
				v = data
			}
			ids = append(ids, fmt.Sprint(v["id"]))
		}
		if last.NextLink == "" {
			return ids, last
		}
		target = last.NextLink
	}
}

// start walks the first listing of a delta and returns its first deltaLink.
func (c *caller) start() string {
	c.t.Helper()
	_, last := c.walk("clockings?filter=date ge '2026-01-01'&delta")
	if last.DeltaLink == "" {
		c.t.Fatal("the listing ended without a deltaLink")
	}
	return last.DeltaLink
}

// want checks the status and a part of the body.
func (c *caller) want(got reply, status int, part string) {
	c.t.Helper()
	if got.status != status || !strings.Contains(got.body, part) {
		c.t.Errorf("got %d %s, want %d with %q", got.status, got.body, status, part)
	}
}

func clocking(person, minutes int) map[string]any {
	return map[string]any{"person": map[string]any{"id": person}, "date": "2026-01-15", "timeOfDayInMinutes": minutes, "kind": "InOut"}
}

// shownChanges writes the changes of a page as "U 19250 0000…" and "D …", for comparing.
func shownChanges(a answer) []string {
	var all []string
	for _, v := range a.Value {
		data, _ := v["data"].(map[string]any)
		letter := map[any]string{"InsertOrUpdate": "U", "Delete": "D"}[v["changeType"]]
		all = append(all, fmt.Sprintf("%s %v", letter, data["id"]))
	}
	return all
}

// statusOn reads the first clocking at a host.
func statusOn(c *caller, host, token string) int {
	c.t.Helper()
	r, err := http.NewRequest("GET", "http://"+host+Root+"clockings/19250", nil)
	if err != nil {
		c.t.Fatal(err)
	}
	r.Header.Set("User-Agent", "Test/1.0 (Example)")
	r.Header.Set("Authorization", "Bearer "+token)
	resp, err := c.s.Transport().RoundTrip(r)
	if err != nil {
		c.t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}
