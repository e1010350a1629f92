package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"reflect"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"

	"clockbridge/bridge"
	"clockbridge/store"
)

// natsPort is where the embedded server listens unless told otherwise.
const natsPort = 4222

type runCmd struct {
	runSettings
	Resync   bool `help:"Start every delta anew once, publishing only what differs: when the stream may have missed something."`
	TrustAPI bool `name:"trust-api" help:"A resync that takes the API's present state as newer than everything published: after the vendor has restored a database, when a feed is stale."`
}

// Run follows every feed until ctx ends.
func (r *runCmd) Run(ctx context.Context, p *program) (err error) {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP) // at once and to the end: one that nobody waits for would end the process
	defer signal.Stop(hangups)
	c, err := r.load(p)
	if err != nil {
		return err
	}
	loaded := *c
	log := c.logger(p)
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400) // the heap is a few MiB whatever the size of the feed, so collecting less often costs little
	}
	var closing closers
	defer func() { err = errors.Join(err, closing.close()) }()

	tracer, stopTraces, err := startTraces(p.version, log)
	if err != nil {
		return err
	}
	closing.add("stop traces", stopTraces)
	st, err := openStore(c)
	if err != nil {
		return err
	}
	closing.add("close store", st.Close)

	if c.NATS.embedded() {
		server, err := startEmbedded(c.DataDir, c.NATS.Port, log)
		if err != nil {
			return err
		}
		closing.add("stop embedded NATS", func() error {
			server.Shutdown()
			server.WaitForShutdown()
			return nil
		})
		c.NATS.URL = server.ClientURL()
		log.Info("embedded NATS started", "url", c.NATS.URL, "dir", filepath.Join(c.DataDir, "nats"))
	}
	nc, err := connect(c.NATS, log)
	if err != nil {
		return err
	}
	closing.add("close NATS connection", func() error { nc.Close(); return nil })
	c.NATS.announce(log, nc.IsConnected())

	e, err := newEngine(c, nc, st, log, tracer)
	if err != nil {
		return err
	}
	url, stop, err := serveHTTP(c.HTTPAddr, p.version, e, newRegistry(p.version, e))
	if err != nil {
		return err
	}
	closing.add("stop status page", stop)

	for _, feed := range e.all() {
		s := feed.Status()
		log.Info("following", "tenant", s.Tenant, "collection", s.Collection, "stream", s.Stream,
			"subjects", bridge.SubjectPrefix(s.Tenant, s.Collection)+".*", "status", url)
		if r.Resync || r.TrustAPI {
			feed.Resync(r.TrustAPI)
		}
	}
	closing.add("end reloading", onHangup(hangups, func() { r.reload(p, loaded, e, log) }))
	if err := e.run(ctx); err != nil {
		return err
	}
	log.Info("stopped")
	return nil
}

// onHangup calls do at every SIGHUP, until the function that it returns is called.
func onHangup(hangups <-chan os.Signal, do func()) (stop func() error) {
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-hangups:
				do()
			case <-end:
				return
			}
		}
	}()
	return func() error {
		close(end)
		<-ended
		return nil
	}
}

// reload reads the configuration again. Tenants and collections are added, changed and removed; whatever else has changed since
// the start, as it was loaded then, needs a restart. With a configuration that is wrong, everything goes on as it was.
func (r *runCmd) reload(p *program, started config, e *engine, log *slog.Logger) {
	c, err := r.load(p)
	if err == nil {
		err = e.reload(c)
	}
	if err != nil {
		log.Error("configuration not reloaded, all goes on as before", "error", err.Error(), "do", "correct it and send SIGHUP again")
		return
	}
	now := *c
	now.Tenants, started.Tenants = nil, nil
	now.Verify, started.Verify = "", "" // it is the tenants' that do not say otherwise
	if !reflect.DeepEqual(now, started) {
		log.Warn("settings other than those of tenants have changed", "do", "restart to apply them")
	}
	log.Info("configuration reloaded", "feeds", len(e.all()))
}

// announce says where the changes go, and how to see them.
func (c *natsConfig) announce(log *slog.Logger, connected bool) {
	args := []any{"url", redact(c.URL), "subscribe", "nats --server " + redact(c.URL) + " sub 'protime.>'"}
	if c.Context != "" {
		args = []any{"context", c.Context, "subscribe", "nats --context " + c.Context + " sub 'protime.>'"}
	}
	log.Info("publishing to NATS", append(args, "connected", connected)...)
}

func storePath(c *config) string { return filepath.Join(c.DataDir, "clockbridge.db") }

// openStore opens the store in the data directory, which is made if it is missing. Of numbered ones it is the first whose store no other
// instance holds, and c names that from then on.
func openStore(c *config) (*store.Store, error) {
	name := c.DataDir
	for n := 0; ; n++ {
		c.DataDir = numbered(name, n)
		if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
			return nil, fmt.Errorf("create data directory: %w", err)
		}
		st, err := store.Open(storePath(c))
		if c.DataDir == name || !errors.Is(err, store.ErrLocked) {
			return st, err
		}
	}
}

// numbered is the n-th of the data directories that instances with the same settings choose from: %d in the name stands for n.
func numbered(name string, n int) string { return strings.ReplaceAll(name, "%d", strconv.Itoa(n)) }

// closers ends what was started, in reverse order.
type closers []func() error

func (c *closers) add(what string, end func() error) {
	*c = append(*c, func() error {
		if err := end(); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		return nil
	})
}

func (c closers) close() error {
	var errs []error
	for i := len(c) - 1; i >= 0; i-- {
		errs = append(errs, c[i]())
	}
	return errors.Join(errs...)
}
