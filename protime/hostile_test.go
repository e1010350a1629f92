package protime

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// endless is a body without an end: before, and then part for ever. It fails the test once it was asked for more than most bytes.
type endless struct {
	t            testing.TB
	before, part string
	most         int
	read         int
}

func (e *endless) Read(b []byte) (n int, err error) {
	if e.read > e.most {
		e.t.Errorf("still read after %d bytes", e.read)
		return 0, io.ErrUnexpectedEOF
	}
	for n < len(b) {
		if e.before == "" {
			e.before = e.part
		}
		m := copy(b[n:], e.before)
		e.before = e.before[m:]
		n += m
	}
	e.read += n
	return n, nil
}

func (e *endless) Close() error { return nil }

func endlessly(t testing.TB, status int, before, part string, most int) *http.Response {
	resp := answer(status, "")
	resp.Body = &endless{t: t, before: before, part: part, most: most}
	return resp
}

// TestHostile_EndlessBodies: whatever has no end, be it an answer, a refusal or a token, ends in an error after a bounded part of it.
func TestHostile_EndlessBodies(t *testing.T) {
	const few = 2 << 20
	kilo := strings.Repeat("x", 1<<10)
	for name, test := range map[string]struct {
		token func() *http.Response // nil = a good one
		api   func() *http.Response
		want  string
	}{
		"Token":        {func() *http.Response { return endlessly(t, 200, `{"access_token":"`, kilo, few) }, nil, "get token: 200 ok: the answer holds no token"},
		"TokenRefusal": {func() *http.Response { return endlessly(t, 400, `{"error":"`, kilo, few) }, nil, "get token: 400 bad request"},
		"TokenSpace":   {func() *http.Response { return endlessly(t, 200, "", " ", few) }, nil, "get token: 200 ok: the answer holds no token"},
		"TokenNested":  {func() *http.Response { return endlessly(t, 200, "", `{"x":[`, few) }, nil, "get token: 200 ok: the answer holds no token"},
		"Refusal":      {nil, func() *http.Response { return endlessly(t, 500, `{"message":"`, kilo, few) }, ": 500 internal server error"},
		"Unauthorized": {nil, func() *http.Response { return endlessly(t, 401, "", kilo, few) }, ": 401 unauthorized"},
		"NoContent":    {nil, func() *http.Response { return endlessly(t, 204, "", kilo, few) }, "no page comes with 204 no content"},
		"Redirect": {nil, func() *http.Response {
			resp := endlessly(t, 307, "", kilo, few)
			resp.Header.Set("Location", after)
			return resp
		}, "more than 5 redirects"},
		"ItemOfOneText":     {nil, func() *http.Response { return endlessly(t, 200, `{"value":["`, kilo, 2*MaxItem) }, "an item of more than 67108864 bytes"},
		"ItemOfManyMembers": {nil, func() *http.Response { return endlessly(t, 200, `{"value":[{`, `"`+kilo[:100]+`":1,`, 2*MaxItem) }, "an item of more than 67108864 bytes"},
		"Space":             {nil, func() *http.Response { return endlessly(t, 200, "", " ", 2*MaxItem) }, "an item of more than 67108864 bytes"},
		"Name":              {nil, func() *http.Response { return endlessly(t, 200, `{"`, kilo, 2*MaxItem) }, "an item of more than 67108864 bytes"},
		"Link":              {nil, func() *http.Response { return endlessly(t, 200, `{"value":[],"deltaLink":"`, kilo, 2*MaxItem) }, "an item of more than 67108864 bytes"},
		"Number":            {nil, func() *http.Response { return endlessly(t, 200, `{"value":[1`, "0", 2*MaxItem) }, "an item of more than 67108864 bytes"},
		"BehindTheEnd": {nil, func() *http.Response {
			return endlessly(t, 200, `{"value":[],"deltaLink":"`+after+`"}`, " ", 2*MaxItem)
		}, "something follows the end"},
		"Nested":       {nil, func() *http.Response { return endlessly(t, 200, `{"value":[`, `[`, few) }, "not well formed"},
		"NestedBeside": {nil, func() *http.Response { return endlessly(t, 200, `{"x":`, `{"x":`, few) }, "not well formed"},
		"NotJSON":      {nil, func() *http.Response { return endlessly(t, 200, "", "<html>", few) }, "not a JSON object"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newTestClient(t, answers(func(r *http.Request) (*http.Response, error) {
				switch {
				case !isToken(r):
					return test.api(), nil
				case test.token != nil:
					return test.token(), nil
				}
				return answer(200, `{"access_token":"x"}`), nil
			}))
			p, err := c.Fetch(t.Context(), after)
			for err == nil {
				_, err = p.Next()
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %s", err, test.want)
			}
		})
	}
}

// TestHostile_Gzip: a small answer that unpacks to a large one costs no more memory than a large one, whatever it is taken for.
func TestHostile_Gzip(t *testing.T) {
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := io.Copy(z, &repeat{before: `{"junk":["`, part: strings.Repeat("x", 1<<10) + `","`, times: 60 << 10, after: `"],"value":[],"deltaLink":"` + after + `"}`}); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	status := 200
	c, _ := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Accept-Encoding") != "gzip" {
			t.Errorf("the client takes %q", r.Header.Get("Accept-Encoding"))
		}
		w.Header().Set("Content-Encoding", "gzip")
		w.WriteHeader(status)
		w.Write(packed.Bytes())
	})
	var before, now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for _, status = range []int{200, 400} {
		p, err := c.Fetch(t.Context(), after)
		for err == nil {
			_, err = p.Next()
		}
		var refused *APIError
		if status == 200 && err != io.EOF || status != 200 && !errors.As(err, &refused) {
			t.Errorf("status %d: got %v", status, err)
		}
		runtime.ReadMemStats(&now)
		if grown := int64(now.HeapSys) - int64(before.HeapSys); grown > 32<<20 {
			t.Errorf("status %d: %d bytes unpack to 60 MiB, and the heap grew by %d", status, packed.Len(), grown)
		}
	}
}

// TestHostile_Headers: a header without an end ends in an error, as do interim answers without one.
func TestHostile_Headers(t *testing.T) {
	for name, answer := range map[string]string{
		"LargeHeader":    "HTTP/1.1 200 OK\r\nX-Bomb: " + strings.Repeat("x", 2<<20) + "\r\nContent-Length: 20\r\n\r\n" + `{"access_token":"x"}`,
		"EndlessHeaders": "HTTP/1.1 200 OK\r\n" + strings.Repeat("X-Bomb: x\r\n", 1<<17),
		"EndlessInterim": strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", 1<<15),
		"EndlessStatus":  "HTTP/1.1 200 " + strings.Repeat("x", 1<<21),
		"NoHTTP":         strings.Repeat("\x00", 1<<20),
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			done := make(chan struct{})
			go func() {
				defer close(done)
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					if _, err := http.ReadRequest(bufio.NewReader(conn)); err != nil {
						t.Error(err)
					}
					io.WriteString(conn, answer)
					conn.Close()
				}
			}()
			defer func() { l.Close(); <-done }()
			config := testConfig(newTransport())
			config.APIURL, config.AuthURL = "http://"+l.Addr().String(), "http://"+l.Addr().String()
			c, err := NewClient(config)
			if err != nil {
				t.Fatal(err)
			}
			defer c.CloseIdleConnections()
			var bad *TokenError
			if err := c.CheckToken(t.Context()); !errors.As(err, &bad) || bad.Err == nil || len(err.Error()) > 2*maxText {
				t.Errorf("got %.1000v, want a TokenError", err)
			}
		})
	}
}

// TestHostile_TokenDrips: a token answer that comes byte by byte is waited for no longer than one that does not come.
func TestHostile_TokenDrips(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestClient(t, answers(func(r *http.Request) (*http.Response, error) {
			resp := answer(200, "")
			resp.Body = io.NopCloser(readFunc(func(b []byte) (int, error) {
				select {
				case <-time.After(time.Second):
					return copy(b, " "), nil
				case <-r.Context().Done():
					return 0, r.Context().Err()
				}
			}))
			return resp, nil
		}))
		began := time.Now()
		var bad *TokenError
		if err := c.CheckToken(context.Background()); !errors.As(err, &bad) || time.Since(began) != tokenTimeout {
			t.Errorf("got %v after %v, want a TokenError after %v", err, time.Since(began), tokenTimeout)
		}
	})
}

// TestHostile_Items: what no record should look like is still read, in a bounded time, and what follows it too.
func TestHostile_Items(t *testing.T) {
	deep := strings.Repeat(`{"a":[`, 4000) + strings.Repeat(`]}`, 4000)
	wide := `{` + strings.Repeat(`"id":1,`, 200_000) + `"id":2}`
	long := `"` + strings.Repeat(`\ud83d\ude00`, 100_000) + `"`
	number := "-" + strings.Repeat("9", 1_000_000) + "e-99999999999999999999"
	for name, test := range map[string]struct{ data, id string }{
		"Deep":     {`{"x":` + deep + `,"id":1}`, "1"},
		"Wide":     {wide, "2"},
		"LongText": {`{"id":` + long + `}`, strings.Repeat("😀", 100_000)},
		"Number":   {`{"id":` + number + `}`, number},
	} {
		t.Run(name, func(t *testing.T) {
			body := fmt.Sprintf(`{"value":[{"changeType":"InsertOrUpdate","data":%s},{"changeType":"Delete","data":{"id":7}}],"deltaLink":%q}`, test.data, after)
			began := time.Now()
			got, p, err := readPage(strings.NewReader(body), true)
			if err != io.EOF || len(got) != 2 || got[0].ID != test.id || string(got[0].Data) != test.data || got[1].ID != "7" || p.DeltaLink() == "" {
				t.Errorf("got %d changes and %v, want 2 and a link", len(got), err)
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}
