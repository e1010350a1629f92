package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// httpSettings say where an instance serves its status page, and where it is asked for its health.
type httpSettings struct {
	HTTPAddr string `name:"http-addr" env:"CLOCKBRIDGE_HTTP_ADDR" placeholder:"ADDR" help:"Status page, health and metrics. Default: 127.0.0.1:8080."`
}

// addr is the address that flag or variable, the file or nobody names.
func (s *httpSettings) addr(file string) string { return cmp.Or(s.HTTPAddr, file, defaultHTTPAddr) }

// healthTimeout is how long a process that works may take to say so.
const healthTimeout = 3 * time.Second

// health asks the instance on this machine whether its process works, and prints what it says on one line. It looks at nothing but the
// address: neither a configuration that was edited since the start nor NATS makes a process ill that runs.
func (c *statusCmd) health(ctx context.Context, p *program) error {
	file := new(config)
	if c.HTTPAddr == "" {
		var err error
		if file, err = readConfig(c.Config); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	// An address without a host, such as :8080, leads to this machine.
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.addr(file.HTTPAddr)+"/healthz", nil)
	if err != nil {
		return fmt.Errorf("ask for health: %w", err)
	}
	// No proxy lies between an instance and itself.
	resp, err := (&http.Transport{}).RoundTrip(req)
	if err != nil {
		return fmt.Errorf("ask for health at %s: %w", req.URL, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	if err != nil {
		return fmt.Errorf("ask for health at %s: %w", req.URL, err)
	}
	said := oneLine(strings.TrimSpace(string(body)))
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("not healthy: %s: %s", resp.Status, said)
	}
	fmt.Fprintln(p.stdout, said)
	return nil
}
