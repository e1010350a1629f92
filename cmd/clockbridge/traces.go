package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math/bits"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// tracesFlush is how long the end of the process waits for the last spans to be taken.
const tracesFlush = 2 * time.Second

// tracesProtocol is how spans are exported: as OpenTelemetry's environment variables ask for, or "" where they ask for none. The
// SDK reads the rest of them, but leaves these to its users.
func tracesProtocol() (string, error) {
	exporter := os.Getenv("OTEL_TRACES_EXPORTER")
	variable, endpoint := firstOf("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
	switch {
	case strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true"), exporter == "none", exporter == "" && endpoint == "":
		return "", nil
	case exporter != "" && exporter != "otlp":
		return "", fmt.Errorf("OTEL_TRACES_EXPORTER: %q: must be otlp or none", exporter)
	}
	if u, err := url.Parse(endpoint); endpoint != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "") {
		return "", fmt.Errorf("%s: must be a URL such as http://localhost:4318", variable)
	}
	variable, protocol := firstOf("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
	switch protocol {
	case "":
		return "http/protobuf", nil
	case "http/protobuf", "grpc":
		return protocol, nil
	}
	return "", fmt.Errorf("%s: %q: must be http/protobuf or grpc", variable, protocol)
}

// firstOf returns the first of the variables that is set, and its value.
func firstOf(variables ...string) (variable, value string) {
	for _, v := range variables {
		if value := os.Getenv(v); value != "" {
			return v, value
		}
	}
	return "", ""
}

// startTraces returns what makes the spans of the feeds, nil where the environment asks for none, and what ends it. A collector that
// is down or does not answer is waited for by nobody but stop, and there for no longer than tracesFlush.
func startTraces(version string, log *slog.Logger) (tracer trace.Tracer, stop func() error, err error) {
	protocol, err := tracesProtocol()
	if err != nil {
		return nil, nil, usageError{err}
	}
	if protocol == "" {
		return nil, func() error { return nil }, nil
	}
	hide := hideHeaders()
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("OpenTelemetry error", "error", hide(err)) }))
	otel.SetLogger(logr.New(sdkLog{log}))
	ctx := context.Background()
	exporter, err := newExporter(ctx, protocol)
	if err != nil {
		return nil, nil, usageError{fmt.Errorf("export traces: %s", hide(err))}
	}
	about, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithHost(),
		resource.WithAttributes(attribute.String("service.name", "clockbridge"), attribute.String("service.version", version)),
		resource.WithFromEnv())
	if err != nil {
		otel.Handle(err) // what could be read is there
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithResource(about), sdktrace.WithBatcher(&loggedExporter{exporter, log, hide, 0}))
	log.Info("traces are exported", "protocol", protocol)
	return provider.Tracer("clockbridge", trace.WithInstrumentationVersion(version)), func() error {
		ctx, cancel := context.WithTimeout(ctx, tracesFlush)
		defer cancel()
		if err := provider.Shutdown(ctx); err != nil {
			log.Warn("last traces not exported", "error", hide(err))
		}
		return nil // which is no failure of what the process is for
	}, nil
}

func newExporter(ctx context.Context, protocol string) (sdktrace.SpanExporter, error) {
	_, endpoint := firstOf("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
	if protocol == "grpc" {
		var options []otlptracegrpc.Option
		if endpoint == "" {
			options = append(options, otlptracegrpc.WithInsecure()) // OpenTelemetry's default is http://localhost:4317, the SDK's is TLS
		}
		return otlptracegrpc.New(ctx, options...)
	}
	var options []otlptracehttp.Option
	if endpoint == "" {
		options = append(options, otlptracehttp.WithInsecure()) // likewise, http://localhost:4318
	}
	return otlptracehttp.New(ctx, options...)
}

// loggedExporter says in the log that spans cannot be exported: when that begins, then sparsely, and when it is over.
type loggedExporter struct {
	sdktrace.SpanExporter
	log    *slog.Logger
	hide   func(error) string
	failed int // batches in a row
}

func (e *loggedExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := e.SpanExporter.ExportSpans(ctx, spans)
	switch {
	case err != nil:
		if e.failed++; bits.OnesCount(uint(e.failed)) == 1 { //nolint:gosec // a count
			e.log.Warn("traces not exported", "error", e.hide(err), "attempts", e.failed, "do", "look at the collector; feeds do not wait for it, its spans are dropped")
		}
	case e.failed > 0:
		e.log.Info("traces exported again", "attempts", e.failed)
		e.failed = 0
	}
	return nil
}

// maxTraceError is how much is shown of an error, in bytes: it may hold all that a collector answers.
const maxTraceError = 500

// hideHeaders returns what shows an error without the values of headers, which are credentials more often than not.
func hideHeaders() func(error) string {
	var secrets []string
	for _, v := range []string{"OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"} {
		for pair := range strings.SplitSeq(os.Getenv(v), ",") {
			_, value, ok := strings.Cut(pair, "=")
			if !ok {
				value = pair
			}
			plain, _ := url.PathUnescape(value)
			secrets = append(append(secrets, value, plain), strings.Fields(plain)...) // the last: without "Bearer"
		}
	}
	secrets = slices.DeleteFunc(secrets, func(s string) bool { return len(s) < 4 }) // a word like that is none
	slices.SortFunc(secrets, func(a, b string) int { return cmp.Compare(len(b), len(a)) })
	pairs := make([]string, 0, 2*len(secrets))
	for _, s := range secrets {
		pairs = append(pairs, s, "[redacted]")
	}
	replacer := strings.NewReplacer(pairs...)
	return func(err error) string {
		text := replacer.Replace(err.Error())
		return strings.ToValidUTF8(text[:min(len(text), maxTraceError)], "")
	}
}

// sdkLog says what the SDK has to say of settings that it cannot read, but not what stands in them: it may be a secret.
type sdkLog struct{ log *slog.Logger }

func (l sdkLog) Init(logr.RuntimeInfo)          {}
func (l sdkLog) Enabled(int) bool               { return false } // of what is no error
func (l sdkLog) Info(int, string, ...any)       {}
func (l sdkLog) WithValues(...any) logr.LogSink { return l }
func (l sdkLog) WithName(string) logr.LogSink   { return l }

func (l sdkLog) Error(_ error, what string, _ ...any) {
	l.log.Warn("traces setting not understood", "what", what, "do", "correct the variables that begin with OTEL_EXPORTER_OTLP_")
}
