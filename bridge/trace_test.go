package bridge

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"clockbridge/protime"
	"clockbridge/protime/protimetest"
)

// traced is a world whose feed makes spans.
type traced struct {
	*world
	spans *tracetest.InMemoryExporter
	ended tracetest.SpanStubs // all that were taken
}

func newTraced(t *testing.T, opts protimetest.Options, sampler sdktrace.Sampler) *traced {
	t.Helper()
	w := &traced{world: newWorld(t, startServer(t), opts), spans: tracetest.NewInMemoryExporter()}
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(w.spans), sdktrace.WithSampler(sampler))
	w.cfg.Tracer = provider.Tracer("test")
	w.reopen()
	return w
}

// take returns the spans that have ended since it was last called.
func (w *traced) take() tracetest.SpanStubs {
	spans := w.spans.GetSpans()
	w.spans.Reset()
	w.ended = append(w.ended, spans...)
	return spans
}

// rounds draws spans: a line each, those of a round indented below it, in the order in which they began. No line says again
// which tenant and collection it is about, but all spans must.
func (w *traced) rounds(spans tracetest.SpanStubs) string {
	w.t.Helper()
	slices.SortStableFunc(spans, func(a, b tracetest.SpanStub) int { return a.StartTime.Compare(b.StartTime) })
	var b strings.Builder
	for _, root := range spans {
		if root.Parent.IsValid() {
			continue
		}
		w.draw(&b, "", root)
		for _, s := range spans {
			if s.Parent.SpanID() == root.SpanContext.SpanID() {
				w.draw(&b, "  ", s)
				if s.StartTime.Before(root.StartTime) || s.EndTime.After(root.EndTime) {
					w.t.Errorf("span %s lasts from %v to %v, its round from %v to %v", s.Name, s.StartTime, s.EndTime, root.StartTime, root.EndTime)
				}
			}
		}
	}
	if got := strings.Count(b.String(), "\n"); got != len(spans) {
		w.t.Errorf("%d spans are neither rounds nor parts of one", len(spans)-got)
	}
	return b.String()
}

func (w *traced) draw(b *strings.Builder, indent string, s tracetest.SpanStub) {
	b.WriteString(indent + s.Name)
	about := ""
	for _, a := range s.Attributes {
		switch a.Key {
		case attrTenant, attrCollection:
			about += a.Value.String() + " "
		default:
			fmt.Fprintf(b, " %s=%s", strings.TrimPrefix(string(a.Key), "clockbridge."), a.Value.String())
		}
	}
	if want := w.tenant + " clockings "; about != want {
		w.t.Errorf("span %s is about %q, want %q", s.Name, about, want)
	}
	if s.Status.Code == codes.Error {
		fmt.Fprintf(b, " error=%q", strings.NewReplacer(w.tenant, "acme", strings.ToUpper(w.tenant), "ACME").Replace(s.Status.Description))
		if len(s.Events) != 1 || s.Events[0].Name != "exception" {
			w.t.Errorf("span %s has failed with the events %v, want one exception", s.Name, s.Events)
		}
	}
	b.WriteString("\n")
}

func (w *traced) want(what, want string) {
	w.t.Helper()
	want = strings.TrimPrefix(strings.ReplaceAll(want, "\n\t\t", "\n"), "\n")
	if got := w.rounds(w.take()); got != want {
		w.t.Errorf("%s: spans are\n%swant\n%s", what, got, want)
	}
}

// wantLinks fails unless each message leads to the span of its append, by the header that everybody reads.
func (w *traced) wantLinks() {
	w.t.Helper()
	appends := map[trace.SpanID]trace.TraceID{}
	for _, s := range append(w.ended, w.spans.GetSpans()...) {
		if s.Name == "append" {
			appends[s.SpanContext.SpanID()] = s.SpanContext.TraceID()
		}
	}
	for _, m := range w.messages() {
		parent := parentOf(m.header)
		if id, ok := appends[parent.SpanID()]; !ok || id != parent.TraceID() || !parent.IsSampled() {
			w.t.Errorf("message %d leads to %q, where no append was", m.seq, m.header["traceparent"])
		}
	}
}

// parentOf reads the header as a subscriber would: see README, "Traces".
func parentOf(h nats.Header) trace.SpanContext {
	carrier := propagation.MapCarrier{"traceparent": h.Get("traceparent")}
	return trace.SpanContextFromContext(propagation.TraceContext{}.Extract(context.Background(), carrier))
}

// wantNoSecrets fails if a span holds a token, or what the API's links ask with.
func (w *traced) wantNoSecrets() {
	w.t.Helper()
	text := fmt.Sprintf("%+v", append(w.ended, w.spans.GetSpans()...))
	secrets := []string{"eyJ", "Bearer", "Token="}
	for _, r := range w.sim.Requests() {
		if r.Query != "" {
			secrets = append(secrets, r.Query)
		}
	}
	for _, s := range secrets {
		if strings.Contains(text, s) {
			w.t.Errorf("a span holds %q", s)
		}
	}
}

// TestTrace: a round is a span; what it fetched, appended and committed are its parts; and its messages lead to the append.
func TestTrace(t *testing.T) {
	w := newTraced(t, protimetest.Options{PageSize: 1500}, sdktrace.AlwaysSample())
	ids := w.company(1200)
	w.step()
	w.want("first listing, and what changed since", `
		round cursor=start origin=snapshot changes=1000 position=1000
		  fetch cursor=start changes=1000
		  append changes=1000 position=1000
		  commit position=1000
		round cursor=start origin=snapshot changes=200 position=1200
		  fetch cursor=start changes=200
		  append changes=200 position=1200
		  commit position=1200
		round cursor=deltaLink origin=delta changes=1000 position=1200
		  fetch cursor=deltaLink changes=1000
		round cursor=deltaLink origin=delta changes=200 position=1200
		  fetch cursor=deltaLink changes=200
		  commit position=1200
		`)
	w.step()
	w.want("idle poll", `
		round cursor=deltaLink origin=delta changes=0 position=1200
		  fetch cursor=deltaLink changes=0
		  commit position=1200
		`)
	w.bustle(ids, 1)
	w.step()
	w.want("delta", `
		round cursor=deltaLink origin=delta changes=6 position=1206
		  fetch cursor=deltaLink changes=6
		  append changes=6 position=1206
		  commit position=1206
		`)
	w.sim.Remove("clockings", ids[20])
	w.sim.Advance(73 * time.Hour) // the delta expires, and the new one does not speak of what went before
	w.settle()
	w.want("resync", `
		round cursor=deltaLink origin=delta changes=0 position=1206 error="fetch changes: get /connector/protimeapi/api/v1/delta/clockings: 410 gone: Gone: The delta has expired, start a new one"
		  fetch cursor=deltaLink changes=0 error="fetch changes: get /connector/protimeapi/api/v1/delta/clockings: 410 gone: Gone: The delta has expired, start a new one"
		round cursor=start origin=resync changes=1000 position=1206
		  fetch cursor=start changes=1000
		  commit position=1206
		round cursor=start origin=resync changes=199 position=1206
		  fetch cursor=start changes=199
		  commit position=1206
		round cursor=deltaLink origin=delta changes=0 position=1206
		  fetch cursor=deltaLink changes=0
		  commit position=1206
		round cursor=record origin=resync changes=1 position=1207
		  fetch cursor=record changes=1
		  append changes=1 position=1207
		  commit position=1207
		round cursor=deltaLink origin=delta changes=0 position=1207
		  fetch cursor=deltaLink changes=0
		  commit position=1207
		`)
	w.loseTail(3)
	w.crash()
	w.settle()
	w.want("repair", `
		round cursor=deltaLink origin=delta changes=0 position=1207
		  fetch cursor=deltaLink changes=0
		  commit position=1207
		round cursor=record origin=repair changes=3 position=1210
		  fetch cursor=record changes=3
		  append changes=3 position=1210
		  commit position=1210
		round cursor=deltaLink origin=delta changes=0 position=1210
		  fetch cursor=deltaLink changes=0
		  commit position=1210
		`)
	w.judge()
	w.wantLinks()
	w.wantNoSecrets()

	before := len(w.messages())
	w.path = filepath.Join(t.TempDir(), "empty.db")
	w.reopen()
	w.settle()
	w.judge()
	if got := len(w.messages()); got != before {
		t.Errorf("an index that was rebuilt from messages with the header appended %d messages", got-before)
	}
}

// TestTrace_errors: what fails is a span with the error, and so is its round; what a stop breaks off is none.
func TestTrace_errors(t *testing.T) {
	w := newTraced(t, protimetest.Options{}, sdktrace.AlwaysSample())
	ids := w.company(3)
	w.settle()
	w.take()
	for _, test := range []struct {
		name string
		fail func() (heal func())
		want string
	}{
		{"fetch", func() func() { return w.sim.Fail(protimetest.Fault{Kind: protimetest.Status, Status: 503}) }, `
		round cursor=deltaLink origin=delta changes=0 position=3 error="fetch changes: get /connector/protimeapi/api/v1/delta/clockings: 503 service unavailable: ServiceUnavailable: A fault on demand"
		  fetch cursor=deltaLink changes=0 error="fetch changes: get /connector/protimeapi/api/v1/delta/clockings: 503 service unavailable: ServiceUnavailable: A fault on demand"
		`},
		{"append", func() func() {
			w.faults.set(func(int) (int, error) { return 0, errBoom }, nil)
			return w.faults.clear
		}, `
		round cursor=deltaLink origin=delta changes=1 position=4 error="append to PROTIME_ACME_CLOCKINGS: boom"
		  fetch cursor=deltaLink changes=1
		  append changes=1 position=5 error="boom"
		`},
		{"commit", func() func() {
			w.faults.set(nil, func() (bool, error) { return false, errBoom })
			return w.faults.clear
		}, `
		round cursor=deltaLink origin=delta changes=1 position=5 error="store cannot be written: commit acme/clockings: boom"
		  fetch cursor=deltaLink changes=1
		  append changes=1 position=6
		  commit position=6 error="store cannot be written: commit acme/clockings: boom"
		`},
	} {
		w.sim.Update("clockings", ids[0], map[string]any{"timeOfDayInMinutes": 1})
		heal := test.fail()
		if err := w.feed.Step(t.Context()); err == nil {
			t.Errorf("%s: step succeeded", test.name)
		}
		w.want(test.name, test.want)
		heal()
		w.settle()
		w.take()
	}
}

// TestTrace_stop: what a stop breaks off is no round, and no failure.
func TestTrace_stop(t *testing.T) {
	w := newTraced(t, protimetest.Options{}, sdktrace.AlwaysSample())
	w.company(3)
	w.settle()
	w.take()
	ctx, stop := context.WithCancel(t.Context())
	defer w.sim.Fail(protimetest.Fault{Kind: protimetest.Slow, Delay: time.Hour, Match: func(*http.Request) bool { stop(); return true }})()
	if err := w.feed.Step(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("step ended with %v, want it to be stopped", err)
	}
	w.want("stopped", "")
}

// headers are those of a message that nobody traces, but for NATS's own.
var headers = []string{"ce-changeversion", "ce-datacontenttype", "ce-id", "ce-origin", "ce-source", "ce-specversion", "ce-subject", "ce-time", "ce-type", "clockbridge-walk",
	"content-type"}

// TestTrace_header: messages lead to a span that is recorded, and carry nothing new otherwise.
func TestTrace_header(t *testing.T) {
	srv := startServer(t)
	tracer := func(s sdktrace.Sampler) trace.Tracer {
		return sdktrace.NewTracerProvider(sdktrace.WithSampler(s)).Tracer("test")
	}
	for _, test := range []struct {
		name   string
		tracer trace.Tracer
		want   []string
	}{
		{"sampled", tracer(sdktrace.AlwaysSample()), append(slices.Clone(headers), "traceparent")},
		{"not sampled", tracer(sdktrace.NeverSample()), headers},
		{"off", nil, headers},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t, srv, protimetest.Options{})
			w.cfg.Tracer = test.tracer
			w.reopen()
			w.company(1)
			ctx, span := tracer(sdktrace.AlwaysSample()).Start(t.Context(), "of the caller, and not of a round")
			defer span.End()
			if err := w.feed.Step(ctx); err != nil {
				t.Fatal(err)
			}
			for _, m := range w.messages() {
				got := slices.DeleteFunc(slices.Sorted(maps.Keys(m.header)), func(k string) bool { return strings.HasPrefix(k, "Nats-") })
				if !slices.Equal(got, test.want) {
					t.Errorf("message %d has the headers %q, want %q", m.seq, got, test.want)
				}
				if parent := parentOf(m.header); parent.SpanID() == span.SpanContext().SpanID() {
					t.Errorf("message %d leads to the caller's span", m.seq)
				}
			}
			w.judge()
		})
	}
}

// TestAppend_traceParent: every message of an append has the header, whatever its form, and none of the next one that is not traced.
func TestAppend_traceParent(t *testing.T) {
	l := newLane(t, startServer(t))
	stream, err := l.js.Stream(t.Context(), l.stream.name)
	if err != nil {
		t.Fatal(err)
	}
	ctx, span := sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.AlwaysSample())).Tracer("test").Start(t.Context(), "append")
	defer span.End()
	at := uint64(0)
	for _, form := range []form{formChain, formSingle, formBatch} {
		if form == formBatch && !l.batches {
			continue // an older server
		}
		for _, ctx := range []context.Context{ctx, t.Context()} {
			msgs := records(int(at), 3)
			if form == formSingle {
				msgs[1] = keepAside(protime.Change{Data: msgs[1].data}, "no id", OriginDelta, 100)
				msgs[1].prev = prevUnknown
			}
			if err := l.send(ctx, form, msgs, at); err != nil {
				t.Fatal(err)
			}
			want := trace.SpanContextFromContext(ctx)
			for range 3 {
				at++
				msg, err := stream.GetMsg(t.Context(), at)
				if err != nil {
					t.Fatal(err)
				}
				if got := parentOf(msg.Header); got.SpanID() != want.SpanID() || got.TraceID() != want.TraceID() || got.IsSampled() != want.IsSampled() {
					t.Errorf("%s: message %d leads to %q, want %v", form, at, msg.Header["traceparent"], want)
				}
			}
		}
	}
}
