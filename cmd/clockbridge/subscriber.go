package main

import (
	"context"
	"errors"
	"fmt"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"clockbridge/bridge/subscribe"
)

// subscriber are the flags of commands that read a stream, as any subscriber may: none is needed beside a clockbridge that runs here,
// for the clockings of a single tenant.
type subscriber struct {
	Config     string `env:"CLOCKBRIDGE_CONFIG" placeholder:"FILE" help:"YAML file, for how to connect to NATS."`
	Tenant     string `env:"PROTIME_TENANT" placeholder:"NAME" help:"The tenant. Needed where several have streams."`
	Collection string `env:"PROTIME_COLLECTIONS" placeholder:"NAME" help:"The collection. Default: the only one that has a stream, or clockings."`

	NATSURL     string `name:"nats-url" env:"NATS_URL" placeholder:"URL,..." help:"Servers. Default: that of the clockbridge that runs here."`
	NATSCreds   string `name:"nats-creds" env:"NATS_CREDS" placeholder:"FILE" help:"Credentials file."`
	NATSContext string `name:"nats-context" env:"NATS_CONTEXT" placeholder:"NAME" help:"A context of the nats CLI."`
	NATSPort    int    `name:"nats-port" env:"CLOCKBRIDGE_NATS_PORT" placeholder:"PORT" help:"Port of the server on 127.0.0.1 when none is named. Default: 4222."`
	JSDomain    string `name:"js-domain" env:"CLOCKBRIDGE_JS_DOMAIN" placeholder:"NAME" help:"JetStream domain, as users of deploy/nats-accounts.conf need it: clockbridge."`
}

// reading is a stream that is read, and what it held at the start.
type reading struct {
	*subscribe.Stream
	js    jetstream.JetStream
	state subscribe.State
}

func (r *reading) close() { r.js.Conn().Close() }

// open connects and finds the stream.
func (c *subscriber) open(ctx context.Context, p *program) (r *reading, err error) {
	signal.Ignore(syscall.SIGPIPE) // a reader that has seen enough is no crash: writing says so
	if strings.Contains(c.Collection, ",") {
		return nil, usagef("there are several collections, %s: choose one with --collection", c.Collection)
	}
	nc, err := c.connect(p)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			nc.Close()
		}
	}()
	js, err := jetStream(nc, c.JSDomain)
	if err != nil {
		return nil, err
	}
	feed, err := c.feed(ctx, js)
	if err != nil {
		return nil, err
	}
	s, state, err := subscribe.Open(ctx, js, feed)
	if err != nil {
		return nil, withAdvice(err)
	}
	s.Trouble = func(err error) {
		if err == nil {
			fmt.Fprintln(p.stderr, "clockbridge: going on")
			return
		}
		fmt.Fprintf(p.stderr, "clockbridge: waiting: %v\n", err)
	}
	return &reading{s, js, state}, nil
}

// jetStream is that of a domain; "" = none.
func jetStream(nc *nats.Conn, domain string) (jetstream.JetStream, error) {
	if domain == "" {
		return jetstream.New(nc)
	}
	return jetstream.NewWithDomain(nc, domain)
}

func (c *subscriber) connect(p *program) (*nats.Conn, error) {
	cfg, err := readConfig(c.Config)
	if err != nil {
		return nil, usageError{err}
	}
	cfg.NATS.override(c.NATSURL, c.NATSCreds, c.NATSContext, c.NATSPort)
	if err := cfg.NATS.check(); err != nil {
		return nil, usageError{err}
	}
	return connectRunning(cfg, p)
}

// feed is the one that the flags name or, where they do not, the only one that has a stream, or that of clockings if all are of one tenant.
func (c *subscriber) feed(ctx context.Context, js jetstream.JetStream) (subscribe.Feed, error) {
	if c.Tenant != "" && c.Collection != "" {
		return subscribe.Feed{Tenant: c.Tenant, Collection: c.Collection}, nil
	}
	listing, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	feeds, err := subscribe.Feeds(listing, js)
	if err != nil {
		return subscribe.Feed{}, fmt.Errorf("%w: name the feed with --tenant and --collection; a user of an account of its own needs --js-domain, too", err)
	}
	var fit []subscribe.Feed
	var names []string
	for _, f := range feeds {
		if (c.Tenant == "" || c.Tenant == f.Tenant) && (c.Collection == "" || c.Collection == f.Collection) {
			fit = append(fit, f)
			names = append(names, f.Tenant+"/"+f.Collection)
		}
	}
	if len(fit) == 0 {
		return subscribe.Feed{}, withAdvice(subscribe.ErrNoStream)
	}
	clockings := subscribe.Feed{Tenant: fit[0].Tenant, Collection: "clockings"}
	another := func(f subscribe.Feed) bool { return f.Tenant != clockings.Tenant }
	switch {
	case len(fit) == 1:
		return fit[0], nil
	case slices.Contains(fit, clockings) && !slices.ContainsFunc(fit, another):
		return clockings, nil
	}
	return subscribe.Feed{}, usagef("there are streams of several feeds, choose one with --tenant and --collection: %s", strings.Join(names, ", "))
}

// withAdvice says what to do about an error of reading a stream.
func withAdvice(err error) error {
	switch {
	case errors.Is(err, subscribe.ErrNoStream):
		return fmt.Errorf("%w: start clockbridge run, which creates and fills it, or see --tenant, --collection and --nats-url", err)
	case errors.Is(err, subscribe.ErrRecreated):
		return fmt.Errorf("%w: start anew", err)
	case errors.Is(err, subscribe.ErrDropped):
		return fmt.Errorf("%w: see its limits, and whether somebody purged it; then try again", err)
	}
	return err
}

// ended is how a command ends that was reading: well where whoever reads its output has seen enough.
func ended(ctx context.Context, err error) error {
	switch {
	case err == nil, errors.Is(err, syscall.EPIPE):
		return nil
	case ctx.Err() != nil:
		return errors.New("interrupted")
	}
	return withAdvice(err)
}

// pointHelp is what parsePoint takes.
const pointHelp = "a position, a time such as 2026-01-31 or 2026-01-31T08:00:00Z, or how long ago, such as 90m or 7d"

// point is a place in a stream: a position, or a time.
type point struct {
	position uint64
	time     time.Time
}

// parsePoint reads a point. A day begins at midnight here.
func parsePoint(s string, now time.Time) (point, error) {
	if n, err := strconv.ParseUint(s, 10, 64); err == nil {
		return point{position: n}, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return point{time: now.Add(-d)}, nil
	}
	if m := daysRE.FindStringSubmatch(s); m != nil {
		if days, err := strconv.Atoi(m[1]); err == nil {
			return point{time: now.AddDate(0, 0, -days)}, nil
		}
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", time.DateOnly} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return point{time: t}, nil
		}
	}
	return point{}, usagef("%q: must be %s", s, pointHelp)
}

// first is the first position from the point on.
func (a point) first(ctx context.Context, s *reading) (uint64, error) {
	if a.time.IsZero() {
		return a.position, nil
	}
	return s.At(ctx, a.time)
}

// last is the last position up to the point: its own, or what was stored before its time.
func (a point) last(ctx context.Context, s *reading) (uint64, error) {
	if a.time.IsZero() {
		return a.position, nil
	}
	next, err := s.At(ctx, a.time)
	return next - 1, err
}
