package protime

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

const (
	maxErrorBody = 64 << 10 // bytes read of a body that says what is wrong
	maxText      = 2 << 10  // bytes kept of one text in it
	maxReasons   = 20       // reasons kept
)

// get returns an answer with status 200. The caller closes its body.
func (c *Client) get(ctx context.Context, u *url.URL) (*http.Response, error) {
	resp, err := c.do(ctx, http.MethodGet, u, nil)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		// 204 and its like say nothing about changes, and nothing is not "no changes".
		discard(resp.Body)
		resp.Body.Close()
		return nil, &PageError{Reason: "no page comes with " + status(resp.StatusCode)}
	}
	return resp, nil
}

// do sends a request, follows redirects within the API and returns an answer that is not a refusal: a status below 400, and
// no redirect. The caller closes its body.
func (c *Client) do(ctx context.Context, method string, u *url.URL, body []byte) (*http.Response, error) {
	token, err := c.tokens.get(ctx, "")
	if err != nil {
		return nil, err
	}
	asked := u
	for fresh, hops := false, 0; ; {
		resp, err := c.send(ctx, method, u, body, token)
		if err != nil {
			err = fmt.Errorf("%s %s: %w", strings.ToLower(method), u.Path, heard(err, append(secretsOf(asked, u), token)))
			if method == http.MethodPost {
				err = fmt.Errorf("%w: %w", err, ErrOutcomeUnknown)
			}
			return nil, err
		}
		switch {
		case resp.StatusCode == http.StatusUnauthorized && !fresh:
			discard(resp.Body)
			resp.Body.Close()
			if token, err = c.tokens.get(ctx, token); err != nil {
				return nil, err
			}
			fresh = true
		case redirects(resp):
			resp.Body.Close()
			hops++
			if u, err = c.redirect(method, resp, hops); err != nil {
				return nil, err
			}
		case resp.StatusCode >= 400:
			err := apiError(resp, method, asked, u, token)
			resp.Body.Close()
			if method == http.MethodPost && (resp.StatusCode >= 500 || resp.StatusCode == http.StatusRequestTimeout) {
				return nil, fmt.Errorf("%w: %w", err, ErrOutcomeUnknown)
			}
			return nil, err
		default:
			return resp, nil
		}
	}
}

func redirects(resp *http.Response) bool {
	switch resp.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

// redirect returns where resp sends the request.
func (c *Client) redirect(method string, resp *http.Response, hops int) (*url.URL, error) {
	switch {
	case method == http.MethodPost:
		return nil, fmt.Errorf("create: %w: %w", &LinkError{Reason: "redirect of a POST"}, ErrOutcomeUnknown)
	case hops > maxRedirects:
		return nil, &LinkError{Reason: fmt.Sprintf("more than %d redirects", maxRedirects)}
	}
	return c.base.resolve(resp.Header.Get("Location"))
}

// send sends one request. It goes to the transport directly: http.Client would follow redirects on its own, with the token,
// and write whole URLs into its errors.
func (c *Client) send(ctx context.Context, method string, u *url.URL, body []byte, token string) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	req := (&http.Request{
		Method: method, URL: u, Host: u.Host, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{
			"Accept":        {"application/json"},
			"Authorization": {"Bearer " + token},
			"User-Agent":    {c.userAgent},
		},
	}).WithContext(ctx)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
		req.ContentLength = int64(len(body))
		req.Body = io.NopCloser(bytes.NewReader(body))
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	}
	resp, err := observed(c.transport, req, false, c.observe)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	resp.Body = newStallReader(ctx, cancel, resp.Body, c.stall)
	return resp, nil
}

// observed sends a request, and tells observe of it.
func observed(transport http.RoundTripper, req *http.Request, token bool, observe func(Exchange)) (*http.Response, error) {
	sent := time.Now()
	resp, err := transport.RoundTrip(req)
	x := Exchange{Token: token, Took: time.Since(sent)}
	if err == nil {
		x.Status = resp.StatusCode
	}
	observe(x)
	return resp, err
}

// stallReader ends a body that brings no byte for a while, or in ten times that while next to none.
type stallReader struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	body   io.ReadCloser
	after  time.Duration
	timer  *time.Timer
	bytes  int           // that came, and how long reads have waited for them, since there were drip of them last
	waited time.Duration // never the caller's own time
}

const (
	drip     = 1 << 10 // bytes; a body that brings less is as good as one that brings none
	dripTime = 10      // times the while without a byte, that so many bytes may take
)

func newStallReader(ctx context.Context, cancel context.CancelCauseFunc, body io.ReadCloser, after time.Duration) *stallReader {
	stalled := fmt.Errorf("no byte for %v", after)
	r := &stallReader{ctx: ctx, cancel: cancel, body: body, after: after}
	r.timer = time.AfterFunc(after, func() { cancel(stalled) })
	r.timer.Stop()
	return r
}

func (r *stallReader) Read(b []byte) (int, error) {
	r.timer.Reset(r.after)
	began := time.Now()
	n, err := r.body.Read(b)
	r.timer.Stop()
	r.bytes, r.waited = r.bytes+n, r.waited+time.Since(began)
	switch {
	case r.bytes >= drip:
		r.bytes, r.waited = 0, 0
	case r.waited > dripTime*r.after && err == nil:
		r.cancel(fmt.Errorf("%d bytes in %v", r.bytes, r.waited.Round(time.Second)))
		return n, context.Cause(r.ctx)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		if cause := context.Cause(r.ctx); cause != nil {
			err = cause
		}
	}
	return n, err
}

func (r *stallReader) Close() error {
	r.timer.Stop()
	r.cancel(nil) // first: the transport need not read the rest then
	return r.body.Close()
}

// discard reads a short body to its end, so that the connection can be used again.
func discard(body io.Reader) { _, _ = io.CopyN(io.Discard, body, maxErrorBody) }

// apiError reads what a refusal says. It is lenient: each part that is there and of the documented kind is taken.
func apiError(resp *http.Response, method string, asked, sent *url.URL, token string) *APIError {
	e := &APIError{
		Method: method, Path: sent.Path, Status: resp.StatusCode,
		RequestID: requestID(resp.Header), RetryAfter: retryAfter(resp.Header),
	}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	body = bytes.TrimPrefix(body, []byte(byteOrderMark))

	var parts map[string]json.RawMessage
	if json.Unmarshal(body, &parts) != nil {
		return e
	}
	hide := append(secretsOf(asked, sent), token)
	if v := parts["validationErrors"]; len(v) > 0 && string(v) != "null" {
		e.Validation = clip(redact(plainJSON(v), hide), maxText)
	}
	if inner := parts["error"]; len(inner) > 0 && inner[0] == '{' {
		parts = nil
		_ = json.Unmarshal(inner, &parts) // what is no object has no parts
	}
	text := func(v json.RawMessage) (s string) {
		_ = json.Unmarshal(v, &s) // stays empty if it is no string
		return clip(redact(s, hide), maxText)
	}
	e.Code, e.Message = text(parts["code"]), text(parts["message"])
	var reasons []json.RawMessage
	_ = json.Unmarshal(parts["reasons"], &reasons) // stays empty if it is no array
	for _, r := range reasons {
		if s := text(r); s != "" && len(e.Reasons) < maxReasons {
			e.Reasons = append(e.Reasons, s)
		}
	}
	return e
}

// plainJSON writes v without needless escapes, in which a token could hide.
func plainJSON(v json.RawMessage) string {
	d := json.NewDecoder(bytes.NewReader(v))
	d.UseNumber()
	var x any
	if d.Decode(&x) != nil {
		return ""
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if enc.Encode(x) != nil {
		return ""
	}
	return strings.TrimSpace(b.String())
}

// secretsOf returns what a server might repeat of the tokens in a query.
func secretsOf(urls ...*url.URL) (secrets []string) {
	for _, u := range urls {
		for param := range strings.SplitSeq(u.RawQuery, "&") {
			name, raw, _ := strings.Cut(param, "=")
			if !strings.HasSuffix(strings.ToLower(name), "token") {
				continue
			}
			value, err := url.QueryUnescape(raw)
			if err != nil {
				value = raw
			}
			secrets = append(secrets, raw, value, strings.ReplaceAll(value, "+", " "), url.QueryEscape(value), url.PathEscape(value))
		}
	}
	return secrets
}

// redact takes secrets out of what a server has said.
func redact(text string, secrets []string) string {
	// The longest first: one may hold another.
	secrets = slices.SortedFunc(slices.Values(secrets), func(a, b string) int { return len(b) - len(a) })
	for _, s := range secrets {
		if s != "" {
			text = strings.ReplaceAll(text, s, "[redacted]")
		}
	}
	return text
}

// clip bounds a text that someone else wrote, and takes out what would move a terminal's cursor or begin a line of a log.
func clip(text string, most int) string {
	end := ""
	if len(text) > most {
		text, end = text[:most], "..."
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "")) + end
}

// heard is an error of the transport, which may quote what came instead of an answer: without bounds, and be it our own request.
func heard(err error, hide []string) error {
	text := err.Error()
	if clean := clip(redact(text, hide), maxText); clean != text {
		return errors.New(clean)
	}
	return err
}

// requestID returns the first header by which the API could find the request again. None is documented.
func requestID(h http.Header) string {
	var names []string
	for name := range h {
		if lower := strings.ToLower(name); strings.HasSuffix(lower, "request-id") || strings.HasSuffix(lower, "correlation-id") {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	return clip(h.Get(slices.Min(names)), 128)
}

// retryAfter reads the header's two forms, seconds and a date; 0 if it is absent, past or neither.
func retryAfter(h http.Header) time.Duration {
	v := strings.TrimSpace(h.Get("Retry-After"))
	seconds, err := strconv.ParseUint(v, 10, 64)
	if err == nil || errors.Is(err, strconv.ErrRange) {
		if seconds > math.MaxInt64/uint64(time.Second) {
			return math.MaxInt64
		}
		return time.Duration(seconds) * time.Second
	}
	at, err := http.ParseTime(v)
	if err != nil {
		return 0
	}
	return max(0, time.Until(at))
}
