//go:build torture

package main

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
)

// wire is a network connection that can be cut, made to swallow what it carries, or slowed down.
type wire struct {
	t     *testing.T
	proxy *toxiproxy.Proxy
	ill   []string // toxics in force
}

// toxiproxy has a logger of its own beside the one it is given.
func init() { zerolog.SetGlobalLevel(zerolog.Disabled) }

var proxies = toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())

func newWire(t *testing.T, upstream string) *wire {
	t.Helper()
	w := &wire{t: t, proxy: toxiproxy.NewProxy(proxies, upstream, fmt.Sprintf("127.0.0.1:%d", freePort(t)), upstream)} // it is restored there
	if err := w.proxy.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.proxy.Stop)
	return w
}

// addr is where the wire begins.
func (w *wire) addr() string { return w.proxy.Listen }

// cut ends every connection, and refuses new ones.
func (w *wire) cut() { w.proxy.Stop() }

// swallow lets connections be, and loses everything that is sent either way.
func (w *wire) swallow() { w.toxic("timeout", `{"timeout": 0}`, "upstream", "downstream") }

// deafen loses what is sent back: requests arrive, answers do not.
func (w *wire) deafen() { w.toxic("timeout", `{"timeout": 0}`, "downstream") }

// slow delays everything, by up to twice latency milliseconds each way.
func (w *wire) slow(latency int) {
	w.toxic("latency", fmt.Sprintf(`{"latency": %d, "jitter": %d}`, latency, latency), "upstream", "downstream")
}

// narrow lets through so many KiB a second.
func (w *wire) narrow(rate int) {
	w.toxic("bandwidth", fmt.Sprintf(`{"rate": %d}`, rate), "upstream", "downstream")
}

// tear ends each connection after so many bytes.
func (w *wire) tear(after int) {
	w.toxic("limit_data", fmt.Sprintf(`{"bytes": %d}`, after), "upstream", "downstream")
}

func (w *wire) toxic(kind, attributes string, directions ...string) {
	w.t.Helper()
	for _, direction := range directions {
		name := kind + "_" + direction
		text := fmt.Sprintf(`{"name": %q, "type": %q, "stream": %q, "attributes": %s}`, name, kind, direction, attributes)
		if _, err := w.proxy.Toxics.AddToxicJson(strings.NewReader(text)); err != nil {
			w.t.Fatalf("toxic %s: %v", name, err)
		}
		w.ill = append(w.ill, name)
	}
}

// heal makes a good wire of it again. Connections that lost something are closed.
func (w *wire) heal() {
	w.t.Helper()
	for _, name := range w.ill {
		if err := w.proxy.Toxics.RemoveToxic(context.Background(), name); err != nil {
			w.t.Fatalf("remove toxic %s: %v", name, err)
		}
	}
	w.ill = nil
	if !w.proxy.Enabled {
		if err := w.proxy.Start(); err != nil {
			w.t.Fatalf("restore wire: %v", err)
		}
	}
}
