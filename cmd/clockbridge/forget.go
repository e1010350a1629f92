package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"clockbridge/bridge"
	"clockbridge/bridge/subscribe"
)

type forgetCmd struct {
	settings
	Person   string `arg:"" help:"Id of the person, as in person.id of a record."`
	Yes      bool   `help:"Erase for good. Without it nothing is changed."`
	JSDomain string `name:"js-domain" env:"CLOCKBRIDGE_JS_DOMAIN" placeholder:"NAME" help:"JetStream domain, as the operator of deploy/nats-accounts.conf needs it: clockbridge."`
}

// Run says what the streams of a tenant hold of a person, has the running instances erase it, and looks whether they did.
func (c *forgetCmd) Run(ctx context.Context, p *program) error {
	cfg, err := c.loadSome(p)
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
	js, err := jetStream(nc, c.JSDomain)
	if err != nil {
		return err
	}
	t := cfg.Tenants[0]
	feeds, err := c.feeds(ctx, js, t)
	if err != nil {
		fmt.Fprintf(p.stderr, "clockbridge: only the streams of the configured collections are looked at: %v\n", err)
	}
	table := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "FEED\tMESSAGES\tRECORDS\tFIRST\tLAST")
	var failed error
	var named []subscribe.Feed
	for _, feed := range feeds {
		found, err := c.search(ctx, p, js, feed, t.privacy, 0)
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s/%s: %w", feed.Tenant, feed.Collection, err))
			continue
		}
		if found.messages > 0 {
			named = append(named, feed)
		}
		fmt.Fprintf(table, "%s/%s\t%d\t%d\t%s\t%s\n", feed.Tenant, feed.Collection, found.messages, len(found.records), day(found.first), day(found.last))
	}
	table.Flush() //nolint:errcheck // like every other write to stdout
	switch {
	case failed != nil:
		return failed
	case len(named) == 0:
		fmt.Fprintln(p.stdout, "Nothing names this person.")
		return nil
	case !c.Yes:
		fmt.Fprintln(p.stdout, "Nothing was changed. To erase these messages for good, add --yes.")
		return nil
	}
	for _, feed := range named {
		failed = errors.Join(failed, c.erase(ctx, p, nc, js, feed, t.privacy))
	}
	if failed == nil {
		fmt.Fprintln(p.stdout, "What the API still has of this person is published again when it changes. Mirrors, subscribers and backups keep what they have.")
	}
	return failed
}

// feeds are those of the tenant that are followed, and others that have a stream: all that could be found.
func (c *forgetCmd) feeds(ctx context.Context, js jetstream.JetStream, t tenantConfig) (all []subscribe.Feed, err error) {
	for _, collection := range t.Collections {
		all = append(all, subscribe.Feed{Tenant: t.Name, Collection: collection})
	}
	listing, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	streams, err := subscribe.Feeds(listing, js)
	for _, feed := range streams {
		if feed.Tenant == t.Name && !slices.Contains(all, feed) {
			all = append(all, feed)
		}
	}
	return all, err
}

// mentions are the messages that name a person.
type mentions struct {
	messages    int
	records     map[string]bool
	first, last time.Time // when they were stored
}

// search reads a stream up to a position; 0 = its present end.
func (c *forgetCmd) search(ctx context.Context, p *program, js jetstream.JetStream, feed subscribe.Feed, privacy *bridge.Privacy, to uint64) (mentions, error) {
	found := mentions{records: map[string]bool{}}
	s, state, err := subscribe.Open(ctx, js, feed)
	if errors.Is(err, subscribe.ErrNoStream) || err == nil && state.Messages == 0 {
		return found, nil
	}
	if err != nil {
		return found, err
	}
	if to == 0 {
		to = state.Last
	}
	person := bridge.NewPerson(feed.Collection, c.Person, privacy)
	progress := newProgress(p, feed.Tenant+"/"+feed.Collection)
	defer progress.end()
	read := 0
	err = s.Read(ctx, subscribe.Range{To: to}, func(m subscribe.Message) error {
		if read++; read%1000 == 0 {
			progress.at(bridge.VerifyProgress{Phase: bridge.PhaseStream, Done: read, Total: int(state.Messages)}) //nolint:gosec // messages of a stream
		}
		if !person.NamedBy(m.Data, m.Deleted) {
			return nil
		}
		found.messages++
		found.records[m.Subject] = true
		if found.first.IsZero() {
			found.first = m.Stored
		}
		found.last = m.Stored
		return nil
	})
	return found, err
}

// erase asks for one feed's messages to be erased, and looks whether they are.
func (c *forgetCmd) erase(ctx context.Context, p *program, nc *nats.Conn, js jetstream.JetStream, feed subscribe.Feed, privacy *bridge.Privacy) error {
	r, err := bridge.RequestForget(ctx, nc, feed.Tenant, feed.Collection, c.Person)
	if err != nil {
		return withNobody(err)
	}
	left, err := c.search(ctx, p, js, feed, privacy, r.Position)
	switch {
	case err != nil:
		return fmt.Errorf("%s/%s: look whether all is erased: %w", feed.Tenant, feed.Collection, err)
	case left.messages > 0:
		return fmt.Errorf("%s/%s: %d messages up to position %d still name the person: somebody else writes the stream, or put a backup of it back; ask again",
			feed.Tenant, feed.Collection, left.messages, r.Position)
	}
	fmt.Fprintf(p.stdout, "%s/%s: %d messages erased, up to position %d; %d records have a deletion in their place\n",
		feed.Tenant, feed.Collection, r.Messages, r.Position, r.Records)
	return nil
}

// day is a date, "-" if there is none.
func day(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format(time.DateOnly)
}
