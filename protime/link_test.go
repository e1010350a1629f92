package protime

import (
	"bufio"
	"bytes"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strings"
	"testing"
)

var acme = base{scheme: "https", host: "acme.myprotime.eu"}

func TestBase_resolve(t *testing.T) {
	const root = "https://acme.myprotime.eu/connector/protimeapi/api/v1/"
	for name, test := range map[string]struct{ link, want string }{
		"Tutorial":          {"/connector/protimeapi/api/v1/clockings?filter=date ge '2026-01-01'&delta", root + "clockings?filter=date%20ge%20'2026-01-01'&delta"},
		"DeltaLink":         {"/connector/protimeapi/api/v1/delta/clockings?deltaToken=eyJ+a/b==", root + "delta/clockings?deltaToken=eyJ%2Ba/b=="},
		"NextLink":          {"/connector/protimeapi/api/v1/clockings?filter=date ge '2026-01-01'&continuationToken=e+/=&deltaToken=f+", root + "clockings?filter=date%20ge%20'2026-01-01'&continuationToken=e%2B/=&deltaToken=f%2B"},
		"EscapedAlready":    {"/connector/protimeapi/api/v1/clockings?filter=date%20ge%20%272026%27&deltaToken=a%2Bb%3D", root + "clockings?filter=date%20ge%20%272026%27&deltaToken=a%2Bb%3D"},
		"PlusForSpace":      {"/connector/protimeapi/api/v1/clockings?filter=date+ge+'2026'&deltaToken=a+b", root + "clockings?filter=date+ge+'2026'&deltaToken=a%2Bb"},
		"PlusInPlainFilter": {"/connector/protimeapi/api/v1/clockings?filter=name eq 'a+b'", root + "clockings?filter=name%20eq%20'a%2Bb'"},
		"PercentAlone":      {"/connector/protimeapi/api/v1/clockings?filter=a%zz%4&x=%", root + "clockings?filter=a%25zz%254&x=%25"},
		"IllegalBytes":      {"/connector/protimeapi/api/v1/clockings?x=\"<>[\\]^`{|}\x00\r\n\x7fé\xff#;", root + "clockings?x=%22%3C%3E%5B%5C%5D%5E%60%7B%7C%7D%00%0D%0A%7F%C3%A9%FF%23%3B"},
		"LegalBytes":        {"/connector/protimeapi/api/v1/clockings?x=-._~!$'()*,:@/?=", root + "clockings?x=-._~!$'()*,:@/?="},
		"NoQuery":           {"/connector/protimeapi/api/v1/clockings", root + "clockings"},
		"EmptyQuery":        {"/connector/protimeapi/api/v1/clockings?", root + "clockings?"},
		"Absolute":          {root + "clockings?delta", root + "clockings?delta"},
		"AbsoluteUpperCase": {"HTTPS://ACME.myprotime.EU:443/connector/protimeapi/api/v1/clockings", root + "clockings"},
	} {
		t.Run(name, func(t *testing.T) {
			u, err := acme.resolve(test.link)
			if err != nil {
				t.Fatal(err)
			}
			if got := u.String(); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
	t.Run("PrefixAdded", func(t *testing.T) {
		b := base{scheme: "http", host: "127.0.0.1:8090", prefix: "/sim"}
		for _, link := range []string{"/connector/protimeapi/api/v1/x?delta", "/sim/connector/protimeapi/api/v1/x?delta", "http://127.0.0.1:8090/sim/connector/protimeapi/api/v1/x?delta"} {
			u, err := b.resolve(link)
			if want := "http://127.0.0.1:8090/sim/connector/protimeapi/api/v1/x?delta"; err != nil || u.String() != want {
				t.Errorf("%s: got %v, error %v, want %s", link, u, err, want)
			}
		}
	})
}

func TestBase_resolve_refuses(t *testing.T) {
	const secret = "eyJzZWNyZXQi"
	for name, link := range map[string]string{
		"Empty":               "",
		"OtherHost":           "https://evil.example/connector/protimeapi/api/v1/clockings?deltaToken=" + secret,
		"OtherTenant":         "https://acme2.myprotime.eu/connector/protimeapi/api/v1/clockings",
		"OtherPort":           "https://acme.myprotime.eu:8443/connector/protimeapi/api/v1/clockings",
		"OtherScheme":         "http://acme.myprotime.eu/connector/protimeapi/api/v1/clockings",
		"HostContinued":       "https://acme.myprotime.eu.evil.example/connector/protimeapi/api/v1/clockings",
		"HostAsUser":          "https://acme.myprotime.eu@evil.example/connector/protimeapi/api/v1/clockings",
		"User":                "https://user:" + secret + "@acme.myprotime.eu/connector/protimeapi/api/v1/clockings",
		"NoHost":              "https:///connector/protimeapi/api/v1/clockings",
		"SchemeRelative":      "//evil.example/connector/protimeapi/api/v1/clockings",
		"SchemeRelativeSame":  "//acme.myprotime.eu/connector/protimeapi/api/v1/clockings",
		"BackslashHost":       "/\\evil.example/connector/protimeapi/api/v1/clockings",
		"BackslashAfterHost":  "https://acme.myprotime.eu\\@evil.example/connector/protimeapi/api/v1/clockings",
		"OtherPath":           "/connector/other/clockings?deltaToken=" + secret,
		"RootItself":          "/connector/protimeapi/api/v1/",
		"RootWithoutSlash":    "/connector/protimeapi/api/v1",
		"PathContinued":       "/connector/protimeapi/api/v11/clockings",
		"Dots":                "/connector/protimeapi/api/v1/../../../admin",
		"DotsAtTheEnd":        "/connector/protimeapi/api/v1/clockings/..",
		"OneDot":              "/connector/protimeapi/api/v1/./clockings",
		"EscapedDots":         "/connector/protimeapi/api/v1/%2e%2e/admin",
		"EscapedSlash":        "/connector/protimeapi/api/v1/..%2f..%2fadmin",
		"BackslashDots":       "/connector/protimeapi/api/v1/..\\..\\admin",
		"EmptySegment":        "/connector/protimeapi/api/v1//evil.example",
		"SpaceInPath":         "/connector/protimeapi/api/v1/cloc kings",
		"NewlineInPath":       "/connector/protimeapi/api/v1/x HTTP/1.1\r\nHost: evil.example",
		"FragmentInPath":      "/connector/protimeapi/api/v1/clockings#?deltaToken=" + secret,
		"SpaceInFront":        " /connector/protimeapi/api/v1/clockings",
		"RelativeToDirectory": "clockings?deltaToken=" + secret,
		"QueryOnly":           "?deltaToken=" + secret,
		"TokenOnly":           secret,
		"JavaScript":          "javascript:alert(1)",
		"File":                "file:///etc/passwd",
		"SchemeInQuery":       "x?y=https://acme.myprotime.eu/connector/protimeapi/api/v1/clockings",
	} {
		t.Run(name, func(t *testing.T) {
			u, err := acme.resolve(link)
			var bad *LinkError
			if !errors.As(err, &bad) {
				t.Fatalf("got %v, error %v, want a LinkError", u, err)
			}
			if strings.Contains(err.Error(), secret) {
				t.Errorf("the error tells the token: %v", err)
			}
		})
	}
}

// What a server reads of a link is what the link says: see the rules in link.go.
func TestBase_resolve_asAServerReadsIt(t *testing.T) {
	var got url.Values
	var bad error
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got, bad = url.ParseQuery(r.URL.RawQuery)
	}))
	defer server.Close()
	b := base{scheme: "http", host: strings.TrimPrefix(server.URL, "http://")}
	for link, want := range map[string]url.Values{
		"filter=date ge '2026-01-01'&delta":                               {"filter": {"date ge '2026-01-01'"}, "delta": {""}},
		"filter=date ge '2026-01-01'&continuationToken=e+J/2==":           {"filter": {"date ge '2026-01-01'"}, "continuationToken": {"e+J/2=="}},
		"filter=date%20ge%20%272026%27&deltaToken=e%2BJ%2F2%3D":           {"filter": {"date ge '2026'"}, "deltaToken": {"e+J/2="}},
		"filter=date+ge+'2026'&deltaToken=++==":                           {"filter": {"date ge '2026'"}, "deltaToken": {"++=="}},
		"delta&externalReferences=(people,@badge-number)(terminals,@ext)": {"delta": {""}, "externalReferences": {"(people,@badge-number)(terminals,@ext)"}},
		"filter=name eq 'a+b;c#d' or x in (1, 2)":                         {"filter": {"name eq 'a+b;c#d' or x in (1, 2)"}},
	} {
		u, err := b.resolve(apiPath + "clockings?" + link)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.Get(u.String())
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if bad != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %q, error %v, want %q", link, got, bad, want)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestParseBase(t *testing.T) {
	for name, raw := range map[string]string{
		"NoScheme":      "acme.myprotime.eu",
		"OtherScheme":   "ftp://acme.myprotime.eu",
		"NoHost":        "https://",
		"PortOnly":      "https://:443",
		"User":          "https://u:hunter2@acme.myprotime.eu",
		"Query":         "https://acme.myprotime.eu?x",
		"Fragment":      "https://acme.myprotime.eu#x",
		"Space":         "https://acme.myprotime.eu/a b",
		"Dots":          "https://acme.myprotime.eu/../x",
		"APIPath":       "https://acme.myprotime.eu/connector/protimeapi/api/v1/",
		"BadPercent":    "https://u:hunter2@acme%zz",
		"BadPortNumber": "https://acme:hunter2",
	} {
		t.Run(name, func(t *testing.T) {
			if b, err := parseBase(raw); err == nil || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("got %v, error %v, want an error without the password", b, err)
			}
		})
	}
}

// says reads a link's query by the rules of link.go, in another way than the code does.
func says(query string) url.Values {
	values := url.Values{}
	for param := range strings.SplitSeq(query, "&") {
		if param == "" {
			continue
		}
		plain := false // as far as + goes
		for _, c := range []byte(param) {
			plain = plain || c <= ' ' || c > '~' || strings.IndexByte("\"#<>[\\]^`{|}", c) >= 0
		}
		name, value, _ := strings.Cut(param, "=")
		plain = plain || strings.HasSuffix(strings.ToLower(name), "token")
		decode := func(s string) string {
			var b []byte
			for len(s) > 0 {
				n := 1
				switch {
				case s[0] == '+' && !plain:
					b = append(b, ' ')
				case len(s) >= 3 && s[0] == '%':
					if c, err := url.PathUnescape(s[:3]); err == nil {
						b, n = append(b, c...), 3
						break
					}
					fallthrough
				default:
					b = append(b, s[0])
				}
				s = s[n:]
			}
			return string(b)
		}
		values.Add(decode(name), decode(value))
	}
	return values
}

// received sends a request for u through the bytes of a connection.
func received(t *testing.T, u *url.URL) *http.Request {
	var wire bytes.Buffer
	req := &http.Request{Method: "GET", URL: u, Host: u.Host, Header: http.Header{}}
	if err := req.Write(&wire); err != nil {
		t.Fatalf("write %q: %v", u, err)
	}
	got, err := http.ReadRequest(bufio.NewReader(&wire))
	if err != nil {
		t.Fatalf("read %q: %v", u, err)
	}
	return got
}

func FuzzLink(f *testing.F) {
	for _, link := range []string{
		next, after,
		"/connector/protimeapi/api/v1/clockings?filter=date ge '2026-01-01'&delta",
		"/connector/protimeapi/api/v1/delta/clockings?deltaToken=eyJEZWx0YUlkIjo0LCJTdGFydGluZ0N1cnNvciI6MH0=",
		"/connector/protimeapi/api/v1/clockings?filter=...&continuationToken=...",
		"/connector/protimeapi/api/v1/clockings?filter=date+ge+%272026%27&externalReferences=(people,@badge-number)(terminals,@external-code)",
		"https://acme.myprotime.eu/connector/protimeapi/api/v1/clockings?a;b=#%zz%4&&=&%",
		"HTTPS://ACME.MYPROTIME.EU:443/connector/protimeapi/api/v1/a?",
		"https://acme.myprotime.eu@evil.example/connector/protimeapi/api/v1/",
		"//evil.example/connector/protimeapi/api/v1/x", "/connector/protimeapi/api/v1/%2e%2e/x", "kind eq 'Activity' or person in circle(2, 8)",
	} {
		f.Add(link)
	}
	f.Fuzz(func(t *testing.T, link string) {
		if u, err := acme.resolve(link); err == nil {
			got := received(t, u)
			path, query, _ := strings.Cut(link, "?")
			if u.Scheme != acme.scheme || got.Host != acme.host || !strings.HasSuffix(path, got.URL.Path) || !strings.HasPrefix(got.URL.Path, apiPath) || got.URL.RawPath != "" {
				t.Errorf("%q leads to %q at %q", link, got.URL, got.Host)
			}
			values, err := url.ParseQuery(got.URL.RawQuery)
			if want := says(query); err != nil || !reflect.DeepEqual(values, want) {
				t.Errorf("%q: got %q, error %v, want %q", link, values, err, want)
			}
			again, err := acme.resolve(u.String())
			if err != nil || *again != *u {
				t.Errorf("%q: resolved twice gives %q, once %q", link, again, u)
			}
		} else if bad := (*LinkError)(nil); !errors.As(err, &bad) {
			t.Errorf("%q: got %v, want a LinkError", link, err)
		}
		// The same text as a filter: it arrives as it is.
		u, err := acme.resolve((&Client{base: acme}).DeltaStart("clockings", link))
		if err != nil {
			t.Fatal(err)
		}
		want := url.Values{"filter": {link}, "delta": {""}}
		if link == "" {
			delete(want, "filter")
		}
		if got, err := url.ParseQuery(received(t, u).URL.RawQuery); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("filter %q: got %q, error %v", link, got, err)
		}
	})
}
