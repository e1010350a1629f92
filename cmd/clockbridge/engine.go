package main

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/nats-io/nats.go"

	"clockbridge/bridge"
	"clockbridge/protime"
)

// engine runs the feeds of a configuration side by side, those of which no other instance holds the lease. They share a
// connection and a store, and nothing else: one that fails delays no other.
type engine struct {
	fleet *bridge.Fleet
	feeds []*bridge.Feed
}

// feedStore is what feeds and fleet need of a store; *store.Store is one.
type feedStore interface {
	bridge.Store
	bridge.MemberStore
}

func newEngine(c *config, nc *nats.Conn, st feedStore, log *slog.Logger, metrics *bridge.Metrics) (*engine, error) {
	fleet, err := bridge.NewFleet(bridge.FleetConfig{NATS: nc, Store: st, Heartbeat: c.heartbeat, Replicas: c.NATS.Replicas, Logger: log})
	if err != nil {
		return nil, usageError{err}
	}
	e := &engine{fleet: fleet}
	for i := range c.Tenants {
		t := &c.Tenants[i]
		for _, collection := range t.Collections {
			client, err := t.client(protime.ReadScope(collection))
			if err != nil {
				return nil, usageError{fmt.Errorf("tenant %s: %w", t.Name, err)}
			}
			feed, err := bridge.NewFeed(bridge.Config{
				Tenant: t.Name, Collection: collection, Filter: t.filterFor(collection), Source: client, Store: st, NATS: nc,
				PollInterval: t.PollInterval, Replicas: c.NATS.Replicas, Logger: log, Metrics: metrics,
			})
			if err != nil {
				return nil, usageError{err}
			}
			e.feeds = append(e.feeds, feed)
		}
	}
	return e, nil
}

// run follows every feed until ctx ends, or until one meets an error that ends the process; then all have ended.
func (e *engine) run(ctx context.Context) error { return e.fleet.Run(ctx, e.feeds) }

// status returns what every feed is doing.
func (e *engine) status() []bridge.Status {
	all := make([]bridge.Status, len(e.feeds))
	for i, feed := range e.feeds {
		all[i] = feed.Status()
	}
	return all
}
