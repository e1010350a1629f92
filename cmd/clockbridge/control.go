package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/nats-io/nats.go"

	"clockbridge/bridge"
)

// Commands that ask running instances over NATS, each for every feed of the settings.

type statusCmd struct {
	settings
	httpSettings
	JSON   bool `help:"An array of objects, as in /status.json."`
	Health bool `help:"Instead ask the instance on this machine, at its HTTP address, whether its process works. For health checks of containers."`
}

// Run shows what each feed is doing. It fails if one is not well, or is followed by nobody.
func (c *statusCmd) Run(ctx context.Context, p *program) error {
	if c.Health {
		return c.health(ctx, p)
	}
	var all []bridge.Status
	well := true
	err := c.eachFeed(p, func(nc *nats.Conn, tenant, collection string) error {
		s, err := bridge.RequestStatus(ctx, nc, tenant, collection)
		if errors.Is(err, bridge.ErrNobody) {
			s, err = bridge.Status{Tenant: tenant, Collection: collection, Error: err.Error(), Advice: adviceNobody}, nil
		}
		all = append(all, s)
		well = well && s.Ready()
		return err
	})
	if err != nil {
		return err
	}
	if c.JSON {
		encoder := json.NewEncoder(p.stdout)
		encoder.SetIndent("", "  ")
		if err := encoder.Encode(all); err != nil {
			return err
		}
	} else {
		statusTable(p, all)
	}
	if !well {
		return errShown
	}
	return nil
}

const adviceNobody = "start clockbridge run with these settings"

func statusTable(p *program, all []bridge.Status) {
	table := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "FEED\tSTATE\tHOLDER\tPOSITION\tLAST CHANGE\tLAST ANSWER\tVERIFIED")
	for _, s := range all {
		state := string(s.State)
		if state == "" {
			state = "nobody follows"
		}
		fmt.Fprintf(table, "%s/%s\t%s\t%s\t%d\t%s\t%s\t%s\n", s.Tenant, s.Collection, state, s.Holder, s.Position, ago(s.ChangedAt), ago(s.FetchedAt), compared(s.LastVerify))
	}
	table.Flush() //nolint:errcheck // like every other write to stdout
	for _, s := range all {
		switch {
		case s.Error != "":
			fmt.Fprintf(p.stdout, "%s/%s: %s\n    %s\n", s.Tenant, s.Collection, strings.ReplaceAll(s.Error, "\n", "; "), s.Advice)
		case s.Advice != "":
			fmt.Fprintf(p.stdout, "%s/%s: %s\n", s.Tenant, s.Collection, s.Advice)
		}
	}
}

// compared says what the last verification found, and how long ago.
func compared(r *bridge.VerifyReport) string {
	switch {
	case r == nil:
		return "-"
	case r.Error != "":
		return "failed " + ago(r.At)
	case r.Differs():
		return fmt.Sprintf("%d differ %s", r.Missing+r.Stale+r.Phantom+r.Ahead+r.Unchecked, ago(r.At))
	}
	return "exact " + ago(r.At)
}

// ago says how long ago t was, to the second.
func ago(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return time.Since(t).Round(time.Second).String() + " ago"
}

type resyncCmd struct {
	settings
	TrustAPI bool `name:"trust-api" help:"Take the API's present state as newer than everything published: after the vendor has restored a database, when a feed is stale."`
}

// Run begins every delta anew.
func (c *resyncCmd) Run(ctx context.Context, p *program) error {
	return c.eachFeed(p, func(nc *nats.Conn, tenant, collection string) error {
		if err := bridge.RequestResync(ctx, nc, tenant, collection, c.TrustAPI); err != nil {
			return withNobody(err)
		}
		fmt.Fprintf(p.stdout, "%s/%s: asked for a resync; see clockbridge status\n", tenant, collection)
		return nil
	})
}

type pauseCmd struct{ settings }

// Run lets nobody follow the feeds, whatever is restarted, until they are resumed.
func (c *pauseCmd) Run(ctx context.Context, p *program) error {
	return c.eachFeed(p, func(nc *nats.Conn, tenant, collection string) error {
		until, err := bridge.RequestPause(ctx, nc, tenant, collection)
		if err != nil {
			return withNobody(err)
		}
		fmt.Fprintf(p.stdout, "%s/%s: paused", tenant, collection)
		if !until.IsZero() {
			fmt.Fprintf(p.stdout, "; resumed before %s it goes on with the same delta, later with a resync", until.Format(time.RFC3339))
		}
		fmt.Fprintln(p.stdout)
		return nil
	})
}

type resumeCmd struct{ settings }

// Run lets the feeds be followed again.
func (c *resumeCmd) Run(ctx context.Context, p *program) error {
	return c.eachFeed(p, func(nc *nats.Conn, tenant, collection string) error {
		resumed, err := bridge.RequestResume(ctx, nc, tenant, collection)
		if err != nil {
			return withNobody(err)
		}
		result := "resumed"
		if !resumed {
			result = "was not paused"
		}
		fmt.Fprintf(p.stdout, "%s/%s: %s\n", tenant, collection, result)
		return nil
	})
}

type syncNowCmd struct{ settings }

// Run polls every feed at once, or tries again what is being waited for.
func (c *syncNowCmd) Run(ctx context.Context, p *program) error {
	return c.eachFeed(p, func(nc *nats.Conn, tenant, collection string) error {
		if err := bridge.RequestSync(ctx, nc, tenant, collection); err != nil {
			return withNobody(err)
		}
		fmt.Fprintf(p.stdout, "%s/%s: asked\n", tenant, collection)
		return nil
	})
}

func withNobody(err error) error {
	if errors.Is(err, bridge.ErrNobody) {
		return fmt.Errorf("%w: %s", err, adviceNobody)
	}
	return err
}

// eachFeed calls do for every feed of the settings, also when one fails, with a connection to where the feeds are.
func (s *settings) eachFeed(p *program, do func(nc *nats.Conn, tenant, collection string) error) error {
	cfg, err := s.loadControl(p)
	if err != nil {
		return err
	}
	nc, err := connectRunning(cfg, p)
	if err != nil {
		return err
	}
	defer nc.Close()
	var errs []error
	for _, t := range cfg.Tenants {
		for _, collection := range t.Collections {
			errs = append(errs, do(nc, t.Name, collection))
		}
	}
	return errors.Join(errs...)
}
