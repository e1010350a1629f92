package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"clockbridge/protime/protimetest"
	"clockbridge/store"
)

type demoCmd struct {
	Duration time.Duration `default:"0s" help:"How long, once the first listing is walked. 0: until interrupted."`
	People   int           `default:"25" help:"People in the company."`
	Rate     float64       `default:"2" help:"Actions a second."`
	Days     int           `default:"60" help:"Days of history in the first listing."`
	Seed     uint64        `default:"1" help:"The same seed makes the same company."`
}

// demoCollections are followed side by side.
var demoCollections = []string{"clockings", "people", "absences"}

const (
	demoTenant = "demo"
	demoPoll   = 250 * time.Millisecond
)

// Run follows a simulated tenant for a while, shows what lands in the stream, and judges it.
func (c *demoCmd) Run(ctx context.Context, p *program) (err error) {
	if c.People < 1 || !rateFits(c.Rate) || c.Days < 0 || c.Duration < 0 {
		return usagef("people and rate must be more than 0, rate from 0.001 to 10000, days and duration not negative")
	}
	var closing closers
	defer func() { err = errors.Join(err, closing.close()) }()
	dir, err := os.MkdirTemp("", "clockbridge-demo-")
	if err != nil {
		return err
	}
	closing.add("remove temporary directory", func() error { return os.RemoveAll(dir) })
	log := slog.New(slog.NewTextHandler(p.stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))

	sim := protimetest.NewServer(protimetest.Options{Tenant: demoTenant, Seed: c.Seed})
	closing.add("stop simulator", func() error { sim.Close(); return nil })
	work := protimetest.NewWorkload(sim, demoTenant, protimetest.WorkloadOptions{People: c.People, Seed: c.Seed, Office: true})
	work.Backfill(c.Days)

	ns, err := demoServer(dir, log)
	if err != nil {
		return err
	}
	closing.add("stop NATS", func() error { ns.Shutdown(); ns.WaitForShutdown(); return nil })
	st, err := store.Open(filepath.Join(dir, "clockbridge.db"))
	if err != nil {
		return err
	}
	closing.add("close store", st.Close)
	cfg := &config{Tenants: []tenantConfig{{
		Name: demoTenant, ClientID: "demo", secret: func() (string, error) { return "demo", nil }, Collections: demoCollections,
		Since: lastYear, PollInterval: demoPoll, APIURL: sim.URL, AuthURL: sim.URL, UserAgent: "clockbridge-demo/1 (Demo)",
	}}}
	nc, err := connect(natsConfig{URL: ns.ClientURL()}, log)
	if err != nil {
		return err
	}
	closing.add("close NATS connection", func() error { nc.Close(); return nil })
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	e, err := newEngine(cfg, nc, st, log, nil)
	if err != nil {
		return err
	}

	show := newShow(p, work, sim)
	fmt.Fprintf(p.stdout, "A simulated tenant with %d people, %d clockings and %d absences, followed into JetStream at %s.\n",
		show.totals["people"], show.totals["clockings"], show.totals["absences"], ns.ClientURL())
	following, stopFollowing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopFollowing()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() {
		ended <- e.run(following)
		stop() // nothing lands any more
	}()

	watching, err := show.watch(ctx, following, js)
	if err != nil {
		stopFollowing()
		if failed := <-ended; failed != nil {
			return failed
		}
		if errors.Is(err, context.Canceled) { // interrupted before anything landed
			return nil
		}
		return err
	}
	walked := waitDone(ctx, show.listed) == nil
	if walked {
		show.subscribeHint(ns.ClientURL())
		c.live(ctx, show)
		if len(ended) == 0 {
			show.settle(10 * time.Second) // what was changed last is still on its way
		}
	}
	stopFollowing()
	<-watching
	if err := <-ended; err != nil {
		return err
	}
	return show.summary(js, walked)
}

// live lets the company work until ctx or the duration ends.
func (c *demoCmd) live(ctx context.Context, show *show) {
	if c.Duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.Duration)
		defer cancel()
	}
	work(ctx, c.Rate, show.step)
}

func waitDone(ctx context.Context, done <-chan struct{}) error {
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// demoServer starts NATS on its usual port, or on another if that is taken.
func demoServer(dir string, log *slog.Logger) (*server.Server, error) {
	ns, err := startEmbedded(dir, natsPort, log)
	if err != nil {
		ns, err = startEmbedded(dir, -1, log)
	}
	return ns, err
}
