package protime

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode"
)

// told checks what an error says of a server's words: little, in one line, and no secret.
func told(t *testing.T, err error, secrets ...string) {
	t.Helper()
	text := err.Error()
	for _, s := range secrets {
		if strings.Contains(text, s) {
			t.Fatalf("%q is told by %q", s, text)
		}
	}
	if len(text) > (maxReasons+5)*3*maxText || strings.ContainsFunc(text, unicode.IsControl) {
		t.Fatalf("error of %d bytes: %q", len(text), text)
	}
}

// FuzzToken reads whatever a token endpoint may answer.
func FuzzToken(f *testing.F) {
	const kind = "application/json"
	f.Add(200, kind, []byte(`{"access_token":"eyJ...", "expires_in":1800, "token_type":"Bearer", "scope":"connector-protimeapi-clockings.read"}`))
	f.Add(400, kind, []byte(`{"error":"invalid_client"}`))
	f.Add(400, kind, []byte(`{"error":"invalid_scope","error_description":"`+url.QueryEscape(testSecret)+" "+testSecret+`\u001b[31m\n"}`))
	f.Add(401, "text/html", []byte(`<html>`+testSecret))
	f.Add(200, "text/plain", []byte("access_token=a%0ab&expires_in=99999999999999999999&error="+url.QueryEscape(testSecret)))
	f.Add(200, "application/x-www-form-urlencoded", []byte("access_token=x&expires_in=-1"))
	f.Add(200, kind, []byte(`{"access_token":"a b\r\nX-Y: z","expires_in":-2147483649}`))
	f.Add(200, kind, []byte(`{"access_token":7}`))
	f.Add(302, kind, []byte(`{"access_token":"x","expires_in":"1e9"}`))
	f.Add(200, kind, []byte(strings.Repeat(`{"x":[`, 200)))
	f.Fuzz(func(t *testing.T, status int, kind string, body []byte) {
		status = 100 + status%500
		asked := 0
		c, err := NewClient(testConfig(answers(func(r *http.Request) (*http.Response, error) {
			if isToken(r) {
				asked++
				return answer(status, string(body), "Content-Type", kind), nil
			}
			token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
			if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) || len(token) > maxToken {
				t.Fatalf("the API is sent the token %q", token)
			}
			return answer(503, ""), nil
		})))
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Get(t.Context(), "clockings", "7")
		var token *TokenError
		var refused *APIError
		if !errors.As(err, &token) && !errors.As(err, &refused) {
			t.Fatalf("got %v, want a TokenError or the API's 503", err)
		}
		told(t, err, testSecret, url.QueryEscape(testSecret), url.PathEscape(testSecret))
		if asked != 1 {
			t.Fatalf("the token endpoint was asked %d times", asked)
		}
	})
}

// FuzzRefusal reads whatever the API may say with an error.
func FuzzRefusal(f *testing.F) {
	f.Add(400, "", "", []byte(`{"error":{"code":"BadRequest","message":"The request was invalid","reasons":["The provided date range is invalid"]}}`))
	f.Add(400, "", "", []byte(`{"code":"BadRequest","message":"...","validationErrors":[{"field":"date","message":"`+testToken+`"}]}`))
	f.Add(410, "60", "r-7", []byte(nil))
	f.Add(429, "99999999999999999999999", "\x1b[2J", []byte(`{"error":"x"}`))
	f.Add(503, "Fri, 31 Dec 9999 23:59:59 GMT", strings.Repeat("x", 1000), []byte("\ufeff{}"))
	f.Add(503, "-1", "", []byte(`{"error":{"reasons":["`+strings.Repeat(`x","`, 100)+`"]}}`))
	f.Add(401, "1.5", "", []byte(`{"message":"a\u0000b\n`+testToken+`","error":[]}`))
	f.Add(500, "", "", []byte(strings.Repeat("[", 300)))
	f.Add(500, "", "", []byte(`{"validationErrors":`+strings.Repeat("[", 90)+strings.Repeat("]", 90)+`}`))
	f.Fuzz(func(t *testing.T, status int, after, id string, body []byte) {
		status = 400 + max(status%200, -status%200)
		c, err := NewClient(testConfig(answers(func(r *http.Request) (*http.Response, error) {
			if isToken(r) {
				return answer(200, `{"access_token":"`+testToken+`"}`), nil
			}
			return answer(status, string(body), "Retry-After", after, "X-Request-Id", id), nil
		})))
		if err != nil {
			t.Fatal(err)
		}
		const deltaToken = "eyJEZWx0YUlkIjo0"
		_, err = c.Fetch(t.Context(), root+"delta/clockings?deltaToken="+deltaToken)
		var refused *APIError
		if !errors.As(err, &refused) || refused.Status != status || refused.RetryAfter < 0 {
			t.Fatalf("got %v, want a %d", err, status)
		}
		told(t, err, testToken, deltaToken)
	})
}

// FuzzRecord reads whatever the API may answer for one record.
func FuzzRecord(f *testing.F) {
	f.Add("19250", []byte(`{"changeVersion":"0000090200004CE0000A","id":19250,"isGenerated":false,"status":"Active","person":{"id":1},"date":"2026-01-15"}`))
	f.Add("6F9619FF-8b86-d011-b42d-00c04fc964ff", []byte("\ufeff {\"id\":\"6f9619ff-8B86-d011-b42d-00c04fc964ff\"}\n"))
	f.Add("a/../b?c#d", []byte(`{"id":7}{"id":8}`))
	f.Add("7", []byte(strings.Repeat(`{"id":`, 100)))
	f.Add("\x00", []byte(`null`))
	f.Fuzz(func(t *testing.T, id string, body []byte) {
		c, err := NewClient(testConfig(answers(func(r *http.Request) (*http.Response, error) {
			if isToken(r) {
				return answer(200, `{"access_token":"`+testToken+`"}`), nil
			}
			if under, ok := strings.CutPrefix(received(t, r.URL).URL.Path, root+"clockings/"); !ok || under != id {
				t.Fatalf("id %q is asked for by %q", id, r.URL)
			}
			return answer(200, string(body)), nil
		})))
		if err != nil {
			t.Fatal(err)
		}
		change, err := c.Get(t.Context(), "clockings", id)
		var bad *PageError
		switch {
		case err == nil && (change.ID != "" && !strings.EqualFold(change.ID, id) || len(change.Data) > len(body)):
			t.Fatalf("asked for %q, got %+v", id, change)
		case err != nil && !errors.As(err, &bad) && id != "" && id != "." && id != "..":
			t.Fatalf("got %v, want a PageError", err)
		}
	})
}

// FuzzRetryAfter: a wait is never negative, and seconds are seconds.
func FuzzRetryAfter(f *testing.F) {
	for _, v := range []string{"60", "", "-1", "1.5", "99999999999999999999", "Fri, 31 Dec 9999 23:59:59 GMT", "Thu, 01 Jan 1970 00:00:00 GMT", " 5 ", "+5", "0x10"} {
		f.Add(v)
	}
	f.Fuzz(func(t *testing.T, v string) {
		got := retryAfter(http.Header{"Retry-After": {v}})
		if want, err := time.ParseDuration(v + "s"); got < 0 || err == nil && strings.Trim(v, "0123456789") == "" && want != got {
			t.Fatalf("%q gives %v", v, got)
		}
	})
}

// FuzzBase: what is configured as the API's address is one, and no error repeats a password in it.
func FuzzBase(f *testing.F) {
	for _, v := range []string{"https://acme.myprotime.eu", "http://[::1]:8090/sim/", "https://u:p@h", "https://h/a/../b", "https://h/?x#y", "//h", "https://h:x", "https://h/connector/protimeapi/api/v1/"} {
		f.Add(v)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		if b, err := parseBase("https://user:" + testSecret + "@" + raw); err == nil || strings.Contains(err.Error(), testSecret) {
			t.Fatalf("got %+v, %v; want an error that does not show the password", b, err)
		}
		b, err := parseBase(raw)
		if err != nil {
			return
		}
		u, err := b.resolve(apiPath + "clockings")
		if err != nil || u.Scheme != b.scheme || u.Host != b.host || u.User != nil || !strings.HasSuffix(received(t, u).URL.Path, apiPath+"clockings") {
			t.Fatalf("under %q the clockings are at %q, %v", raw, u, err)
		}
		if again, err := parseBase(strings.TrimSuffix(b.url(""), apiPath)); err != nil || again != b {
			t.Fatalf("%q is %+v, written again %+v, %v", raw, b, again, err)
		}
	})
}
