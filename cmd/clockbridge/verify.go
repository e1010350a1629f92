package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/nats-io/nats.go"

	"clockbridge/bridge"
	"clockbridge/protime"
)

type verifyCmd struct {
	settings
	Repair   bool          `help:"Ask the running instance to append what is missing, stale or a phantom, and wait until it has."`
	Ask      bool          `help:"Ask the running instances to compare, each for the feeds that it follows, and show the result in their status."`
	Patience time.Duration `placeholder:"1m" help:"For how long a difference must last to be reported. Default: two poll intervals, at least 1m."`
}

// errDiffers says that the API and a stream differ; the output has said where.
var errDiffers = errors.New("stream and API differ")

// Run verifies every feed, one after the other. One that cannot be verified does not keep the others from it.
func (c *verifyCmd) Run(ctx context.Context, p *program) error {
	switch {
	case c.Patience < 0:
		return usagef("patience must not be negative")
	case c.Ask && (c.Repair || c.Patience != 0):
		return usagef("ask: the running instance has a patience of its own and repairs nothing unasked: leave out --repair and --patience")
	case c.Ask:
		return c.ask(ctx, p)
	}
	cfg, err := c.loadSome(p)
	if err != nil {
		return err
	}
	nc, err := connectRunning(cfg, p)
	if err != nil {
		return err
	}
	defer nc.Close()
	var verified []*verification
	var failed, differs bool
	for i := range cfg.Tenants {
		t := &cfg.Tenants[i]
		for _, collection := range t.Collections {
			v := &verification{p: p, feed: t.Name + "/" + collection, collection: collection, t: t}
			err := c.verify(ctx, v, nc)
			if ctx.Err() != nil {
				return errors.New("interrupted")
			}
			if err != nil {
				failed = true
				fmt.Fprintf(p.stderr, "clockbridge: %v\n", err)
				continue
			}
			verified = append(verified, v)
			differs = differs || v.left > 0
		}
	}
	summary(p, verified, c.Repair)
	switch {
	case failed:
		return errShown
	case differs:
		return errDiffers
	}
	return nil
}

// ask lets the running instances verify.
func (c *verifyCmd) ask(ctx context.Context, p *program) error {
	return c.eachFeed(p, func(nc *nats.Conn, tenant, collection string) error {
		if err := bridge.RequestVerify(ctx, nc, tenant, collection); err != nil {
			return withNobody(err)
		}
		fmt.Fprintf(p.stdout, "%s/%s: verification begins; see clockbridge status\n", tenant, collection)
		return nil
	})
}

// connectRunning connects to the NATS server that the feeds use: with none configured, to that of the instance that runs here.
func connectRunning(cfg *config, p *program) (*nats.Conn, error) {
	c, embedded := cfg.NATS, cfg.NATS.embedded()
	if embedded {
		c.URL = "nats://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(c.Port))
	}
	quiet := *cfg
	quiet.LogLevel = "error" // the error that is returned says it all
	nc, err := connect(c, quiet.logger(p), nats.RetryOnFailedConnect(false))
	switch {
	case err == nil:
		return nc, nil
	case embedded:
		return nil, fmt.Errorf("%w: no clockbridge with a JetStream server of its own runs here: start clockbridge run, or set NATS_URL or CLOCKBRIDGE_NATS_PORT", err)
	}
	return nil, fmt.Errorf("%w: %s", err, natsAdvice(err))
}

// verification is that of one feed.
type verification struct {
	p          *program
	t          *tenantConfig
	feed       string
	collection string
	report     bridge.VerifyReport
	found      []bridge.Difference
	repaired   int
	left       int // differences that are still there
}

func (c *verifyCmd) verify(ctx context.Context, v *verification, nc *nats.Conn) error {
	scope := protime.ReadScope(v.collection)
	client, err := v.t.client(scope)
	if err != nil {
		return usageError{fmt.Errorf("tenant %s: %w", v.t.Name, err)}
	}
	progress := newProgress(v.p, v.feed)
	cfg := bridge.VerifyConfig{
		Tenant: v.t.Name, Collection: v.collection, Filter: v.t.filterFor(v.collection)(time.Now()), Source: client, NATS: nc,
		Privacy:  v.t.privacy,
		Patience: c.Patience, Progress: progress.at,
		Each: func(d bridge.Difference) { v.found = append(v.found, d) },
	}
	if cfg.Patience == 0 {
		cfg.Patience = max(2*v.t.PollInterval, bridge.DefaultPatience)
	}
	v.report, err = bridge.Verify(ctx, cfg)
	progress.end()
	switch {
	case errors.Is(err, bridge.ErrNoStream):
		return fmt.Errorf("%w: start clockbridge run, which creates and fills it", err)
	case isAPIError(err):
		return fmt.Errorf("%w: %s", err, apiAdvice(err, v.t, scope))
	case err != nil:
		return err
	}
	for _, d := range v.found {
		fmt.Fprintf(v.p.stdout, "%-7s  %s  API: %s; stream: %s\n", d.Kind, d.Subject, d.API, d.Stream)
	}
	v.left = len(v.found) + v.report.Unchecked
	if c.Repair {
		return v.repair(ctx, cfg)
	}
	return nil
}

func isAPIError(err error) bool {
	var api *protime.APIError
	var token *protime.TokenError
	return errors.As(err, &api) || errors.As(err, &token)
}

// repair asks the running instance to repair what was found, and looks until it has, or nothing more happens for as long
// as the patience.
func (v *verification) repair(ctx context.Context, cfg bridge.VerifyConfig) error {
	var open []bridge.Difference
	var ids []string
	for _, d := range v.found {
		if d.Kind != bridge.KindAhead {
			open, ids = append(open, d), append(ids, d.ID)
		}
	}
	if len(open) == 0 {
		return nil
	}
	err := bridge.RequestRepair(ctx, cfg.NATS, cfg.Tenant, cfg.Collection, ids)
	if errors.Is(err, bridge.ErrNobody) {
		return fmt.Errorf("%w: start clockbridge run with these settings, then try again", err)
	}
	if err != nil {
		return err
	}
	tick := time.NewTicker(repairLook)
	defer tick.Stop()
	for progress := time.Now(); len(open) > 0 && time.Since(progress) < cfg.Patience; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		var still []bridge.Difference
		for _, d := range open {
			now, err := bridge.Recheck(ctx, cfg, d)
			switch {
			case err != nil:
				return err
			case now.Kind != "":
				still = append(still, now)
			default:
				progress = time.Now()
				v.repaired++
				v.left--
				fmt.Fprintf(v.p.stdout, "repaired %s\n", d.Subject)
			}
		}
		open = still
	}
	for _, d := range open {
		fmt.Fprintf(v.p.stdout, "NOT repaired  %s  API: %s; stream: %s\n", d.Subject, d.API, d.Stream)
	}
	return nil
}

// repairLook is the pause between two looks at what is being repaired.
const repairLook = 200 * time.Millisecond

// summary prints a table of all feeds, and what the numbers ask for.
func summary(p *program, all []*verification, repair bool) {
	if len(all) == 0 {
		return
	}
	table := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprint(table, "FEED\tRECORDS\tSUBJECTS\tMISSING\tSTALE\tPHANTOM\tAHEAD")
	if repair {
		fmt.Fprint(table, "\tREPAIRED")
	}
	fmt.Fprintln(table)
	for _, v := range all {
		r := &v.report
		fmt.Fprintf(table, "%s\t%d\t%d\t%d\t%d\t%d\t%d", v.feed, r.Records, r.Subjects, r.Missing, r.Stale, r.Phantom, r.Ahead)
		if repair {
			fmt.Fprintf(table, "\t%d", v.repaired)
		}
		fmt.Fprintln(table)
	}
	table.Flush() //nolint:errcheck // like every other write to stdout
	for _, v := range all {
		v.notes(repair)
	}
}

// notes says what the table cannot.
func (v *verification) notes(repair bool) {
	note := func(n int, format string, args ...any) {
		if n > 0 {
			fmt.Fprintf(v.p.stdout, "%s: %d %s\n", v.feed, n, fmt.Sprintf(format, args...))
		}
	}
	r := &v.report
	repairable := r.Missing + r.Stale + r.Phantom
	note(r.Ahead, "records have a later version in the stream than at the API, as after the vendor restored a database: see clockbridge resync --trust-api")
	note(r.Unchecked, "more records differ at first sight; only %d are asked again and listed: repair those, then verify again", bridge.DefaultVerifyLimit)
	note(r.Unsettled, "records changed at every look, and are not counted")
	note(r.Dropped, "listed records have no message, and the stream drops old ones by its limits: nothing can be said of them")
	note(r.Forgotten, "listed records were forgotten with a person, and stay so until they change")
	note(r.Unreadable, "listed records cannot be published under a subject of their own: see %s.invalid", bridge.SubjectPrefix(v.t.Name, v.collection))
	if repair {
		note(repairable-v.repaired, "records were not repaired: see the log of the instance that follows the feed")
	} else {
		note(repairable, "records can be repaired: clockbridge verify --repair")
	}
}
