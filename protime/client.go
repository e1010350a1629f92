package protime

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"mime"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
)

// Config says which tenant to talk to, and as whom. NewClient copies it.
type Config struct {
	// Tenant is the customer's subdomain, such as "acme": part of the token endpoint's URL and, unless APIURL is set,
	// the host of the API. Required.
	Tenant string

	// ClientID and Secret are the credentials. Secret is asked for every token, so that a rotated one is picked
	// up. Required.
	ClientID string
	Secret   func() (string, error)

	// Scopes are what the token is for, as sent: see ReadScope and WriteScope. At least one.
	Scopes []string

	// APIURL is the scheme and host of the API, with a path in front of the API's own if something has mounted it there.
	// "" = https://<Tenant>.myprotime.eu.
	APIURL string

	// AuthURL is the same for the token endpoint. "" = https://authentication.myprotime.eu.
	AuthURL string

	// UserAgent tells the vendor who calls: `ServiceName/Version (Company)`. Sent with every request; the API may refuse
	// requests without one. Required.
	UserAgent string

	// Transport carries the requests. nil = one of the client's own, with 10 s to connect, 10 s for TLS, 2 min until
	// the header of an answer, and the proxy that the environment names. No limit on the time for a whole body: a backlog of
	// days comes in one.
	Transport http.RoundTripper

	// StallTimeout ends an answer that brings no byte for so long, or less than a kilobyte in ten times as long. Only the time
	// that a read waits counts. 0 = 1 min.
	StallTimeout time.Duration

	// Observe is told of every request that was sent, by the goroutine that sent it. nil = nobody.
	Observe func(Exchange)
}

// Exchange is a request and what came of it. A body that breaks off behind its header does not show here.
type Exchange struct {
	Token  bool          // it went to the token endpoint
	Status int           // HTTP status of the answer; 0 = none came
	Took   time.Duration // until the header of the answer, or until it was given up
}

const (
	defaultStall = time.Minute
	maxRedirects = 5
	maxEmpty     = 10_000 // pages without a record that List follows in a row; some are normal
)

// Client talks to the API of one tenant. It never tries again by itself, but for one fresh token after a 401, and never
// logs. It is safe for use by several goroutines at once.
type Client struct {
	base      base
	tokens    *tokens
	userAgent string
	transport http.RoundTripper
	stall     time.Duration
	observe   func(Exchange)
}

var (
	tenantForm    = regexp.MustCompile(`^[0-9A-Za-z]([0-9A-Za-z-]{0,61}[0-9A-Za-z])?$`)
	scopeForm     = regexp.MustCompile(`^[!#-\[\]-~]+$`) // RFC 6749, section 3.3
	userAgentForm = regexp.MustCompile(`^[!-~]+/[!-~]+ \([ -~]+\)$`)
)

// NewClient checks config, naming the field that is wrong, and makes no request.
func NewClient(config Config) (*Client, error) {
	wrong := func(field, why string) (*Client, error) {
		return nil, fmt.Errorf("new client: %s: %s", field, why)
	}
	switch {
	case !tenantForm.MatchString(config.Tenant):
		return wrong("Tenant", fmt.Sprintf("%q is not the name of a subdomain", config.Tenant))
	case config.ClientID == "":
		return wrong("ClientID", "required")
	case config.Secret == nil:
		return wrong("Secret", "required")
	case len(config.Scopes) == 0:
		return wrong("Scopes", "at least one is required")
	case !userAgentForm.MatchString(config.UserAgent):
		return wrong("UserAgent", fmt.Sprintf("%q is not of the form ServiceName/Version (Company)", config.UserAgent))
	case config.StallTimeout < 0:
		return wrong("StallTimeout", "negative")
	}
	for _, scope := range config.Scopes {
		if !scopeForm.MatchString(scope) {
			return wrong("Scopes", fmt.Sprintf("%q is not one scope", scope))
		}
	}
	if config.APIURL == "" {
		config.APIURL = "https://" + config.Tenant + ".myprotime.eu"
	}
	if config.AuthURL == "" {
		config.AuthURL = "https://authentication.myprotime.eu"
	}
	api, err := parseBase(config.APIURL)
	if err != nil {
		return wrong("APIURL", err.Error())
	}
	auth, err := parseBase(config.AuthURL)
	if err != nil {
		return wrong("AuthURL", err.Error())
	}
	if config.Transport == nil {
		config.Transport = newTransport()
	}
	if config.StallTimeout == 0 {
		config.StallTimeout = defaultStall
	}
	if config.Observe == nil {
		config.Observe = func(Exchange) {}
	}
	return &Client{
		base:      api,
		userAgent: config.UserAgent,
		transport: config.Transport,
		stall:     config.StallTimeout,
		observe:   config.Observe,
		tokens: &tokens{
			config: clientcredentials.Config{
				ClientID:  config.ClientID,
				TokenURL:  auth.scheme + "://" + auth.host + auth.prefix + "/tenants/" + config.Tenant + "/connect/token",
				Scopes:    append([]string(nil), config.Scopes...),
				AuthStyle: oauth2.AuthStyleInParams, // as documented; the default would try HTTP Basic first
			},
			secret:    config.Secret,
			userAgent: config.UserAgent,
			transport: config.Transport,
			observe:   config.Observe,
			turn:      make(chan struct{}, 1),
		},
	}, nil
}

func newTransport() *http.Transport {
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		ForceAttemptHTTP2:      true,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second},
		TLSHandshakeTimeout:    10 * time.Second,
		ResponseHeaderTimeout:  2 * time.Minute,
		IdleConnTimeout:        90 * time.Second,
		MaxIdleConnsPerHost:    8,
		MaxResponseHeaderBytes: 1 << 20,
	}
}

// CloseIdleConnections closes connections that carry no request.
func (c *Client) CloseIdleConnections() {
	if t, ok := c.transport.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
}

// CollectionURL returns the URL of a collection, such as https://acme.myprotime.eu/connector/protimeapi/api/v1/clockings.
func (c *Client) CollectionURL(collection string) string { return c.base.url(collection) }

// DeltaStart returns the cursor that starts a delta of a collection, the records that filter selects ("" = all). Fetching it
// ends every other delta of the collection. Like the API's own links it is host-relative and holds the filter's spaces and
// quotes as they are.
func (c *Client) DeltaStart(collection, filter string) string {
	return listLink(collection, filter, "delta") // not "delta=", which the API does not document
}

func listLink(collection, filter string, flags ...string) string {
	if filter != "" {
		flags = append([]string{"filter=" + queryText(filter)}, flags...)
	}
	link := apiPath + collection
	if len(flags) > 0 {
		link += "?" + strings.Join(flags, "&")
	}
	return link
}

// Fetch requests a cursor: what DeltaStart returns, a nextLink or a deltaLink. The caller reads the page as long as ctx
// lasts, and closes it. A refusal is an *APIError or a *TokenError.
func (c *Client) Fetch(ctx context.Context, cursor string) (*Page, error) {
	return c.fetch(ctx, cursor, false)
}

func (c *Client) fetch(ctx context.Context, cursor string, linkless bool) (*Page, error) {
	u, err := c.base.resolve(cursor)
	if err != nil {
		return nil, err
	}
	resp, err := c.get(ctx, u)
	if err != nil {
		return nil, err
	}
	p := NewPage(resp.Body, strings.HasPrefix(u.Path, c.base.prefix+apiPath+"delta/"))
	p.linkless = linkless
	p.content = contentType(resp)
	p.check = func(link string) error {
		_, err := c.base.resolve(link)
		return err
	}
	return p, nil
}

// List walks one plain listing of a collection, without touching its delta. It ends after the first error, and needs the
// records that filter selects to stay below what the API gives in one listing: a year, where dates are required.
func (c *Client) List(ctx context.Context, collection, filter string) iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) {
		var trail Trail
		empty := 0
		for cursor := listLink(collection, filter); cursor != ""; {
			empty++
			next, err := c.listPage(ctx, cursor, func(change Change) bool {
				empty = 0
				return yield(change, nil)
			})
			switch {
			case errors.Is(err, errStopped):
				return
			case err != nil || next == "":
			case empty == maxEmpty:
				err = &PageError{Reason: fmt.Sprintf("%d pages in a row without a record", maxEmpty), Err: ErrCircle}
			default:
				err = trail.Follow(cursor, next)
			}
			if err != nil {
				yield(Change{}, err)
				return
			}
			cursor = next
		}
	}
}

var errStopped = fmt.Errorf("stopped by the caller")

// listPage calls each for every record of one page and returns where the listing goes on; "" = it has ended.
func (c *Client) listPage(ctx context.Context, cursor string, each func(Change) bool) (next string, err error) {
	p, err := c.fetch(ctx, cursor, true)
	if err != nil {
		return "", err
	}
	defer p.Close()
	for {
		change, err := p.Next()
		switch {
		case errors.Is(err, io.EOF) && p.DeltaLink() != "":
			return "", &PageError{Reason: "a deltaLink ends a plain listing"}
		case errors.Is(err, io.EOF):
			return p.NextLink(), nil
		case err != nil:
			return "", err
		case !each(change):
			return "", errStopped
		}
	}
}

// Get fetches one record: an Upsert whose Data is the body, but for space around it. ErrNotFound if there is none.
func (c *Client) Get(ctx context.Context, collection, id string) (Change, error) {
	u, err := c.base.resolve(apiPath + collection)
	if err != nil {
		return Change{}, err
	}
	if id == "" || id == "." || id == ".." {
		return Change{}, fmt.Errorf("get %s: no URL for id %q", collection, id)
	}
	u.RawPath = u.Path + "/" + url.PathEscape(id)
	u.Path += "/" + id
	resp, err := c.get(ctx, u)
	if err != nil {
		return Change{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, MaxItem+1))
	switch {
	case err != nil:
		return Change{}, &PageError{Reason: "cut short", Err: err}
	case len(body) > MaxItem:
		return Change{}, &PageError{Reason: errTooLong.Error()}
	}
	body = bytes.Trim(bytes.TrimPrefix(body, []byte(byteOrderMark)), " \t\r\n")
	change := Change{Type: Upsert, Data: body}
	change.ID, change.Version, change.Date, err = ParseRecord(body)
	switch {
	case err != nil:
		return Change{}, &PageError{Reason: "not a record" + contentType(resp), Err: err}
	case change.ID != "" && !strings.EqualFold(change.ID, id): // the API may write a GUID in either case
		return Change{}, &PageError{Reason: "another record than the one asked for"}
	}
	return change, nil
}

// CheckToken asks for a token, if none is held, and for nothing else.
func (c *Client) CheckToken(ctx context.Context) error {
	_, err := c.tokens.get(ctx, "")
	return err
}

// CheckAccess reads one page of a plain listing: whether the API answers, and the token's scopes cover the collection.
func (c *Client) CheckAccess(ctx context.Context, collection, filter string) error {
	_, err := c.listPage(ctx, listLink(collection, filter), func(Change) bool { return true })
	return err
}

// contentType says what an answer claims to be if that is not JSON.
func contentType(resp *http.Response) string {
	kind, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil || strings.HasSuffix(kind, "json") {
		return ""
	}
	return " (" + clip(kind, 80) + ")"
}
