package protime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

const (
	testSecret = "s3cr3t+/ %& value"
	testToken  = "eyJhbGciOiJub25lIn0.tok3n"
)

// answers plays the server: one function in place of the network.
type answers func(*http.Request) (*http.Response, error)

func (a answers) RoundTrip(r *http.Request) (*http.Response, error) { return a(r) }

func answer(status int, body string, header ...string) *http.Response {
	h := http.Header{"Content-Type": {"application/json"}}
	for i := 0; i < len(header); i += 2 {
		h.Set(header[i], header[i+1])
	}
	return &http.Response{StatusCode: status, Status: fmt.Sprint(status), Header: h, Body: io.NopCloser(strings.NewReader(body))}
}

func isToken(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/connect/token") }

func testConfig(transport http.RoundTripper) Config {
	return Config{
		Tenant: "acme", ClientID: "bridge", Secret: func() (string, error) { return testSecret, nil },
		Scopes:    []string{ReadScope("clockings"), ReadScope("people")},
		UserAgent: "clockbridge/1.0 (Example Company)",
		Transport: transport,
	}
}

func newTestClient(t *testing.T, transport http.RoundTripper) *Client {
	t.Helper()
	c, err := NewClient(testConfig(transport))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// issuer gives out numbered tokens.
type issuer struct {
	mu      sync.Mutex
	issued  int
	expires string // the member expires_in, or ""
	delay   time.Duration
}

func (i *issuer) RoundTrip(r *http.Request) (*http.Response, error) {
	if i.delay > 0 {
		select {
		case <-time.After(i.delay):
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.issued++
	return answer(200, fmt.Sprintf(`{"access_token":"%s%d","token_type":"Bearer"%s}`, testToken, i.issued, i.expires)), nil
}

func TestTokens_get(t *testing.T) {
	t.Run("RequestAsDocumented", func(t *testing.T) {
		var got []url.Values
		c := newTestClient(t, answers(func(r *http.Request) (*http.Response, error) {
			if want := "https://authentication.myprotime.eu/tenants/acme/connect/token"; r.Method != "POST" || r.URL.String() != want {
				t.Errorf("got %s %s, want POST %s", r.Method, r.URL, want)
			}
			if got := r.Header.Get("User-Agent"); got != "clockbridge/1.0 (Example Company)" {
				t.Errorf("got User-Agent %q", got)
			}
			if got := r.Header.Get("Authorization"); got != "" {
				t.Errorf("got Authorization %q, want none", got)
			}
			body, _ := io.ReadAll(r.Body)
			form, err := url.ParseQuery(string(body))
			if err != nil {
				t.Error(err)
			}
			got = append(got, form)
			return answer(200, `{"access_token":"x","expires_in":1800,"token_type":"Bearer","scope":"y"}`), nil
		}))
		if err := c.CheckToken(t.Context()); err != nil {
			t.Fatal(err)
		}
		want := url.Values{
			"grant_type": {"client_credentials"}, "client_id": {"bridge"}, "client_secret": {testSecret},
			"scope": {"connector-protimeapi-clockings.read connector-protimeapi-people.read"},
		}
		if len(got) != 1 || fmt.Sprint(got[0]) != fmt.Sprint(want) {
			t.Errorf("got requests %v, want one, %v", got, want)
		}
	})

	t.Run("RefreshedBeforeExpiry", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			for _, test := range []struct {
				expires     string
				good, stale time.Duration
			}{
				{`,"expires_in":1800`, 1739 * time.Second, 1741 * time.Second},
				{`,"expires_in":10`, 7 * time.Second, 9 * time.Second},
				{``, 1000 * time.Hour, 0}, // never stale
			} {
				i := &issuer{expires: test.expires}
				c := newTestClient(t, i)
				start := time.Now()
				check := func(at time.Duration, want int) {
					time.Sleep(at - time.Since(start))
					if err := c.CheckToken(t.Context()); err != nil || i.issued != want {
						t.Errorf("%s: after %v %d tokens were asked for, want %d; error %v", test.expires, at, i.issued, want, err)
					}
				}
				check(0, 1)
				check(test.good, 1)
				if test.stale != 0 {
					check(test.stale, 2)
				}
			}
		})
	})

	t.Run("OneRequestAtATime", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			i := &issuer{expires: `,"expires_in":1800`, delay: time.Second}
			c := newTestClient(t, i)
			var wg sync.WaitGroup
			for range 50 {
				wg.Go(func() {
					if token, err := c.tokens.get(t.Context(), ""); err != nil || token != testToken+"1" {
						t.Errorf("got %q, error %v", token, err)
					}
				})
			}
			wg.Wait()
			if i.issued != 1 {
				t.Errorf("%d tokens were asked for, want 1", i.issued)
			}
		})
	})

	t.Run("WaitsAsLongAsItsOwnContext", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			i := &issuer{delay: 10 * time.Second}
			c := newTestClient(t, i)
			var wg sync.WaitGroup
			// The first gives up while its request is under way, the second while it waits, the third gets a token.
			for n, patience := range []time.Duration{5 * time.Second, 2 * time.Second, time.Hour} {
				wg.Go(func() {
					time.Sleep(time.Duration(n) * time.Millisecond)
					start := time.Now()
					ctx, cancel := context.WithTimeout(t.Context(), patience)
					defer cancel()
					err := c.CheckToken(ctx)
					if n == 2 {
						if err != nil {
							t.Errorf("the patient one got %v", err)
						}
						return
					}
					var bad *TokenError
					if !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &bad) || time.Since(start) != patience {
						t.Errorf("caller %d got %v after %v, want its deadline after %v", n, err, time.Since(start), patience)
					}
				})
			}
			wg.Wait()
		})
	})

	t.Run("SharesAFailureWithThoseWhoWait", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			asked := 0
			c := newTestClient(t, answers(func(r *http.Request) (*http.Response, error) {
				time.Sleep(time.Second)
				asked++
				return answer(503, ""), nil
			}))
			var wg sync.WaitGroup
			for range 20 {
				wg.Go(func() {
					var bad *TokenError
					if err := c.CheckToken(t.Context()); !errors.As(err, &bad) || bad.Status != 503 {
						t.Errorf("got %v, want a TokenError with status 503", err)
					}
				})
			}
			wg.Wait()
			if asked != 1 {
				t.Errorf("asked %d times, want once", asked)
			}
			if c.CheckToken(t.Context()); asked != 2 {
				t.Errorf("asked %d times after one more call, want twice", asked)
			}
		})
	})

	t.Run("EndsWithoutAnAnswer", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := newTestClient(t, answers(func(r *http.Request) (*http.Response, error) {
				<-r.Context().Done()
				return nil, r.Context().Err()
			}))
			err := c.CheckToken(t.Context())
			if want := "get token: no answer within 30s"; err == nil || err.Error() != want {
				t.Errorf("got %v, want %s", err, want)
			}
		})
	})

	t.Run("PicksUpARotatedSecret", func(t *testing.T) {
		var got []string
		config := testConfig(answers(func(r *http.Request) (*http.Response, error) {
			r.ParseForm()
			got = append(got, r.PostForm.Get("client_secret"))
			return answer(400, `{"error":"invalid_client"}`), nil
		}))
		n := 0
		config.Secret = func() (string, error) { n++; return fmt.Sprint("secret", n), nil }
		c, err := NewClient(config)
		if err != nil {
			t.Fatal(err)
		}
		c.CheckToken(t.Context())
		c.CheckToken(t.Context())
		if fmt.Sprint(got) != "[secret1 secret2]" {
			t.Errorf("got secrets %v", got)
		}
	})
}

func TestTokenError(t *testing.T) {
	gone := errors.New("file is gone")
	for name, test := range map[string]struct {
		answer answers
		secret func() (string, error)
		want   TokenError
		text   string
	}{
		"InvalidClient": {
			answer: func(*http.Request) (*http.Response, error) {
				return answer(400, `{"error":"invalid_client","error_description":"no such client"}`), nil
			},
			want: TokenError{Status: 400, Code: "invalid_client", Description: "no such client"},
			text: "get token: 400 bad request: invalid_client: no such client",
		},
		"TooMany": {
			answer: func(*http.Request) (*http.Response, error) { return answer(429, ``, "Retry-After", "60"), nil },
			want:   TokenError{Status: 429, RetryAfter: time.Minute},
			text:   "get token: 429 too many requests",
		},
		"ErrorWithStatus200": {
			answer: func(*http.Request) (*http.Response, error) { return answer(200, `{"error":"invalid_scope"}`), nil },
			want:   TokenError{Status: 200, Code: "invalid_scope"},
			text:   "get token: 200 ok: invalid_scope",
		},
		"HTML": {
			answer: func(*http.Request) (*http.Response, error) {
				return answer(200, "<html>"+testSecret, "Content-Type", "text/html"), nil
			},
			want: TokenError{Status: 200, Err: errors.New("the answer holds no token")},
			text: "get token: 200 ok: the answer holds no token",
		},
		"NoToken": {
			answer: func(*http.Request) (*http.Response, error) { return answer(200, `{}`), nil },
			want:   TokenError{Status: 200, Err: errors.New("the answer holds no token")},
			text:   "get token: 200 ok: the answer holds no token",
		},
		"TokenThatBreaksTheHeader": {
			answer: func(*http.Request) (*http.Response, error) { return answer(200, `{"access_token":"a\r\nX-Y: z"}`), nil },
			want:   TokenError{Status: 200, Err: errors.New("the answer holds no token")},
			text:   "get token: 200 ok: the answer holds no token",
		},
		"TokenTooLong": {
			answer: func(*http.Request) (*http.Response, error) {
				return answer(200, `{"access_token":"`+strings.Repeat("x", maxToken+1)+`"}`), nil
			},
			want: TokenError{Status: 200, Err: errors.New("the answer holds no token")},
			text: "get token: 200 ok: the answer holds no token",
		},
		"SecretRepeated": {
			answer: func(r *http.Request) (*http.Response, error) {
				body, _ := io.ReadAll(r.Body)
				return answer(400, fmt.Sprintf(`{"error":"bad %s","error_description":%q}`, testSecret, body)), nil
			},
			want: TokenError{Status: 400, Code: "bad [redacted]", Description: "client_id=bridge&client_secret=[redacted]&grant_type=client_credentials&scope=connector-protimeapi-clockings.read+connector-protimeapi-people.read"},
			text: "get token: 400 bad request: bad [redacted]: client_id=bridge&client_secret=[redacted]&grant_type=client_credentials&scope=connector-protimeapi-clockings.read+connector-protimeapi-people.read",
		},
		"BodyWithoutForm": {
			answer: func(r *http.Request) (*http.Response, error) {
				body, _ := io.ReadAll(r.Body)
				return answer(500, string(body), "Content-Type", "text/html"), nil
			},
			want: TokenError{Status: 500},
			text: "get token: 500 internal server error",
		},
		"Network": {
			answer: func(*http.Request) (*http.Response, error) { return nil, gone },
			want:   TokenError{Err: gone},
			text:   "get token: file is gone",
		},
		"SecretFunction": {
			secret: func() (string, error) { return testSecret, gone },
			want:   TokenError{Err: ErrSecret},
			text:   "get token: read client secret: file is gone",
		},
		"Redirect": {
			answer: func(r *http.Request) (*http.Response, error) {
				if r.URL.Host != "authentication.myprotime.eu" {
					t.Errorf("went to %s", r.URL)
				}
				return answer(307, "", "Location", "https://evil.example/"), nil
			},
			want: TokenError{Status: 307, Err: &LinkError{Reason: "the token endpoint redirects"}},
			text: "get token: 307 temporary redirect: refuse link: the token endpoint redirects",
		},
	} {
		t.Run(name, func(t *testing.T) {
			config := testConfig(test.answer)
			if test.secret != nil {
				config.Secret = test.secret
			}
			c, err := NewClient(config)
			if err != nil {
				t.Fatal(err)
			}
			err = c.CheckToken(t.Context())
			var got *TokenError
			if !errors.As(err, &got) {
				t.Fatalf("got %v, want a TokenError", err)
			}
			if got.Status != test.want.Status || got.Code != test.want.Code || got.Description != test.want.Description ||
				got.RetryAfter != test.want.RetryAfter || (got.Err == nil) != (test.want.Err == nil) {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
			if test.want.Err == gone && !errors.Is(err, gone) {
				t.Errorf("%v does not wrap its cause", err)
			}
			if err.Error() != test.text {
				t.Errorf("got  %s\nwant %s", err, test.text)
			}
		})
	}
}
