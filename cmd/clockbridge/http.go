package main

import (
	"encoding/json"
	"fmt"
	"html/template"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"clockbridge/bridge"
)

// statusPage is what GET /status.json answers.
type statusPage struct {
	Version string          `json:"version"`
	Ready   bool            `json:"ready"` // every feed is
	Feeds   []bridge.Status `json:"feeds"`
}

// statuses are what the feeds are doing; *engine knows.
type statuses interface{ status() []bridge.Status }

// serveHTTP starts the read-only HTTP server: a status page, health, readiness and metrics. The function that it returns
// ends it.
func serveHTTP(addr, version string, e statuses, metrics prometheus.Gatherer) (url string, stop func() error, err error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return "", nil, fmt.Errorf("serve status page: %w; choose another address with CLOCKBRIDGE_HTTP_ADDR", err)
	}
	server := &http.Server{
		Handler:     statusHandler(version, e, metrics),
		ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute,
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.Serve(l) //nolint:errcheck // it ends with Close
	}()
	return "http://" + l.Addr().String(), func() error {
		err := server.Close()
		<-done
		return err
	}, nil
}

func statusHandler(version string, e statuses, metrics prometheus.Gatherer) http.Handler {
	page := func() statusPage {
		p := statusPage{Version: version, Ready: true, Feeds: e.status()}
		for _, f := range p.Feeds {
			p.Ready = p.Ready && f.Ready()
		}
		return p
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		p := page()
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if !p.Ready {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		for _, f := range p.Feeds {
			fmt.Fprintf(w, "%s/%s %s", f.Tenant, f.Collection, f.State)
			if f.Error != "" {
				fmt.Fprintf(w, ": %s", strings.ReplaceAll(f.Error, "\n", "; "))
			}
			if f.Advice != "" {
				fmt.Fprintf(w, " (%s)", f.Advice)
			}
			fmt.Fprintln(w)
		}
	})
	mux.HandleFunc("GET /status.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		encoder.Encode(page()) //nolint:errcheck // the client is gone
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		statusTemplate.Execute(w, page()) //nolint:errcheck // the client is gone
	})
	return mux
}

var statusTemplate = template.Must(template.New("status").Parse(`<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="refresh" content="5">
<title>clockbridge</title>
<style>
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #8886; vertical-align: top }
</style>
</head>
<body>
<h1>clockbridge</h1>
<p>{{if .Ready}}Every feed is healthy.{{else}}Not every feed is healthy.{{end}}</p>
<table>
<tr><th>Feed</th><th>State</th><th>Reads</th><th>Position</th><th>Last change</th><th>Last answer</th><th>Verified</th></tr>
{{range .Feeds}}<tr>
<td>{{.Tenant}}/{{.Collection}}</td>
<td>{{.State}}{{with .Error}}<br>{{.}}{{end}}{{with .Advice}}<br>{{.}}{{end}}</td>
<td>{{.Phase}}</td>
<td>{{.Position}}</td>
<td>{{if .ChangedAt.IsZero}}none yet{{else}}{{.ChangedAt.Format "2006-01-02 15:04:05"}}{{end}}</td>
<td>{{if .FetchedAt.IsZero}}none yet{{else}}{{.FetchedAt.Format "2006-01-02 15:04:05"}}{{end}}</td>
<td>{{with .LastVerify}}{{.At.Format "2006-01-02 15:04:05"}}<br>{{if .Error}}{{.Error}}{{else if .Differs}}missing {{.Missing}}, stale {{.Stale}}, phantom {{.Phantom}}, ahead {{.Ahead}}{{with .Unchecked}}, unchecked {{.}}{{end}}{{else}}exact{{end}}{{else}}not yet{{end}}</td>
</tr>{{end}}
</table>
<p>Version {{.Version}}. Times are UTC. Also: <a href="/status.json">status.json</a>, <a href="/metrics">metrics</a>, <a href="/readyz">readyz</a>.</p>
</body>
</html>
`))
