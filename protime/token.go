package protime

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"sync"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
)

const (
	tokenTimeout = 30 * time.Second // for the whole exchange with the token endpoint, a kilobyte or two
	maxToken     = 64 << 10         // bytes of a token; no server takes such a header
	tokenMargin  = time.Minute      // a token this close to its end is not used any more; a fifth of its life if that is less
)

// tokenForm is what can be sent in a header (RFC 6750, section 2.1, and more).
var tokenForm = regexp.MustCompile(`^[!-~]+$`)

// tokens keeps one access token. One request for a token is under way at a time; those who wait for it do so as long as
// their own context lasts, and share its failure.
type tokens struct {
	config    clientcredentials.Config // but for the secret
	secret    func() (string, error)
	userAgent string
	transport http.RoundTripper
	observe   func(Exchange)

	turn chan struct{} // holds one element while someone asks for a token

	mu     sync.Mutex
	token  string    // "" = none
	until  time.Time // when it is too old; zero = never
	failed *TokenError
	tries  uint64 // requests that have ended and say something about the endpoint
}

// get returns a token other than stale, which the API has refused; "" = any.
func (t *tokens) get(ctx context.Context, stale string) (string, error) {
	token, tries, _ := t.current(stale)
	if token != "" {
		return token, nil
	}
	select {
	case t.turn <- struct{}{}:
		defer func() { <-t.turn }()
	case <-ctx.Done():
		return "", &TokenError{Err: ctx.Err()}
	}
	token, now, failed := t.current(stale)
	switch {
	case token != "":
		return token, nil
	case now != tries && failed != nil:
		return "", failed // of a request that was under way while this one waited
	}
	token, until, failed := t.fetch(ctx)
	t.mu.Lock()
	defer t.mu.Unlock()
	if failed != nil {
		if ctx.Err() == nil { // else it is this caller that gave up, and tells the others nothing
			t.tries, t.failed = t.tries+1, failed
		}
		return "", failed
	}
	t.tries, t.failed = t.tries+1, nil
	t.token, t.until = token, until
	return token, nil
}

// current returns the token kept if it is good and not stale.
func (t *tokens) current(stale string) (token string, tries uint64, failed *TokenError) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.token != stale && (t.until.IsZero() || time.Now().Before(t.until)) {
		token = t.token
	}
	return token, t.tries, t.failed
}

// fetch asks the token endpoint.
func (t *tokens) fetch(ctx context.Context) (token string, until time.Time, _ *TokenError) {
	config := t.config
	secret, err := t.secret()
	if err != nil {
		return "", time.Time{}, &TokenError{Err: fmt.Errorf("%w: %w", ErrSecret, err)}
	}
	config.ClientSecret = secret

	ctx, cancel := context.WithTimeoutCause(ctx, tokenTimeout, fmt.Errorf("no answer within %v", tokenTimeout))
	defer cancel()
	seen := &tokenTransport{next: t.transport, userAgent: t.userAgent, observe: t.observe}
	asked := time.Now()
	got, err := config.Token(context.WithValue(ctx, oauth2.HTTPClient, &http.Client{
		Transport: seen,
	}))
	if err == nil && (len(got.AccessToken) > maxToken || !tokenForm.MatchString(got.AccessToken)) {
		err = errors.New("unusable token") // tokenError says what there is to say
	}
	if err != nil {
		return "", time.Time{}, tokenError(context.Cause(ctx), err, seen, secret)
	}
	if !got.Expiry.IsZero() {
		life := got.Expiry.Sub(asked)
		until = asked.Add(life - min(tokenMargin, life/5))
	}
	return got.AccessToken, until, nil
}

// tokenError keeps of err what may be shown: x/oauth2 puts the whole body into the text, and net/http the whole URL.
func tokenError(cause, err error, seen *tokenTransport, secret string) *TokenError {
	e := &TokenError{Status: seen.status, RetryAfter: seen.retryAfter}
	var refused *oauth2.RetrieveError
	var inURL *url.Error
	hide := []string{secret, url.QueryEscape(secret), url.PathEscape(secret)}
	switch {
	case errors.As(err, &refused):
		e.Code, e.Description = clip(redact(refused.ErrorCode, hide), maxText), clip(redact(refused.ErrorDescription, hide), maxText)
	case cause != nil:
		e.Err = cause
	case errors.As(err, &inURL):
		e.Err = heard(inURL.Err, hide)
	case seen.status != 0:
		e.Err = errors.New("the answer holds no token")
	default:
		e.Err = errors.New("no answer")
	}
	return e
}

// tokenTransport adds the User-Agent, follows no redirect, and notes what x/oauth2 does not report of every failure.
type tokenTransport struct {
	next       http.RoundTripper
	userAgent  string
	observe    func(Exchange)
	status     int
	retryAfter time.Duration
}

func (t *tokenTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.Header.Set("User-Agent", t.userAgent)
	req.Header.Set("Accept", "application/json")
	resp, err := observed(t.next, req, true, t.observe)
	if err != nil {
		return nil, err
	}
	t.status, t.retryAfter = resp.StatusCode, retryAfter(resp.Header)
	if redirects(resp) {
		resp.Body.Close()
		return nil, &LinkError{Reason: "the token endpoint redirects"} // the client secret goes nowhere else
	}
	return resp, nil
}
