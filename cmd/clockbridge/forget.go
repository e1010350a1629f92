package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/nats-io/nats.go"

	"clockbridge/bridge"
	"clockbridge/bridge/subscribe"
)

type forgetCmd struct {
	settings
	Person   string `arg:"" help:"Id of the person, as in person.id of a record."`
	Yes      bool   `help:"Erase for good. Without it nothing is changed."`
	JSDomain string `name:"js-domain" env:"CLOCKBRIDGE_JS_DOMAIN" placeholder:"NAME" help:"JetStream domain, as the operator of deploy/nats-accounts.conf needs it: clockbridge."`
}

// Run has the running instances say what the streams of a tenant hold of a person, erase it, and look whether anything is left. They know how
// ids stand in the streams.
func (c *forgetCmd) Run(ctx context.Context, p *program) error {
	if c.Person == "" {
		return usagef("person: must not be empty")
	}
	cfg, err := c.loadControl(p)
	if err != nil {
		return err
	}
	if len(cfg.Tenants) > 1 {
		return usagef("%s names several tenants, and a person's id is one tenant's: choose one with --tenant", c.Config)
	}
	nc, err := connectRunning(cfg, p)
	if err != nil {
		return err
	}
	defer nc.Close()
	feeds, err := c.feeds(ctx, nc, cfg.Tenants[0])
	if err != nil {
		return err
	}
	found, err := c.ask(ctx, p, nc, feeds, true)
	table := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "FEED\tMESSAGES\tFROM\tTO")
	total := 0
	for i, r := range found {
		total += r.Found
		fmt.Fprintf(table, "%s/%s\t%d\t%s\t%s\n", feeds[i].Tenant, feeds[i].Collection, r.Found, day(r.From), day(r.To))
	}
	table.Flush() //nolint:errcheck // like every other write to stdout
	switch {
	case err != nil:
		return err
	case total == 0:
		fmt.Fprintln(p.stdout, "Nothing names this person.")
		return nil
	case !c.Yes:
		fmt.Fprintln(p.stdout, "Nothing was changed. To erase these messages for good, add --yes.")
		return nil
	}
	erased, err := c.ask(ctx, p, nc, feeds, false)
	for i, r := range erased {
		fmt.Fprintf(p.stdout, "%s/%s: %d messages erased, up to position %d; %d records have a deletion in their place\n",
			feeds[i].Tenant, feeds[i].Collection, r.Messages, r.Position, r.Records)
	}
	if err != nil {
		return err
	}
	left, err := c.ask(ctx, p, nc, feeds, true)
	for i, r := range left {
		if r.Found > 0 {
			err = errors.Join(err, fmt.Errorf("%s/%s: %d messages name the person that have come since: the API still reports changes; correct or delete the person there, and give the command again",
				feeds[i].Tenant, feeds[i].Collection, r.Found))
		}
	}
	if err == nil {
		fmt.Fprintln(p.stdout, "Nothing names this person any more. What the API still has is published again when it changes. Mirrors, subscribers and backups keep what they have.")
	}
	return err
}

// feeds are those of the tenant that are configured, and others that have a stream.
func (c *forgetCmd) feeds(ctx context.Context, nc *nats.Conn, t tenantConfig) (all []subscribe.Feed, err error) {
	for _, collection := range t.Collections {
		all = append(all, subscribe.Feed{Tenant: t.Name, Collection: collection})
	}
	js, err := jetStream(nc, c.JSDomain)
	if err != nil {
		return nil, err
	}
	listing, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	streams, err := subscribe.Feeds(listing, js)
	if err != nil {
		return nil, fmt.Errorf("%w: the person may be named in any stream of the tenant; the operator of deploy/nats-accounts.conf needs --js-domain", err)
	}
	for _, feed := range streams {
		if feed.Tenant == t.Name && !slices.Contains(all, feed) {
			all = append(all, feed)
		}
	}
	return all, nil
}

// ask asks for one feed after the other, and ends with the first one that fails.
func (c *forgetCmd) ask(ctx context.Context, p *program, nc *nats.Conn, feeds []subscribe.Feed, look bool) (all []bridge.Forgotten, err error) {
	for _, feed := range feeds {
		name := feed.Tenant + "/" + feed.Collection
		progress := newProgress(p, name)
		waiting := time.AfterFunc(forgetWait, func() {
			fmt.Fprintf(p.stderr, "clockbridge: %s: waiting until the feed comes to it: it is in the midst of a listing, or waits for the API; see clockbridge status\n", name)
		})
		r, err := bridge.RequestForget(ctx, nc, feed.Tenant, feed.Collection, bridge.ForgetRequest{Person: c.Person, Look: look}, func(r bridge.Forgotten) {
			if r.Position > 0 {
				waiting.Stop()
				progress.at(bridge.VerifyProgress{Phase: phaseErase, Done: r.Messages, Total: r.Found})
			}
		})
		waiting.Stop()
		progress.end()
		if errors.Is(err, bridge.ErrNobody) {
			return all, fmt.Errorf("%w: start clockbridge run with this tenant and collection, or delete the stream %s if nobody needs it", err, bridge.StreamName(feed.Tenant, feed.Collection))
		}
		if err != nil {
			return all, err
		}
		all = append(all, r)
	}
	return all, nil
}

// forgetWait is how long a feed may take to come to a request until that is said; phaseErase is what it then does.
const (
	forgetWait                    = 5 * time.Second
	phaseErase bridge.VerifyPhase = "erasing"
)

// day is a date, "-" if there is none.
func day(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format(time.DateOnly)
}
