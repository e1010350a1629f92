package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/nats-io/nats.go"

	"clockbridge/bridge"
	"clockbridge/protime"
)

// engine runs the feeds of a configuration side by side. They share a connection and a store, and nothing else: one that
// fails delays no other.
type engine struct {
	feeds []*bridge.Feed
}

func newEngine(c *config, nc *nats.Conn, st bridge.Store, log *slog.Logger, metrics *bridge.Metrics) (*engine, error) {
	e := new(engine)
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
func (e *engine) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	errs := make([]error, len(e.feeds))
	for i, feed := range e.feeds {
		wg.Go(func() {
			if errs[i] = feed.Run(ctx); errs[i] != nil {
				cancel()
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// status returns what every feed is doing.
func (e *engine) status() []bridge.Status {
	all := make([]bridge.Status, len(e.feeds))
	for i, feed := range e.feeds {
		all[i] = feed.Status()
	}
	return all
}
