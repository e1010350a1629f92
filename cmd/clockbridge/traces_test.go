package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"clockbridge/protime/protimetest"
)

// collector takes spans by OTLP.
type collector struct {
	collectorpb.UnimplementedTraceServiceServer
	address string // of both protocols' servers; the scheme is http

	mu      sync.Mutex
	headers []string // the values of "authorization" that were sent
	spans   map[string]*tracepb.Span
	about   map[string]string // attributes of the resource
	raw     []byte
}

// newCollector serves http/protobuf; answer, if not nil, is what it does first, and says whether to go on.
func newCollector(t *testing.T, answer func(http.ResponseWriter, *http.Request) bool) *collector {
	t.Helper()
	c := &collector{spans: map[string]*tracepb.Span{}, about: map[string]string{}}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if answer != nil && !answer(w, r) {
			return
		}
		body, err := io.ReadAll(r.Body)
		request := new(collectorpb.ExportTraceServiceRequest)
		if err == nil {
			err = proto.Unmarshal(body, request)
		}
		if err != nil || r.URL.Path != "/v1/traces" {
			t.Errorf("collector was sent %s %s: %v", r.Method, r.URL, err)
		}
		c.take(request, r.Header.Get("Authorization"))
	}))
	t.Cleanup(s.Close)
	c.address = s.URL
	return c
}

// newGRPCCollector serves grpc.
func newGRPCCollector(t *testing.T) *collector {
	t.Helper()
	c := &collector{spans: map[string]*tracepb.Span{}, about: map[string]string{}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	collectorpb.RegisterTraceServiceServer(s, c)
	go s.Serve(l)
	t.Cleanup(s.Stop)
	c.address = "http://" + l.Addr().String()
	return c
}

func (c *collector) Export(ctx context.Context, r *collectorpb.ExportTraceServiceRequest) (*collectorpb.ExportTraceServiceResponse, error) {
	c.take(r, strings.Join(metadata.ValueFromIncomingContext(ctx, "authorization"), ","))
	return new(collectorpb.ExportTraceServiceResponse), nil
}

func (c *collector) take(r *collectorpb.ExportTraceServiceRequest, authorization string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.headers = append(c.headers, authorization)
	c.raw = fmt.Append(c.raw, r)
	for _, of := range r.ResourceSpans {
		for _, a := range of.Resource.Attributes {
			c.about[a.Key] = a.Value.GetStringValue()
		}
		for _, scope := range of.ScopeSpans {
			for _, s := range scope.Spans {
				c.spans[hex.EncodeToString(s.SpanId)] = s
			}
		}
	}
}

// bridgeProcess is the program itself, which follows a simulated tenant.
type bridgeProcess struct {
	t     *testing.T
	cmd   *exec.Cmd
	log   *logBuffer
	sim   *protimetest.Server
	js    jetstream.JetStream
	ended chan error
}

// startBridge starts clockbridge run with a collector's address and more of the environment.
func startBridge(t *testing.T, env ...string) *bridgeProcess {
	t.Helper()
	noEnvironment(t)
	b := &bridgeProcess{t: t, log: new(logBuffer), ended: make(chan error, 1)}
	b.sim = protimetest.NewServer(protimetest.Options{Tenant: "acme", ClientSecret: secret})
	t.Cleanup(b.sim.Close)
	b.insert()
	ns := startWith(t, server.Options{JetStream: true, StoreDir: t.TempDir()})
	nc, err := nats.Connect(ns.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	if b.js, err = jetstream.New(nc); err != nil {
		t.Fatal(err)
	}
	b.cmd = exec.Command("clockbridge", "run", "--log-format", "json", "--http-addr", "127.0.0.1:0", "--data-dir", filepath.Join(t.TempDir(), "data"))
	b.cmd.Env = append(append(os.Environ(), "PROTIME_TENANT=acme", "PROTIME_CLIENT_ID=demo", "PROTIME_CLIENT_SECRET="+secret, "PROTIME_POLL_INTERVAL=20ms",
		"PROTIME_API_URL="+b.sim.URL, "PROTIME_AUTH_URL="+b.sim.URL, "NATS_URL="+ns.ClientURL()), env...)
	b.cmd.Stdout, b.cmd.Stderr = b.log, b.log
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { b.ended <- b.cmd.Wait() }()
	t.Cleanup(func() { b.cmd.Process.Kill() })
	b.waitLog(`"msg":"feed follows"`)
	return b
}

func (b *bridgeProcess) insert() {
	b.sim.Insert("clockings", map[string]any{"person": map[string]any{"id": 1}, "date": time.Now().UTC().Format(time.DateOnly), "timeOfDayInMinutes": 510, "kind": "InOut"})
}

func (b *bridgeProcess) waitLog(pattern string) {
	b.t.Helper()
	re := regexp.MustCompile(pattern)
	if !poll(20*time.Second, func() bool { return re.MatchString(b.log.String()) }) {
		b.t.Fatalf("waited 20 s for %q in\n%s", pattern, b.log)
	}
}

// stop ends the process as an operator would, and returns how long that took.
func (b *bridgeProcess) stop() time.Duration {
	b.t.Helper()
	began := time.Now()
	b.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-b.ended:
		if err != nil {
			b.t.Errorf("ended with %v\n%s", err, b.log)
		}
	case <-time.After(15 * time.Second):
		b.t.Fatalf("has not ended\n%s", b.log)
	}
	return time.Since(began)
}

// messages waits until the stream holds n messages, and returns their headers.
func (b *bridgeProcess) messages(n uint64) (headers []nats.Header) {
	b.t.Helper()
	ctx := b.t.Context()
	var s jetstream.Stream
	if !poll(20*time.Second, func() bool {
		var err error
		s, err = b.js.Stream(ctx, "PROTIME_ACME_CLOCKINGS")
		return err == nil && s.CachedInfo().State.LastSeq >= n
	}) {
		b.t.Fatalf("waited 20 s for message %d\n%s", n, b.log)
	}
	for seq := range n {
		m, err := s.GetMsg(ctx, seq+1)
		if err != nil {
			b.t.Fatal(err)
		}
		headers = append(headers, m.Header)
	}
	return headers
}

// later is for batches of spans that only the end of the process sends off.
const later = "OTEL_BSP_SCHEDULE_DELAY=3600000"

// TestTraces: by either protocol, spans that nobody has sent off yet are flushed by the end of the process; they say what they
// are about, and messages lead to them.
func TestTraces(t *testing.T) {
	for protocol, c := range map[string]*collector{"": newCollector(t, nil), "http/protobuf": newCollector(t, nil), "grpc": newGRPCCollector(t)} {
		t.Run(protocol, func(t *testing.T) {
			b := startBridge(t, "OTEL_EXPORTER_OTLP_ENDPOINT="+c.address, "OTEL_EXPORTER_OTLP_PROTOCOL="+protocol, later,
				"OTEL_EXPORTER_OTLP_HEADERS=authorization=Bearer%20"+secret, "OTEL_RESOURCE_ATTRIBUTES=deployment.environment.name=test", "OTEL_SERVICE_NAME=bridge-7")
			headers := b.messages(1)
			if took := b.stop(); took > 10*time.Second {
				t.Errorf("stopped after %v", took)
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			if len(c.headers) == 0 || c.headers[0] != "Bearer "+secret {
				t.Fatalf("%d exports, the first not authorized as the environment says", len(c.headers))
			}
			if c.about["service.name"] != "bridge-7" || c.about["deployment.environment.name"] != "test" || c.about["service.version"] == "" {
				t.Errorf("the resource is %v", c.about)
			}
			part := strings.Split(headers[0].Get("traceparent"), "-")
			if len(part) != 4 || c.spans[part[2]] == nil {
				t.Fatalf("the message leads to %q, which is none of %d spans", part, len(c.spans))
			}
			appended := c.spans[part[2]]
			round := c.spans[hex.EncodeToString(appended.ParentSpanId)]
			if appended.Name != "append" || hex.EncodeToString(appended.TraceId) != part[1] || round == nil || round.Name != "round" || len(round.ParentSpanId) > 0 {
				t.Errorf("the message leads to %v, a part of %v", appended, round)
			}
			if found := leaks(c.raw); len(found) > 0 {
				t.Errorf("exported: %q", found)
			}
			if found := leaks([]byte(b.log.String())); len(found) > 0 {
				t.Errorf("logged: %q", found)
			}
		})
	}
}

// TestTraces_off: without a word of it in the environment, or with a word against it, there are no spans and no headers.
func TestTraces_off(t *testing.T) {
	c := newCollector(t, nil)
	for name, env := range map[string][]string{
		"nothing set":  {},
		"SDK disabled": {"OTEL_EXPORTER_OTLP_ENDPOINT=" + c.address, "OTEL_SDK_DISABLED=true"},
		"no exporter":  {"OTEL_EXPORTER_OTLP_ENDPOINT=" + c.address, "OTEL_TRACES_EXPORTER=none"},
		"no sample":    {"OTEL_EXPORTER_OTLP_ENDPOINT=" + c.address, "OTEL_TRACES_SAMPLER=always_off"},
	} {
		t.Run(name, func(t *testing.T) {
			b := startBridge(t, env...)
			headers := b.messages(1)
			b.stop()
			if parent, ok := headers[0]["traceparent"]; ok {
				t.Errorf("the message leads to %q", parent)
			}
			if len(c.headers) > 0 {
				t.Errorf("%d exports", len(c.headers))
			}
		})
	}
}

// TestTraces_hangs: a collector that takes connections and never answers delays no start and no feed, and the end of the process
// by no more than tracesFlush.
func TestTraces_hangs(t *testing.T) {
	asked, release := make(chan struct{}, 100), make(chan struct{})
	c := newCollector(t, func(http.ResponseWriter, *http.Request) bool {
		asked <- struct{}{}
		<-release
		return false
	})
	defer close(release)
	b := startBridge(t, "OTEL_EXPORTER_OTLP_ENDPOINT="+c.address, "OTEL_BSP_SCHEDULE_DELAY=1", "OTEL_BSP_MAX_QUEUE_SIZE=2", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE=1")
	<-asked
	for n := range uint64(5) {
		b.insert()
		b.messages(n + 2)
	}
	if took := b.stop(); took > tracesFlush+3*time.Second {
		t.Errorf("stopped after %v, want %v at most for the collector", took, tracesFlush)
	}
	b.waitLog(`"level":"WARN","msg":"last traces not exported","error":"context deadline exceeded"`)
}

// TestTraces_trouble: a collector that refuses, and repeats what it was told, is in the log now and then, without what must not be
// there, and once each time that it takes spans again.
func TestTraces_trouble(t *testing.T) {
	var asked atomic.Int32
	c := newCollector(t, func(w http.ResponseWriter, r *http.Request) bool {
		if n := asked.Add(1); n > 20 && n != 22 {
			return true
		}
		http.Error(w, fmt.Sprint("you said ", r.Header), http.StatusUnauthorized)
		return false
	})
	b := startBridge(t, "OTEL_TRACES_EXPORTER=otlp", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT="+c.address+"/v1/traces", "OTEL_BSP_SCHEDULE_DELAY=1",
		"OTEL_TRACES_SAMPLER=nonsense", "OTEL_EXPORTER_OTLP_HEADERS=authorization=Bearer%20"+secret+",nonsense-"+secret+",x-key=%zz"+secret)
	b.waitLog(`"level":"INFO","msg":"traces exported again","attempts":20`)
	b.waitLog(`"level":"INFO","msg":"traces exported again","attempts":1}`)
	if took := b.stop(); took > 10*time.Second {
		t.Errorf("stopped after %v", took)
	}
	text := b.log.String()
	if got := strings.Count(text, `"msg":"traces not exported"`); got != 6 {
		t.Errorf("failures were logged %d times, want 6: of 20 the 1st, 2nd, 4th, 8th and 16th, and the one later on\n%s", got, text)
	}
	if found := leaks([]byte(text)); len(found) > 0 || !strings.Contains(text, "401 Unauthorized") || !strings.Contains(text, "[redacted]") {
		t.Errorf("logged: %q in\n%s", found, text)
	}
	for _, said := range []string{`"msg":"traces setting not understood","what":"parse headers"`, `"msg":"OpenTelemetry error","error":"unsupported sampler: nonsense"`} {
		if !strings.Contains(text, said) {
			t.Errorf("the log does not say %s\n%s", said, text)
		}
	}
}

// TestNewExporter_noEndpoint: OpenTelemetry's default is plain HTTP to this machine.
func TestNewExporter_noEndpoint(t *testing.T) {
	noEnvironment(t)
	e, err := newExporter(t.Context(), "http/protobuf")
	if err != nil {
		t.Fatal(err)
	}
	span := tracetest.SpanStub{Name: "round"}.Snapshot()
	err = e.ExportSpans(t.Context(), []sdktrace.ReadOnlySpan{span}) // good where a collector happens to run
	if err != nil && !strings.Contains(err.Error(), `"http://localhost:4318/v1/traces"`) {
		t.Errorf("got %v, want what speaks of http://localhost:4318/v1/traces", err)
	}
}

func TestTracesProtocol(t *testing.T) {
	for _, test := range []struct {
		env        string // NAME=VALUE, separated by spaces
		want, fail string
	}{
		{"", "", ""},
		{"OTEL_TRACES_EXPORTER=otlp", "http/protobuf", ""},
		{"OTEL_EXPORTER_OTLP_ENDPOINT=http://x:4318", "http/protobuf", ""},
		{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=https://x", "http/protobuf", ""},
		{"OTEL_EXPORTER_OTLP_PROTOCOL=grpc", "", ""},
		{"OTEL_TRACES_EXPORTER=otlp OTEL_EXPORTER_OTLP_PROTOCOL=grpc", "grpc", ""},
		{"OTEL_TRACES_EXPORTER=otlp OTEL_EXPORTER_OTLP_PROTOCOL=thrift OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=grpc", "grpc", ""},
		{"OTEL_TRACES_EXPORTER=otlp OTEL_SDK_DISABLED=TRUE", "", ""},
		{"OTEL_TRACES_EXPORTER=none OTEL_EXPORTER_OTLP_ENDPOINT=http://x:4318", "", ""},
		{"OTEL_TRACES_EXPORTER=zipkin", "", `OTEL_TRACES_EXPORTER: "zipkin": must be otlp or none`},
		{"OTEL_TRACES_EXPORTER=otlp OTEL_EXPORTER_OTLP_PROTOCOL=thrift", "", `OTEL_EXPORTER_OTLP_PROTOCOL: "thrift": must be http/protobuf or grpc`},
		{"OTEL_EXPORTER_OTLP_ENDPOINT=u:p@x:4318", "", "OTEL_EXPORTER_OTLP_ENDPOINT: must be a URL such as http://localhost:4318"},
		{"OTEL_EXPORTER_OTLP_ENDPOINT=http://x OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=localhost:4317", "", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: must be a URL such as http://localhost:4318"},
	} {
		t.Run(test.env, func(t *testing.T) {
			noEnvironment(t)
			for _, v := range strings.Fields(test.env) {
				name, value, _ := strings.Cut(v, "=")
				t.Setenv(name, value)
			}
			got, err := tracesProtocol()
			switch {
			case test.fail == "" && (err != nil || got != test.want):
				t.Errorf("got %q, %v, want %q", got, err, test.want)
			case test.fail != "" && (err == nil || err.Error() != test.fail):
				t.Errorf("got %q, %v, want the error %s", got, err, test.fail)
			}
		})
	}
}
