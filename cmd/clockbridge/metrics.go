package main

import (
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"clockbridge/bridge"
)

// newRegistry holds all that GET /metrics shows: the program, the process, and the feeds that the engine has at the moment.
func newRegistry(version string, e *engine) *prometheus.Registry {
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "clockbridge_build_info", Help: "1, with the version of the program and of the Go that built it.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": runtime.Version()},
	})
	build.Set(1)
	registry := prometheus.NewRegistry()
	registry.MustRegister(build, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		bridge.NewCollector(func() []*bridge.Feed { return feedsOf(e.all()) }))
	return registry
}
