package protime

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// Errors to look for with errors.Is.
var (
	ErrGone           = errors.New("gone")                                                               // a 410: the delta expired, or another one took its place
	ErrNotFound       = errors.New("not found")                                                          // a 404
	ErrSecret         = errors.New("read client secret")                                                 // the Secret function failed: no request was made
	ErrOutcomeUnknown = errors.New("outcome unknown, list the clockings of that day before another try") // a POST that may or may not have been carried out
)

// APIError is an answer of the API that refuses the request. Everything but Method, Path and Status is there only if
// the API said it: most error bodies are documented, none is required.
type APIError struct {
	Method     string
	Path       string // path of the request; never its query, which may hold a token
	Status     int
	Code       string        // the API's own code, such as "BadRequest"
	Message    string        // the API's own message
	Reasons    []string      // why a filter or a business rule failed
	Validation string        // raw JSON of validationErrors; its items are not documented
	RequestID  string        // for support tickets
	RetryAfter time.Duration // how long the API asked us to stay away, uncapped; 0 if it did not say
}

func (e *APIError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s: %s", strings.ToLower(e.Method), e.Path, status(e.Status))
	said(&b, e.Code, e.Message)
	for _, r := range e.Reasons {
		b.WriteString("; " + r)
	}
	if e.Validation != "" {
		b.WriteString("; validation " + e.Validation)
	}
	if e.RequestID != "" {
		b.WriteString(" (request id " + e.RequestID + ")")
	}
	return b.String()
}

// Is makes errors.Is work with ErrGone and ErrNotFound.
func (e *APIError) Is(target error) bool {
	return target == ErrGone && e.Status == http.StatusGone || target == ErrNotFound && e.Status == http.StatusNotFound
}

// TokenError says that no token could be had.
type TokenError struct {
	Status      int           // of the token endpoint; 0 = it gave no answer, and Err says why
	Code        string        // RFC 6749's error, such as "invalid_client"
	Description string        // the endpoint's own words
	RetryAfter  time.Duration // as in APIError
	Err         error         // the Secret function's, the network's, or what is wrong with a good answer's body; nil if the endpoint refused
}

func (e *TokenError) Error() string {
	var b strings.Builder
	b.WriteString("get token")
	if e.Status != 0 {
		b.WriteString(": " + status(e.Status))
	}
	said(&b, e.Code, e.Description)
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	return b.String()
}

func (e *TokenError) Unwrap() error { return e.Err }

// PageError says that the body of a good answer cannot be trusted: cut short, not JSON, without records, without a
// next cursor, or followed by something else.
type PageError struct {
	Reason string
	Err    error // what lies beneath, such as a broken connection or a *LinkError; may be nil
}

func (e *PageError) Error() string {
	if e.Err != nil {
		return "read page: " + e.Reason + ": " + e.Err.Error()
	}
	return "read page: " + e.Reason
}

func (e *PageError) Unwrap() error { return e.Err }

// LinkError refuses a link or a redirect that leads away from the API, where no token may go.
type LinkError struct {
	Reason string // never holds more of the link than its host
}

func (e *LinkError) Error() string { return "refuse link: " + e.Reason }

func status(code int) string {
	if text := http.StatusText(code); text != "" {
		return fmt.Sprintf("%d %s", code, strings.ToLower(text))
	}
	return fmt.Sprint(code)
}

func said(b *strings.Builder, words ...string) {
	for _, w := range words {
		if w != "" {
			b.WriteString(": " + w)
		}
	}
}
