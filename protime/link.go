package protime

import (
	"fmt"
	"net/url"
	"strings"
)

// apiPath is where the API lives on its host. Links of the API begin with it.
const apiPath = "/connector/protimeapi/api/v1/"

// The API writes links as plain text: host-relative, with raw spaces and quotes, and with the + / = of base64. Sent as they
// are, the spaces break the request line; decoded and encoded again, tokens change. So a link is passed on byte for byte, but
// for these rules, after which every server that decodes a query the usual way reads what the link says:
//
//   - A byte that no URI may hold there is written as %XX: spaces, controls, " < > [ \ ] ^ ` { | }, what is not ASCII, and # (a
//     link has no fragment). So is a semicolon, which some servers, Go's among them, take for a separator.
//   - % and two hexadecimal digits are an escape already and stay. Any other % is written as %25.
//   - + is a space in a query, but a plus in base64, and the API may have written either. In a parameter whose name ends with
//     token (continuationToken, deltaToken) it is base64 and goes out as %2B. In another parameter it does so if that one also
//     holds a byte that had to be escaped by the first rule, such as a raw space: then the API has not encoded it, and a
//     plus is meant. Otherwise it is left alone.
//
// What a link says, then: its parameters are split at &, their values decoded by the rules above.

// base is where the API is reached.
type base struct {
	scheme, host string // as configured
	prefix       string // "" or a path such as "/sim", without a slash at its end
}

func parseBase(raw string) (base, error) {
	u, err := url.Parse(raw)
	switch {
	case err != nil:
		return base{}, fmt.Errorf("not a URL") // the parser's own words would repeat a password in it
	case u.Scheme != "https" && u.Scheme != "http":
		return base{}, fmt.Errorf("scheme is not https or http")
	case u.Hostname() == "":
		return base{}, fmt.Errorf("no host")
	case u.User != nil || strings.ContainsAny(raw, "?#"):
		return base{}, fmt.Errorf("more than scheme, host and path")
	}
	b := base{scheme: u.Scheme, host: u.Host, prefix: strings.TrimRight(u.EscapedPath(), "/")}
	if b.prefix != "" && !plainPath(b.prefix) {
		return base{}, fmt.Errorf("path holds more than letters, digits and -._~")
	}
	if strings.Contains(b.prefix+"/", apiPath) {
		return base{}, fmt.Errorf("leave out %s", apiPath)
	}
	return b, nil
}

// url returns the URL of a path under the API, such as "clockings".
func (b base) url(path string) string { return b.scheme + "://" + b.host + b.prefix + apiPath + path }

// resolve turns a link of the API into the URL to request. It refuses, as *LinkError, links that are neither
// host-relative nor of the API's scheme and host, and those that do not lead under its path. A link that lacks the
// configured prefix, because a proxy added it, gets it.
func (b base) resolve(link string) (*url.URL, error) {
	rest := link
	if !strings.HasPrefix(link, "/") {
		scheme, after, ok := strings.Cut(link, "://")
		if !ok || strings.ContainsAny(scheme, "/?#") {
			return nil, &LinkError{Reason: "neither host-relative nor absolute"}
		}
		end := strings.IndexAny(after, "/?#\\")
		if end < 0 {
			end = len(after)
		}
		host := after[:end]
		if !strings.EqualFold(scheme, b.scheme) || !sameHost(b.scheme, host, b.host) {
			return nil, &LinkError{Reason: fmt.Sprintf("leads to host %q, not %q", shownHost(host), b.host)}
		}
		rest = after[end:]
	}
	path, query, asked := strings.Cut(rest, "?")
	if !plainPath(path) {
		return nil, &LinkError{Reason: "unusual path"}
	}
	under, ok := strings.CutPrefix(path, b.prefix+apiPath)
	if !ok {
		under, ok = strings.CutPrefix(path, apiPath)
	}
	if !ok || under == "" {
		return nil, &LinkError{Reason: "leads outside " + b.prefix + apiPath}
	}
	return &url.URL{
		Scheme:     b.scheme,
		Host:       b.host,
		Path:       b.prefix + apiPath + under,
		RawQuery:   wireQuery(query),
		ForceQuery: asked && query == "",
	}, nil
}

// sameHost compares hosts with optional ports.
func sameHost(scheme, a, b string) bool {
	port := ":443"
	if scheme == "http" {
		port = ":80"
	}
	return strings.EqualFold(strings.TrimSuffix(a, port), strings.TrimSuffix(b, port))
}

// shownHost is what an error may say of a host: no user, no password, and nothing that is longer than a host.
func shownHost(host string) string {
	host = host[strings.LastIndexByte(host, '@')+1:]
	return clip(host, 80)
}

// plainPath says whether path has no bytes but those that mean the same to every server, encoded or not, and no empty, "." or
// ".." segment except a trailing slash. All paths of the API are of this kind.
func plainPath(path string) bool {
	if !strings.HasPrefix(path, "/") {
		return false
	}
	for i := range len(path) {
		if c := path[i]; c != '/' && !unreserved(c) {
			return false
		}
	}
	segments := strings.Split(path[1:], "/")
	for i, s := range segments {
		if s == "." || s == ".." || s == "" && i < len(segments)-1 {
			return false
		}
	}
	return true
}

// wireQuery writes the query of a link for the request line, by the rules at the top of this file.
func wireQuery(query string) string {
	var b strings.Builder
	b.Grow(len(query) + 32)
	for i, param := range strings.Split(query, "&") {
		if i > 0 {
			b.WriteByte('&')
		}
		name, _, _ := strings.Cut(param, "=")
		plain := strings.HasSuffix(strings.ToLower(name), "token") || raw(param)
		for j := range len(param) {
			c := param[j]
			switch {
			case c == '%' && escaped(param[j:]), c == '+' && !plain, c != '+' && c != '%' && c != ';' && legalInQuery(c):
				b.WriteByte(c)
			default:
				b.WriteString(hexEscape(c))
			}
		}
	}
	return b.String()
}

// raw says whether param holds a byte that has to be escaped, so that the API cannot have encoded it.
func raw(param string) bool {
	for i := range len(param) {
		if c := param[i]; !legalInQuery(c) && c != ';' {
			return true
		}
	}
	return false
}

// queryText escapes what would end a parameter or change its value, and leaves the rest, spaces and quotes included, as the
// API's own links have it.
func queryText(value string) string {
	var b strings.Builder
	for i := range len(value) {
		switch c := value[i]; c {
		case '%', '&', '+', '#', ';':
			b.WriteString(hexEscape(c))
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

func hexEscape(c byte) string { return fmt.Sprintf("%%%02X", c) }

func escaped(s string) bool { return len(s) >= 3 && hexDigit(s[1]) && hexDigit(s[2]) }

func hexDigit(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

func unreserved(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || strings.IndexByte("-._~", c) >= 0
}

// legalInQuery says whether RFC 3986 lets c stand in a query as itself; % begins an escape.
func legalInQuery(c byte) bool {
	return unreserved(c) || strings.IndexByte("!$&'()*+,;=:@/?%", c) >= 0
}
