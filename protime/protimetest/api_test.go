package protimetest

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"
)

// TestServer_Strictness has a row for each rule of the documentation that a request can break.
func TestServer_Strictness(t *testing.T) {
	c := newCaller(t, Options{})
	c.s.Insert("clockings", clocking(1, 510))
	c.s.Tenant("other").Insert("clockings", clocking(1, 510))
	foreign := c.login("other", "demo", allScopes)
	narrow := c.login("acme", "demo", "connector-protimeapi-people.read")
	agent, bearer := []string{"User-Agent", "Test/1.0 (Example)"}, []string{"Authorization", "Bearer " + c.token}
	with := func(headers ...[]string) (all []string) {
		for _, h := range headers {
			all = append(all, h...)
		}
		return all
	}
	list := Root + "clockings?filter=date%20ge%20'2026-01-01'"
	rows := []struct {
		name, method, target, body string
		headers                    []string
		status                     int
		part                       string
	}{
		{"OK", "GET", list, "", with(agent, bearer), 200, `{"value":[{"changeVersion":"0000090200004C`},
		{"NoUserAgent", "GET", list, "", bearer, 400, `{"error":{"code":"BadRequest","message":"The header User-Agent is required`},
		{"DefaultUserAgent", "GET", list, "", with(bearer, []string{"User-Agent", "Go-http-client/1.1"}), 400, "User-Agent"},
		{"NoToken", "GET", list, "", agent, 401, `{"error":{"code":"Unauthorized"`},
		{"UnknownToken", "GET", list, "", with(agent, []string{"Authorization", "Bearer x.y.z"}), 401, "Unauthorized"},
		{"NoBearer", "GET", list, "", with(agent, []string{"Authorization", c.token}), 401, "Unauthorized"},
		{"NoScope", "GET", list, "", with(agent, []string{"Authorization", "Bearer " + narrow}), 403, `"code":"Forbidden"`},
		{"UnknownCollection", "GET", Root + "terminals", "", with(agent, bearer), 404, `"code":"NotFound"`},
		{"Webhooks", "GET", Root + "webhooks", "", with(agent, bearer), 404, ""},
		{"UnknownID", "GET", Root + "clockings/1", "", with(agent, bearer), 404, "NotFound"},
		{"IDWithZero", "GET", Root + "clockings/019250", "", with(agent, bearer), 404, "NotFound"},
		{"BelowRecord", "GET", Root + "clockings/19250/x", "", with(agent, bearer), 404, ""},
		{"OutsideAPI", "GET", "/connector/other", "", with(agent, bearer), 404, ""},
		{"LongURI", "GET", list + "&x=" + strings.Repeat("x", 4096), "", with(agent, bearer), 414, `"code":"UriTooLong"`},
		{"Put", "PUT", Root + "clockings/19250", "{}", with(agent, bearer), 405, "MethodNotAllowed"},
		{"Delete", "DELETE", Root + "clockings/19250", "", with(agent, bearer), 405, "MethodNotAllowed"},
		{"PostOnDelta", "POST", Root + "delta/clockings", "{}", with(agent, bearer), 405, ""},
		{"PostOnRecord", "POST", Root + "clockings/19250", "{}", with(agent, bearer), 405, ""},
		{"NoFilter", "GET", Root + "clockings", "", with(agent, bearer), 400, `"reasons":["A filter on date is required"]`},
		{"NoFilterInDelta", "GET", Root + "clockings?delta", "", with(agent, bearer), 400, `"reasons":["A filter on date is required"]`},
		{"NoFilterNeeded", "GET", Root + "absence-groups", "", with(agent, bearer), 200, `{"value":[]}`},
		{"SharedScope", "GET", Root + "paid-presences?filter=date%20ge%20'2026-01-01'", "", with(agent, bearer), 200, `{"value":[]}`},
		{"ReferencesMalformed", "GET", list + "&externalReferences=people", "", with(agent, bearer), 400, "external references"},
		{"ReferenceUnknown", "GET", list + "&externalReferences=(people,@shoe-size)", "", with(agent, bearer), 400, "@shoe-size"},
		{"NotADeltaToken", "GET", Root + "delta/clockings?deltaToken=abc", "", with(agent, bearer), 400, "delta token"},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			c := *c
			c.t = t
			c.want(c.send(row.method, row.target, row.body, row.headers...), row.status, row.part)
		})
	}
	t.Run("ForeignToken", func(t *testing.T) {
		if got := c.send("GET", Root+"clockings/19250", "", with(agent, []string{"Authorization", "Bearer " + foreign})...); got.status != 200 {
			t.Fatalf("on its own tenant: %d", got.status)
		}
		r := reply{}
		r.status = statusOn(c, "acme.myprotime.test", foreign)
		if r.status != 401 {
			t.Errorf("token of tenant other at acme's host: %d, want 401", r.status)
		}
		if got := statusOn(c, "other.myprotime.test", foreign); got != 200 {
			t.Errorf("token of tenant other at its own host: %d, want 200", got)
		}
	})
	t.Run("ExpiredToken", func(t *testing.T) {
		c.s.Advance(1799 * time.Second)
		if got := c.get("clockings/19250").status; got != 200 {
			t.Errorf("after 1799 s: %d, want 200", got)
		}
		c.s.Advance(time.Second)
		if got := c.get("clockings/19250").status; got != 401 {
			t.Errorf("after 1800 s: %d, want 401", got)
		}
		c.token = c.login("acme", "demo", allScopes)
		c.s.KillTokens()
		if got := c.get("clockings/19250").status; got != 401 {
			t.Errorf("after KillTokens: %d, want 401", got)
		}
	})
}

func TestServer_Token(t *testing.T) {
	c := newCaller(t, Options{Tenant: "acme"})
	form := func(change ...string) string {
		v := url.Values{
			"grant_type": {"client_credentials"}, "client_id": {"demo"}, "client_secret": {"demo"},
			"scope": {"connector-protimeapi-clockings.read"},
		}
		for i := 0; i < len(change); i += 2 {
			v.Set(change[i], change[i+1])
		}
		return v.Encode()
	}
	const path, formType = "/tenants/acme/connect/token", "application/x-www-form-urlencoded"
	for _, row := range []struct {
		name, path, kind, body string
		status                 int
		part                   string
	}{
		{"OK", path, formType, form(), 200, `"scope":"connector-protimeapi-clockings.read"`},
		{"OtherTenant", "/tenants/other/connect/token", formType, form(), 404, ""},
		{"WrongSecret", path, formType, form("client_secret", "x"), 400, `{"error":"invalid_client"}`},
		{"WrongClient", path, formType, form("client_id", "x"), 400, `{"error":"invalid_client"}`},
		{"UnknownScope", path, formType, form("scope", "openid"), 400, `{"error":"invalid_scope"}`},
		{"NoScope", path, formType, form("scope", ""), 400, `{"error":"invalid_scope"}`},
		{"NoWriteScope", path, formType, form("scope", "connector-protimeapi-absences.write"), 400, `{"error":"invalid_scope"}`},
		{"OtherGrant", path, formType, form("grant_type", "password"), 400, `{"error":"unsupported_grant_type"}`},
		{"NotAForm", path, "application/json", "{}", 400, `{"error":"invalid_request"}`},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := *c
			c.t = t
			c.want(c.send("POST", row.path, row.body, "Content-Type", row.kind), row.status, row.part)
		})
	}
	t.Run("SecretInTheHeaderOnly", func(t *testing.T) {
		got := c.send("POST", path, "grant_type=client_credentials&scope=connector-protimeapi-clockings.read",
			"Content-Type", formType, "Authorization", "Basic ZGVtbzpkZW1v")
		c.want(got, 400, "invalid_client")
	})
	t.Run("Discovery", func(t *testing.T) {
		c.want(c.send("GET", "/tenants/acme/.well-known/openid-configuration", ""), 200, `"token_endpoint":"http://api.test/tenants/acme/connect/token"`)
	})
}

func TestServer_Post(t *testing.T) {
	c := newCaller(t, Options{})
	const good = `"person":{"id":1},"date":"2026-01-15","timeOfDayInMinutes":510`
	for _, row := range []struct {
		name, body string
		status     int
		part       string
	}{
		{"OK", `{` + good + `,"kind":"InOut"}`, 201, ""},
		{"DayBefore", `{"person":{"id":1},"date":"2026-01-15","timeOfDayInMinutes":-1440,"kind":"InOut"}`, 201, ""},
		{"Reason", `{` + good + `,"kind":"Reason","reason":{"id":3},"isOpen":true}`, 201, ""},
		{"Activity", `{` + good + `,"kind":"Activity","activityLevels":[{"level":1,"activityDefinition":{"id":"8f3a"}}]}`, 201, ""},
		{"Place", `{` + good + `,"kind":"InOut","terminal":{"id":4},"geolocation":{"longitude":4.35,"latitude":50.85}}`, 201, ""},
		{"NotJSON", `{`, 400, `{"code":"BadRequest","message":"The request was invalid","validationErrors":[{"field":"","message":`},
		{"TwoObjects", `{` + good + `,"kind":"InOut"}{}`, 400, "validationErrors"},
		{"Null", `null`, 400, "validationErrors"},
		{"NoPerson", `{"date":"2026-01-15","timeOfDayInMinutes":510,"kind":"InOut"}`, 400, `{"field":"person","message":"is required"}`},
		{"PersonIsText", `{"person":{"id":"1"},"date":"2026-01-15","timeOfDayInMinutes":510,"kind":"InOut"}`, 400, `"field":"person"`},
		{"NoSuchDate", `{"person":{"id":1},"date":"2026-02-30","timeOfDayInMinutes":510,"kind":"InOut"}`, 400, `"field":"date"`},
		{"TooLate", `{"person":{"id":1},"date":"2026-01-15","timeOfDayInMinutes":2881,"kind":"InOut"}`, 400, `"field":"timeOfDayInMinutes"`},
		{"HalfMinute", `{"person":{"id":1},"date":"2026-01-15","timeOfDayInMinutes":510.5,"kind":"InOut"}`, 400, `"field":"timeOfDayInMinutes"`},
		{"UnknownKind", `{` + good + `,"kind":"inout"}`, 400, `"field":"kind"`},
		{"ReasonOfInOut", `{` + good + `,"kind":"InOut","reason":{"id":3}}`, 400, `"field":"reason"`},
		{"UnknownReference", `{"person":{"externalReferences":{"@badge-number":"7"}},"date":"2026-01-15","timeOfDayInMinutes":510,"kind":"InOut"}`, 400, "reasons"},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := *c
			c.t = t
			got := c.call("POST", "clockings", row.body)
			c.want(got, row.status, row.part)
			if location := got.header.Get("Location"); (location != "") != (row.status == 201) {
				t.Errorf("Location %q", location)
			}
			if row.status == 201 && got.body != "" {
				t.Errorf("body %q, want none", got.body)
			}
		})
	}
	t.Run("NotSentAsJSON", func(t *testing.T) {
		got := c.send("POST", Root+"clockings", `{`+good+`,"kind":"InOut"}`, "User-Agent", "Test/1.0 (Example)", "Authorization", "Bearer "+c.token)
		c.want(got, 400, "Content-Type")
	})
	t.Run("ReadScopeOnly", func(t *testing.T) {
		c := *c
		c.token = c.login("acme", "demo", "connector-protimeapi-clockings.read")
		c.want(c.call("POST", "clockings", `{`+good+`,"kind":"InOut"}`), 403, "connector-protimeapi-clockings.write")
	})
	t.Run("ReadOnlyFieldsIgnored", func(t *testing.T) {
		got := c.call("POST", "clockings", `{`+good+`,"kind":"InOut","id":7,"changeVersion":"F","status":"Deleted","unknown":1}`)
		c.want(c.get(got.header.Get("Location")), 200, `"status":"Active"`)
		if strings.Contains(c.get(got.header.Get("Location")).body, "unknown") {
			t.Error("an unknown field was kept")
		}
	})
	t.Run("TwiceMakesTwo", func(t *testing.T) {
		a, b := c.call("POST", "clockings", `{`+good+`,"kind":"InOut"}`), c.call("POST", "clockings", `{`+good+`,"kind":"InOut"}`)
		if a.header.Get("Location") == b.header.Get("Location") {
			t.Errorf("both are %s", a.header.Get("Location"))
		}
	})
	t.Run("PersonByReference", func(t *testing.T) {
		id := c.s.Insert("people", map[string]any{"firstName": "An", "badgeNumber": "6767676"})
		got := c.call("POST", "clockings", `{"person":{"externalReferences":{"@badge-number":"6767676"}},"date":"2026-01-15","timeOfDayInMinutes":510,"kind":"InOut"}`)
		c.want(c.get(got.header.Get("Location")), 200, `"person":{"id":`+id+`}`)
	})
}

func TestServer_ExternalReferences(t *testing.T) {
	c := newCaller(t, Options{PageSize: 1})
	person := c.s.Insert("people", map[string]any{"firstName": "An", "badgeNumber": "6767676"})
	c.s.Insert("clockings", clocking(1, 510))
	c.s.Insert("clockings", clocking(2, 510))
	const refs = "externalReferences=(people,@badge-number)(terminals,@external-code)"
	want := `"person":{"id":` + person + `,"externalReferences":{"@badge-number":"6767676"}}`
	c.want(c.get("clockings/19250?"+refs), 200, want)
	first := c.get("clockings?filter=date ge '2026-01-01'&delta&" + refs)
	c.want(first, 200, want)
	page := c.page("clockings?filter=date ge '2026-01-01'&delta&" + refs)
	if !strings.Contains(page.NextLink, refs) {
		t.Errorf("nextLink %s does not carry the references", page.NextLink)
	}
	last := c.page(page.NextLink)
	if got := fmt.Sprint(last.Value[0]["person"]); got != "map[id:2]" {
		t.Errorf("a person without a value is %s", got)
	}
	c.want(c.get(last.DeltaLink), 200, want) // remembered
	if strings.Contains(c.get("clockings/19250").body, "externalReferences") {
		t.Error("references were shown without being asked for")
	}
}

func TestServer_Prefix(t *testing.T) {
	c := &caller{t: t, s: New(Options{Now: today, Prefix: "/sim"})}
	c.want(c.send("GET", "/sim/admin/", ""), 200, "/admin/fault")
	c.want(c.send("GET", "/admin/", ""), 404, "/sim")
	c.want(c.send("GET", "/sim"+Root+"clockings/1", "", "User-Agent", "x"), 401, "")
}

func TestServer_Requests(t *testing.T) {
	c := newCaller(t, Options{})
	c.s.ResetRequests()
	c.get("clockings/7?a=%20b")
	c.s.Advance(time.Hour)
	c.get("clockings/8")
	got := c.s.Requests()
	if c.s.RequestCount() != 2 || len(got) != 2 {
		t.Fatalf("%d requests counted, %d kept, want 2", c.s.RequestCount(), len(got))
	}
	want := Request{Time: today(), Method: "GET", Path: Root + "clockings/7", Query: "a=%20b", UserAgent: "Test/1.0 (Example)", Status: 404}
	if got[0] != want {
		t.Errorf("got %+v, want %+v", got[0], want)
	}
	if d := got[1].Time.Sub(got[0].Time); d != time.Hour {
		t.Errorf("the requests lie %s apart, want 1h", d)
	}
	for range maxRequests {
		c.get("clockings/9")
	}
	if n := len(c.s.Requests()); n != maxRequests || c.s.RequestCount() != maxRequests+2 {
		t.Errorf("kept %d and counted %d", n, c.s.RequestCount())
	}
}
