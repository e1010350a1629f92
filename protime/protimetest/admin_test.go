package protimetest

import (
	"testing"
	"time"
)

func TestAdmin(t *testing.T) {
	c := newCaller(t, Options{})
	admin := func(what, body string, status int, part string) {
		t.Helper()
		c.want(c.send("POST", "/admin/"+what, body), status, part)
	}
	admin("insert", `{"collection":"clockings","fields":{"person":{"id":1},"date":"2026-01-15","timeOfDayInMinutes":510,"kind":"InOut"}}`, 200, `{"id":"19250"}`)
	admin("insert", `{"collection":"clockings","fields":{"person":{"id":2},"date":"2026-01-15","timeOfDayInMinutes":520,"kind":"InOut"}}`, 200, `{"id":"19251"}`)
	link := c.start()

	admin("update", `{"collection":"clockings","id":"19250","fields":{"timeOfDayInMinutes":505}}`, 204, "")
	c.want(c.get("clockings/19250"), 200, `"originalTimeOfDayInMinutes":510,"calculatedTimeOfDayInMinutes":505,`)
	admin("remove", `{"collection":"clockings","id":"19250"}`, 204, "")
	c.want(c.get("clockings/19250"), 200, `"status":"Deleted"`)
	admin("remove", `{"collection":"clockings","id":"19251","hard":true}`, 204, "")
	c.want(c.get("clockings/19251"), 404, "")

	admin("fault", `{"kind":"status","status":503,"retryAfter":"9"}`, 204, "")
	if got := c.get("clockings/19250"); got.status != 503 || got.header.Get("Retry-After") != "9" {
		t.Errorf("got %d after %q, want 503 after 9", got.status, got.header.Get("Retry-After"))
	}
	admin("fault", `{"kind":"none"}`, 204, "")
	c.want(c.get("clockings/19250"), 200, "")

	admin("expire", `{"collection":"clockings"}`, 204, "")
	c.want(c.get(link), 410, "Gone")

	admin("tokens", `{}`, 204, "")
	c.want(c.get("clockings/19250"), 401, "")
	c.token = c.login("acme", "demo", allScopes)
	admin("advance", `{"duration":"1h"}`, 204, "")
	if now := c.s.Now(); !now.Equal(today().Add(time.Hour)) {
		t.Errorf("the clock shows %s", now)
	}
	c.want(c.get("clockings/19250"), 401, "") // the token has expired meanwhile

	for _, row := range []struct {
		what, body string
		status     int
		part       string
	}{
		{"insert", `{"collection":"shoes"}`, 400, `"reasons":["collection: `},
		{"update", `{"collection":"clockings","id":"7"}`, 404, "NotFound"},
		{"remove", `{"collection":"clockings","id":"19251"}`, 404, "NotFound"},
		{"fault", `{"kind":"fire"}`, 400, `"reasons":["kind: `},
		{"fault", `{"kind":"status","status":7}`, 400, `"reasons":["status: `},
		{"advance", `{"duration":"long"}`, 400, `"reasons":["duration: `},
		{"advance", `{"hours":1}`, 400, `unknown field`},
		{"advance", ``, 400, `"reasons":[`},
		{"shout", `{}`, 404, "GET /admin/"},
	} {
		admin(row.what, row.body, row.status, row.part)
	}
	c.want(c.send("GET", "/admin/", ""), 200, "/admin/advance")
	c.want(c.send("GET", "/admin/tokens", ""), 405, "POST")
	c.s.Tenant("other").Insert("clockings", clocking(1, 510))
	admin("update", `{"tenant":"other","collection":"clockings","id":"19250","fields":{"timeOfDayInMinutes":505}}`, 204, "")
}
