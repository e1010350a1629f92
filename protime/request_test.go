package protime

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestAPIError_readsNoEndlessBody(t *testing.T) {
	read := 0
	c := newTestClient(t, answers(func(r *http.Request) (*http.Response, error) {
		if isToken(r) {
			return answer(200, `{"access_token":"x"}`), nil
		}
		resp := answer(503, "")
		resp.Body = io.NopCloser(readFunc(func(b []byte) (int, error) {
			if read += len(b); read > 1<<20 {
				t.Error("still reading after 1 MiB")
				return 0, io.EOF
			}
			return copy(b, strings.Repeat(" ", len(b))), nil
		}))
		return resp, nil
	}))
	var refused *APIError
	if _, err := c.Fetch(t.Context(), after); !errors.As(err, &refused) || refused.Status != 503 {
		t.Errorf("got %v, want a 503", err)
	}
}

func TestClient_unauthorized(t *testing.T) {
	good := `{"value":[],"deltaLink":"` + after + `"}`
	t.Run("OneFreshToken", func(t *testing.T) {
		var seen []string
		c, tokens := newServer(t, func(w http.ResponseWriter, r *http.Request) {
			token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "+testToken)
			seen = append(seen, token)
			if token == "1" {
				w.WriteHeader(401)
				return
			}
			io.WriteString(w, good)
		})
		for range 2 {
			p, err := c.Fetch(t.Context(), after)
			if err != nil {
				t.Fatal(err)
			}
			p.Close()
		}
		if fmt.Sprint(seen) != "[1 2 2]" || tokens.Load() != 2 {
			t.Errorf("got requests with tokens %v of %d", seen, tokens.Load())
		}
	})
	t.Run("OnlyOne", func(t *testing.T) {
		asked := 0
		c, tokens := newServer(t, func(w http.ResponseWriter, r *http.Request) {
			asked++
			w.WriteHeader(401)
		})
		_, err := c.Fetch(t.Context(), after)
		var refused *APIError
		if !errors.As(err, &refused) || refused.Status != 401 || asked != 2 || tokens.Load() != 2 {
			t.Errorf("got %v after %d requests with %d tokens, want a 401 after 2 with 2", err, asked, tokens.Load())
		}
	})
	t.Run("SharedByAll", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			tokens := 0
			c := newTestClient(t, answers(func(r *http.Request) (*http.Response, error) {
				time.Sleep(time.Second)
				switch {
				case isToken(r):
					tokens++
					return answer(200, fmt.Sprintf(`{"access_token":"t%d"}`, tokens)), nil
				case r.Header.Get("Authorization") == "Bearer t1":
					return answer(401, ""), nil
				}
				return answer(200, good), nil
			}))
			errs := make(chan error)
			for range 20 {
				go func() {
					_, err := c.Fetch(t.Context(), after)
					errs <- err
				}()
			}
			for range 20 {
				if err := <-errs; err != nil {
					t.Error(err)
				}
			}
			if tokens != 2 {
				t.Errorf("%d tokens were asked for, want 2", tokens)
			}
		})
	})
}

func TestClient_redirects(t *testing.T) {
	good := `{"value":[],"deltaLink":"` + after + `"}`
	for name, test := range map[string]struct{ location, want string }{
		"WithinTheAPI":  {root + "delta/moved?deltaToken=a+b c", ""},
		"OtherHost":     {"https://evil.example" + root + "clockings?deltaToken=s3cr3t", `refuse link: leads to host "evil.example"`},
		"OtherPath":     {"/login?returnUrl=s3cr3t", "refuse link: leads outside"},
		"NoLocation":    {"", "refuse link: neither"},
		"UnparsableURL": {"https://[::1/%zz?deltaToken=s3cr3t", "refuse link: "},
		"ToItself":      {after, "refuse link: more than 5 redirects"},
	} {
		t.Run(name, func(t *testing.T) {
			asked := 0
			c, _ := newServer(t, func(w http.ResponseWriter, r *http.Request) {
				if asked++; asked > 6 {
					t.Errorf("got request %d", asked)
				}
				if r.URL.Path == root+"delta/moved" {
					if got := r.URL.Query().Get("deltaToken"); got != "a+b c" {
						t.Errorf("got token %q", got)
					}
					io.WriteString(w, good)
					return
				}
				w.Header().Set("Location", test.location)
				w.WriteHeader(307)
			})
			p, err := c.Fetch(t.Context(), after)
			if test.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				p.Close()
				return
			}
			var bad *LinkError
			if !errors.As(err, &bad) || !strings.HasPrefix(err.Error(), test.want) || strings.Contains(err.Error(), "s3cr3t") {
				t.Errorf("got %v, want %s", err, test.want)
			}
		})
	}
}

func TestAPIError(t *testing.T) {
	for name, test := range map[string]struct {
		status int
		body   string
		header []string
		want   APIError
		text   string
	}{
		"Documented": {
			400, `{"error":{"code":"BadRequest","message":"The request was invalid","reasons":["The provided date range is invalid"]}}`, nil,
			APIError{Code: "BadRequest", Message: "The request was invalid", Reasons: []string{"The provided date range is invalid"}},
			": 400 bad request: BadRequest: The request was invalid; The provided date range is invalid",
		},
		"Validation": {
			400, `{"code":"BadRequest","message":"m","validationErrors":[{"field":"date", "x":1.50}]}`, nil,
			APIError{Code: "BadRequest", Message: "m", Validation: `[{"field":"date","x":1.50}]`},
			`: 400 bad request: BadRequest: m; validation [{"field":"date","x":1.50}]`,
		},
		"Gone":      {410, ``, nil, APIError{}, ": 410 gone"},
		"NotFound":  {404, `{}`, nil, APIError{}, ": 404 not found"},
		"OtherKind": {400, `{"error":{"code":7,"message":["x"],"reasons":"y"},"validationErrors":null}`, nil, APIError{}, ": 400 bad request"},
		"HTML":      {502, `<html>`, nil, APIError{}, ": 502 bad gateway"},
		"Busy":      {429, ``, []string{"Retry-After", "60", "X-Request-Id", "r-7"}, APIError{RetryAfter: time.Minute, RequestID: "r-7"}, ": 429 too many requests (request id r-7)"},
		"Endless":   {503, strings.Repeat(`{"message":"`, 100_000), nil, APIError{}, ": 503 service unavailable"},
		"LongText":  {500, `{"message":"` + strings.Repeat("x", 5000) + `"}`, nil, APIError{Message: strings.Repeat("x", 2048) + "..."}, ": 500 internal server error: " + strings.Repeat("x", 2048) + "..."},
		"Terminal":  {400, `{"code":"a\u001b[2Jb","message":"c\nd\u009b"}`, nil, APIError{Code: "a [2Jb", Message: "c d "}, ": 400 bad request: a [2Jb: c d "},
		"ManyReasons": {
			400, `{"reasons":["r"` + strings.Repeat(`,"r"`, 1000) + `]}`, nil, APIError{Reasons: slices.Repeat([]string{"r"}, 20)},
			": 400 bad request" + strings.Repeat("; r", 20),
		},
		"UnnamedStatus": {599, ``, nil, APIError{}, ": 599"},
	} {
		t.Run(name, func(t *testing.T) {
			c, _ := newServer(t, func(w http.ResponseWriter, r *http.Request) {
				for i := 0; i < len(test.header); i += 2 {
					w.Header().Set(test.header[i], test.header[i+1])
				}
				w.WriteHeader(test.status)
				io.WriteString(w, test.body)
			})
			_, err := c.Fetch(t.Context(), after)
			var got *APIError
			if !errors.As(err, &got) {
				t.Fatalf("got %v, want an APIError", err)
			}
			want := test.want
			want.Method, want.Path, want.Status = "GET", "/sim"+root+"delta/clockings", test.status
			if !reflect.DeepEqual(*got, want) {
				t.Errorf("got  %#v\nwant %#v", *got, want)
			}
			if want := "get /sim" + root + "delta/clockings" + test.text; err.Error() != want {
				t.Errorf("got  %s\nwant %s", err, want)
			}
			if errors.Is(err, ErrGone) != (test.status == 410) || errors.Is(err, ErrNotFound) != (test.status == 404) {
				t.Errorf("%v is ErrGone: %v, ErrNotFound: %v", err, errors.Is(err, ErrGone), errors.Is(err, ErrNotFound))
			}
		})
	}
}

func TestRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for value, want := range map[string]time.Duration{
			"": 0, "60": time.Minute, " 5 ": 5 * time.Second, "-1": 0, "1.5": 0, "soon": 0,
			"99999999999": time.Duration(1<<63 - 1), "99999999999999999999999": time.Duration(1<<63 - 1),
			time.Now().Add(2 * time.Hour).UTC().Format(http.TimeFormat):  2 * time.Hour,
			time.Now().Add(-2 * time.Hour).UTC().Format(http.TimeFormat): 0,
		} {
			if got := retryAfter(http.Header{"Retry-After": {value}}); got != want {
				t.Errorf("%q: got %v, want %v", value, got, want)
			}
		}
	})
}

// Whatever goes wrong, and whatever the servers repeat, no error tells the client secret, the access token or a delta's token.
func TestErrors_tellNoSecret(t *testing.T) {
	const deltaToken = "eyJEZWx0YUlkIjo0+a/b=="
	secrets := []string{testSecret, url.QueryEscape(testSecret), testToken, deltaToken, url.QueryEscape(deltaToken), "eyJEZWx0YUlkIjo0%2Ba/b==", "eyJEZWx0YUlkIjo0 a/b=="}
	cursor := root + "delta/clockings?deltaToken=" + deltaToken
	// echo repeats everything that the API was told, in each way of writing it.
	echo := func(r *http.Request) string {
		all := []string{r.URL.String(), r.Header.Get("Authorization")}
		if r.URL.Query().Has("deltaToken") {
			all = append(all, secrets[3:]...)
		}
		text, _ := json.Marshal(strings.Join(all, " "))
		return string(text)
	}
	token := func(r *http.Request) *http.Response { return answer(200, `{"access_token":"`+testToken+`"}`) }
	apiAnswer := func(f func(r *http.Request) (*http.Response, error)) answers {
		return func(r *http.Request) (*http.Response, error) {
			if isToken(r) {
				return token(r), nil
			}
			return f(r)
		}
	}
	for name, transport := range map[string]answers{
		"TokenRefused": func(r *http.Request) (*http.Response, error) {
			body, _ := io.ReadAll(r.Body)
			text, _ := json.Marshal(string(body) + " " + testSecret)
			return answer(400, fmt.Sprintf(`{"error":%s,"error_description":%[1]s,"error_uri":%[1]s}`, text)), nil
		},
		"TokenBody": func(r *http.Request) (*http.Response, error) {
			body, _ := io.ReadAll(r.Body)
			return answer(500, string(body), "Content-Type", "text/html"), nil
		},
		"TokenNetwork": func(r *http.Request) (*http.Response, error) { return nil, errors.New("no route") },
		"APINetwork":   apiAnswer(func(r *http.Request) (*http.Response, error) { return nil, errors.New("no route") }),
		"APIEchoes": apiAnswer(func(r *http.Request) (*http.Response, error) {
			return nil, fmt.Errorf("malformed HTTP response %q", r.URL.String()+r.Header.Get("Authorization"))
		}),
		"TokenEchoes": func(r *http.Request) (*http.Response, error) {
			body, _ := io.ReadAll(r.Body)
			return nil, fmt.Errorf("malformed HTTP response %q", body)
		},
		"APIError": apiAnswer(func(r *http.Request) (*http.Response, error) {
			text := echo(r)
			return answer(414, fmt.Sprintf(`{"error":{"code":%s,"message":%[1]s,"reasons":[%[1]s]},"validationErrors":[%[1]s,{%[1]s:1}]}`, text)), nil
		}),
		"Unauthorized": apiAnswer(func(r *http.Request) (*http.Response, error) {
			return answer(401, fmt.Sprintf(`{"message":%s}`, echo(r))), nil
		}),
		"Redirect": apiAnswer(func(r *http.Request) (*http.Response, error) {
			return answer(302, "", "Location", "https://"+r.Header.Get("Authorization")+"@evil.example/"+r.URL.RequestURI()), nil
		}),
		"LinkElsewhere": apiAnswer(func(r *http.Request) (*http.Response, error) {
			return answer(200, `{"value":[],"deltaLink":"https://evil.example`+cursor+`"}`), nil
		}),
		"LinkNotClosed": apiAnswer(func(r *http.Request) (*http.Response, error) {
			return answer(200, `{"value":[],"deltaLink":"`+cursor), nil
		}),
		"LinkOfBadText": apiAnswer(func(r *http.Request) (*http.Response, error) {
			return answer(200, `{"value":[],"deltaLink":"`+cursor+`\x"}`), nil
		}),
		"Garbage": apiAnswer(func(r *http.Request) (*http.Response, error) {
			return answer(200, `{"value":[],"deltaLink":"`+cursor+`"}`+cursor), nil
		}),
		"HTML": apiAnswer(func(r *http.Request) (*http.Response, error) {
			return answer(200, `<html>`+cursor, "Content-Type", "text/html"), nil
		}),
	} {
		t.Run(name, func(t *testing.T) {
			c := newTestClient(t, transport)
			_, getErr := c.Get(t.Context(), "clockings", "7")
			p, err := c.Fetch(t.Context(), cursor)
			if err == nil {
				_, err = p.Next()
			}
			if err == nil || err == io.EOF {
				t.Fatalf("got %v, want an error", err)
			}
			for _, err := range []error{err, getErr} {
				for ; err != nil; err = errors.Unwrap(err) {
					for _, text := range []string{err.Error(), fmt.Sprintf("%+v", err), fmt.Sprintf("%#v", err)} {
						for _, s := range secrets {
							if strings.Contains(text, s) {
								t.Errorf("%q is told by %s", s, text)
							}
						}
					}
				}
			}
		})
	}
}

// Whoever observes is told of every request that went out, and of nothing else.
func TestClient_observe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		statuses := []int{401, 302, 200, 429, 0}
		config := testConfig(answers(func(r *http.Request) (*http.Response, error) {
			if isToken(r) {
				time.Sleep(time.Minute / 4)
				return answer(200, `{"access_token":"x"}`), nil
			}
			time.Sleep(time.Second)
			status := statuses[0]
			statuses = statuses[1:]
			if status == 0 {
				return nil, errors.New("connection reset")
			}
			return answer(status, `{"value":[],"deltaLink":"`+after+`"}`, "Location", after), nil
		}))
		var seen []Exchange
		config.Observe = func(x Exchange) { seen = append(seen, x) }
		c, err := NewClient(config)
		if err != nil {
			t.Fatal(err)
		}
		for len(statuses) > 0 {
			if p, err := c.Fetch(t.Context(), after); err == nil {
				p.Close()
			}
		}
		want := []Exchange{
			{true, 200, 15 * time.Second}, {false, 401, time.Second}, {true, 200, 15 * time.Second}, {false, 302, time.Second},
			{false, 200, time.Second}, {false, 429, time.Second}, {false, 0, time.Second},
		}
		if !slices.Equal(seen, want) {
			t.Errorf("got %v, want %v", seen, want)
		}
		if _, err := c.Fetch(t.Context(), "https://elsewhere.example/"); err == nil || len(seen) != len(want) {
			t.Errorf("%v, and %d requests, want a refusal and no request", err, len(seen)-len(want))
		}
	})
}
