package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/trace"

	"clockbridge/bridge"
	"clockbridge/protime"
)

// engine runs the feeds of a configuration side by side, those of which no other instance holds the lease. They share a
// connection and a store, and nothing else: one that fails delays no other.
type engine struct {
	nc      *nats.Conn
	store   feedStore
	log     *slog.Logger
	tracer  trace.Tracer
	fleet   *bridge.Fleet
	dataDir string // whatever a reload says: another one needs a restart
	data    bool   // is shown on the status page

	mu    sync.Mutex
	feeds []engineFeed
	ended error // what ended run; nil while it runs, and before
}

// engineFeed is a feed and what it was made of.
type engineFeed struct {
	*bridge.Feed
	tenant     tenantConfig
	collection string
	replicas   int
	limits     bridge.Limits
}

// feedStore is what feeds and fleet need of a store; *store.Store is one.
type feedStore interface {
	bridge.Store
	bridge.MemberStore
}

func newEngine(c *config, nc *nats.Conn, st feedStore, log *slog.Logger, tracer trace.Tracer) (*engine, error) {
	fleet, err := bridge.NewFleet(bridge.FleetConfig{NATS: nc, Store: st, Heartbeat: c.heartbeat, Replicas: c.NATS.Replicas, Logger: log})
	if err != nil {
		return nil, usageError{err}
	}
	e := &engine{nc: nc, store: st, log: log, tracer: tracer, fleet: fleet, dataDir: c.DataDir, data: c.ShowData}
	if e.feeds, err = e.make(c); err != nil {
		return nil, err
	}
	return e, nil
}

// make returns the feeds of a configuration: those that there are, where nothing about them has changed, and new ones.
func (e *engine) make(c *config) ([]engineFeed, error) {
	var feeds []engineFeed
	for _, t := range c.Tenants {
		for _, collection := range t.Collections {
			if i := slices.IndexFunc(e.feeds, func(f engineFeed) bool { return f.is(t, collection, c.NATS) }); i >= 0 {
				feeds = append(feeds, e.feeds[i])
				continue
			}
			metrics := bridge.NewMetrics(t.Name, collection)
			observe := func(x protime.Exchange) { metrics.Requested(x.Token, x.Status, x.Took) }
			client, err := t.observedClient(observe, protime.ReadScope(collection))
			if err != nil {
				return nil, usageError{fmt.Errorf("tenant %s: %w", t.Name, err)}
			}
			feed, err := bridge.NewFeed(bridge.Config{
				Tenant: t.Name, Collection: collection, Filter: t.filterFor(collection), Source: client, Store: e.store, NATS: e.nc,
				PollInterval: t.PollInterval, Replicas: c.NATS.Replicas, Limits: c.NATS.limits, Logger: e.log, Metrics: metrics, Tracer: e.tracer,
				VerifyEvery: t.VerifyEvery, VerifyDir: e.dataDir, KeepData: e.data, Privacy: t.privacy,
			})
			if err != nil {
				return nil, usageError{err}
			}
			feeds = append(feeds, engineFeed{feed, t, collection, c.NATS.Replicas, c.NATS.limits})
		}
	}
	return feeds, nil
}

// is reports whether the feed is what these settings would make. A secret's file is read for every token, so what stands in it is
// no part of them.
func (f engineFeed) is(t tenantConfig, collection string, of natsConfig) bool {
	was := f.tenant
	was.secret, t.secret = nil, nil
	was.Collections, t.Collections = nil, nil
	filter, own := t.Filters[collection] // those of the others do not matter to it
	if wasFilter, wasOwn := was.Filters[collection]; filter != wasFilter || own != wasOwn {
		return false
	}
	was.Filters, t.Filters = nil, nil
	return f.collection == collection && f.replicas == of.Replicas && f.limits == of.limits && reflect.DeepEqual(was, t)
}

// run follows every feed until ctx ends, or until one meets an error that ends the process; then all have ended.
func (e *engine) run(ctx context.Context) error {
	err := e.fleet.Run(ctx, feedsOf(e.all()))
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ended = err; err == nil {
		e.ended = errStopped
	}
	return err
}

var errStopped = errors.New("stopped")

// reload follows what another configuration says, and leaves alone what both say. Feeds that are not well are tried at once:
// a secret may have been put right.
func (e *engine) reload(c *config) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	feeds, err := e.make(c)
	if err != nil {
		return err
	}
	for _, f := range feeds {
		if !f.Status().Ready() {
			f.Sync()
		}
	}
	e.feeds = feeds
	e.fleet.Follow(feedsOf(feeds))
	return nil
}

func (e *engine) all() []engineFeed {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.feeds
}

func feedsOf(feeds []engineFeed) []*bridge.Feed {
	all := make([]*bridge.Feed, len(feeds))
	for i, f := range feeds {
		all[i] = f.Feed
	}
	return all
}

// engineState is what an engine is doing at one moment.
type engineState struct {
	feeds  []feedState
	nats   string // the connection, in one word; natsConnected = all is well with it
	broken error  // why the process has to be started again; nil = it works
}

type feedState struct {
	bridge.Status
	recent bridge.Recent
}

const natsConnected = "connected"

func (e *engine) state() engineState {
	s := engineState{nats: strings.ToLower(e.nc.Status().String()), broken: e.works()}
	for _, feed := range e.all() {
		s.feeds = append(s.feeds, feedState{feed.Status(), feed.Recent()})
	}
	return s
}

// works returns why the process cannot do its work and has to be started again, nil if it can. That NATS or the API is away is no
// such reason: it goes on when they are back.
func (e *engine) works() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.ended != nil:
		return fmt.Errorf("no feed is followed any more: %w", e.ended)
	case e.nc.IsClosed():
		return errors.New("the NATS connection was closed for good")
	}
	for _, feed := range e.feeds {
		if s := feed.Status(); s.State == bridge.StateStopped {
			return fmt.Errorf("%s/%s has stopped: %s", s.Tenant, s.Collection, s.Error)
		}
	}
	return nil
}
