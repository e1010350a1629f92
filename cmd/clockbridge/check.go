package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"clockbridge/bridge"
	"clockbridge/protime"
	"clockbridge/store"
)

type checkCmd struct {
	runSettings
	Timeout time.Duration `default:"10s" help:"For each check."`
}

// checklist prints a line for each check.
type checklist struct {
	p      *program
	failed bool
}

func (l *checklist) ok(what, detail string) {
	fmt.Fprintf(l.p.stdout, "ok    %s: %s\n", what, detail)
}

// warn reports what works, but is not as it should be.
func (l *checklist) warn(what, detail, todo string) {
	fmt.Fprintf(l.p.stdout, "warn  %s: %s\n      → %s\n", what, detail, todo)
}

func (l *checklist) fail(what string, err error, todo string) {
	l.failed = true
	fmt.Fprintf(l.p.stdout, "FAIL  %s: %v\n      → %s\n", what, err, todo)
}

// Run checks everything that run needs, and starts no delta.
func (c *checkCmd) Run(ctx context.Context, p *program) error {
	cfg, err := c.load(p)
	if err != nil {
		return err
	}
	l := &checklist{p: p}
	l.ok("configuration", fmt.Sprintf("%d tenant(s)", len(cfg.Tenants)))
	if protocol, err := tracesProtocol(); err != nil {
		l.fail("traces", err, "correct the variable, or switch traces off with OTEL_SDK_DISABLED=true")
	} else if protocol != "" {
		l.ok("traces", "will be exported, "+protocol)
	}
	running := c.dataDir(l, cfg)
	c.statusPage(ctx, l, cfg.HTTPAddr)
	for i := range cfg.Tenants {
		c.tenant(ctx, l, &cfg.Tenants[i])
	}
	c.nats(ctx, l, cfg, running)
	if l.failed {
		return errShown
	}
	return nil
}

// dataDir reports whether a running instance holds the directory.
func (c *checkCmd) dataDir(l *checklist, cfg *config) (running bool) {
	const what = "data directory"
	cfg.DataDir = numbered(cfg.DataDir, 0)
	err := os.MkdirAll(cfg.DataDir, 0o700)
	if err == nil {
		var f *os.File
		if f, err = os.CreateTemp(cfg.DataDir, ".check-*"); err == nil {
			err = errors.Join(f.Close(), os.Remove(f.Name()))
		}
	}
	if err != nil {
		l.fail(what, err, "make it writable for this user, or set CLOCKBRIDGE_DATA_DIR")
		return false
	}
	if _, err := os.Stat(storePath(cfg)); errors.Is(err, os.ErrNotExist) {
		l.ok(what, cfg.DataDir+" is writable; no feed has run yet")
		return false
	}
	st, err := store.Open(storePath(cfg))
	switch {
	case errors.Is(err, store.ErrLocked):
		l.ok(what, cfg.DataDir+" is in use by a running clockbridge")
		return true
	case err != nil:
		l.fail(what, err, "move the file away: the next start rebuilds it from the stream")
	default:
		if err := st.Close(); err != nil {
			l.fail(what, err, "look at the disk")
			return false
		}
		l.ok(what, cfg.DataDir+" is writable")
	}
	return false
}

// statusPage looks whether run can serve its page on address.
func (c *checkCmd) statusPage(ctx context.Context, l *checklist, address string) {
	const what = "status page"
	listener, err := net.Listen("tcp", address)
	if err == nil {
		listener.Close() //nolint:errcheck // nothing came of it
		l.ok(what, "will be served on "+address)
		return
	}
	within, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	if served(within, address) {
		l.ok(what, address+" is in use by a running clockbridge, as it should be; another one needs an address of its own")
		return
	}
	l.fail(what, err, "stop what listens there, or choose another address with CLOCKBRIDGE_HTTP_ADDR")
}

// served reports whether what answers at address is the status of a clockbridge.
func served(ctx context.Context, address string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/status.json", nil)
	if err != nil {
		return false
	}
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req) // by no proxy: it is this machine
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	var page statusPage
	return json.NewDecoder(resp.Body).Decode(&page) == nil && page.NATS != ""
}

func (c *checkCmd) tenant(ctx context.Context, l *checklist, t *tenantConfig) {
	for _, collection := range t.Collections {
		what := "API of " + t.Name + ", " + collection
		scope := protime.ReadScope(collection)
		client, err := t.client(scope)
		if err != nil {
			l.fail(what, err, "correct the configuration")
			return
		}
		known, _ := protime.CollectionOf(collection)
		within, cancel := context.WithTimeout(ctx, c.Timeout)
		err = client.CheckToken(within)
		if err == nil {
			err = client.CheckAccess(within, collection, known.ListFilter(t.filterFor(collection)(time.Now())))
		}
		cancel()
		if err != nil {
			l.fail(what, err, collectionAdvice(err, t, collection))
			continue
		}
		l.ok(what, "token and list, scope "+scope)
	}
}

// collectionAdvice is apiAdvice for a collection's list. One that is not known gets no filter by itself, and may want one.
func collectionAdvice(err error, t *tenantConfig, collection string) string {
	var api *protime.APIError
	if errors.As(err, &api) && api.Status == http.StatusBadRequest && t.filterFor(collection)(time.Now()) == "" {
		return "the API may want a filter for " + collection + ": set filters in the file, or PROTIME_FILTER"
	}
	return apiAdvice(err, t, protime.ReadScope(collection))
}

// apiAdvice says what to do about an error of the token endpoint or the API.
func apiAdvice(err error, t *tenantConfig, scope string) string {
	var token *protime.TokenError
	var api *protime.APIError
	var page *protime.PageError
	var link *protime.LinkError
	switch {
	case errors.As(err, &token):
		switch {
		case errors.Is(err, protime.ErrSecret):
			return "the client secret cannot be read: correct PROTIME_CLIENT_SECRET_FILE, or the file"
		case token.Status == http.StatusNotFound:
			return "wrong tenant: " + t.Name + " is not known at the token endpoint; it is the subdomain of the tenant's myprotime.eu address"
		case token.Code == "invalid_scope":
			return "missing scope: ask the tenant's administrator to grant the client " + scope
		case token.Status == http.StatusBadRequest || token.Status == http.StatusUnauthorized || token.Status == http.StatusForbidden:
			return "wrong client id or secret: compare PROTIME_CLIENT_ID and the secret with what the tenant's administrator gave out"
		case token.Status == 0:
			return "the token endpoint cannot be reached: check PROTIME_AUTH_URL, the network, proxy and DNS"
		}
		return "the token endpoint is in trouble: try again later"
	case errors.As(err, &api):
		switch api.Status {
		case http.StatusUnauthorized, http.StatusForbidden:
			return "missing scope: ask the tenant's administrator to grant the client " + scope
		case http.StatusBadRequest:
			return "the API refuses the filter: correct PROTIME_SINCE, PROTIME_FILTER, or filters in the file"
		case http.StatusNotFound:
			return "the API does not know this collection: correct PROTIME_COLLECTIONS, or PROTIME_API_URL"
		}
		return "the API is in trouble: try again later"
	case errors.As(err, &page) || errors.As(err, &link):
		return "what answers there is not the API, or something in between changes its answers: check PROTIME_API_URL and the proxy"
	}
	return "the API cannot be reached: check PROTIME_API_URL, the network, proxy and DNS"
}

// port looks whether the embedded server can listen on address. If that of the running instance does already, it returns the URL to go
// on with.
func (l *checklist) port(address string, running bool) (url string) {
	listener, err := net.Listen("tcp", address)
	switch {
	case err == nil:
		listener.Close() //nolint:errcheck // nothing came of it
		l.ok("NATS", "an embedded server will be started on "+address)
		return ""
	case running:
		return "nats://" + address
	}
	l.fail("NATS", fmt.Errorf("the embedded server cannot listen on %s", address), "stop what listens there, or set NATS_URL if it is the NATS server to use")
	return ""
}

func (c *checkCmd) nats(ctx context.Context, l *checklist, cfg *config, running bool) {
	const what = "NATS"
	if cfg.NATS.embedded() {
		cfg.NATS.URL = l.port(net.JoinHostPort("127.0.0.1", strconv.Itoa(max(cfg.NATS.Port, 0))), running)
		if cfg.NATS.URL == "" {
			return
		}
	}
	nc, err := connect(cfg.NATS, cfg.logger(&program{stderr: io.Discard}), nats.RetryOnFailedConnect(false), nats.Timeout(c.Timeout))
	if err != nil {
		l.fail(what, err, natsAdvice(err))
		return
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		l.fail(what, err, "check NATS_URL")
		return
	}
	within, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	if _, err := js.AccountInfo(within); errors.Is(err, jetstream.ErrJetStreamNotEnabled) || errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount) || errors.Is(err, nats.ErrNoResponders) {
		l.fail(what, err, "switch JetStream on: nats-server -js, or jetstream {} in its configuration, and for the account")
		return
	}
	l.ok(what, fmt.Sprintf("%s, version %s", redact(nc.ConnectedUrl()), nc.ConnectedServerVersion()))
	c.leases(ctx, l, js)
	for i := range cfg.Tenants {
		for _, collection := range cfg.Tenants[i].Collections {
			c.stream(ctx, l, js, cfg.Tenants[i].Name, collection, cfg.NATS.limits)
		}
	}
}

// natsAdvice says what to do where no connection is made.
func natsAdvice(err error) string {
	var file *fs.PathError
	switch {
	case errors.Is(err, nats.ErrAuthorization):
		return "check the NATS credentials: NATS_CREDS, NATS_NKEY, NATS_USER and NATS_PASSWORD, or NATS_TOKEN"
	case errors.As(err, &file), errors.Is(err, errSecret):
		return "the file cannot be read: correct its name or its permissions"
	}
	return "check NATS_URL and the network"
}

func (c *checkCmd) stream(ctx context.Context, l *checklist, js jetstream.JetStream, tenant, collection string, limits bridge.Limits) {
	what := "stream " + bridge.StreamName(tenant, collection)
	within, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	unlike, err := bridge.CheckStream(within, js, tenant, collection, limits)
	var unfit *bridge.StreamError
	switch {
	case unlike != nil:
		l.warn(what, unlike.String(), unlike.Command)
	case err == nil:
		l.ok(what, "fit")
	case errors.Is(err, bridge.ErrNoStream):
		l.ok(what, "will be created")
	case errors.As(err, &unfit):
		l.fail(what, err, "correct the stream's configuration; clockbridge never changes a stream that it finds")
	default:
		l.failJetStream(what, err, bridge.SubjectPrefix(tenant, collection)+".*")
	}
}

// leases looks for the bucket where instances meet.
func (c *checkCmd) leases(ctx context.Context, l *checklist, js jetstream.JetStream) {
	const what = "bucket " + bridge.Bucket
	within, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	_, err := js.KeyValue(within, bridge.Bucket)
	switch {
	case err == nil:
		l.ok(what, "there")
	case errors.Is(err, jetstream.ErrBucketNotFound):
		l.ok(what, "will be created")
	default:
		l.failJetStream(what, err, "$KV."+bridge.Bucket+".>")
	}
}

// failJetStream reports that JetStream does not let this user at something that is written on the subject.
func (l *checklist) failJetStream(what string, err error, subject string) {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrPermissionViolation) {
		l.fail(what, errors.New("no answer, as when the permission is missing"),
			"allow this user to publish $JS.API.> and "+subject+", and to subscribe _INBOX.>")
		return
	}
	l.fail(what, err, "check the account's permissions and JetStream's limits")
}
