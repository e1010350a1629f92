package bridge

import (
	"context"
	"slices"
	"time"

	attr "go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"clockbridge/store"
)

// Attributes of spans. None of them holds a cursor, which is as good as a key to the tenant's data.
const (
	attrTenant     = attr.Key("clockbridge.tenant")
	attrCollection = attr.Key("clockbridge.collection")
	attrCursor     = attr.Key("clockbridge.cursor")   // kind of what was asked for: see cursorKind
	attrOrigin     = attr.Key("clockbridge.origin")   // of the changes, as in their messages
	attrChanges    = attr.Key("clockbridge.changes")  // how many were fetched, or are appended
	attrPosition   = attr.Key("clockbridge.position") // of the last message
)

// cursorRecord is the kind of cursor of a round that asked for records one by one, with no cursor at all.
const cursorRecord = "record"

// cursorKind says what a checkpoint goes on with: "start" of a delta, a "nextLink" of a walk, or a "deltaLink".
func cursorKind(at store.Checkpoint) string {
	switch {
	case at.Cursor == "":
		return "start"
	case at.Origin == OriginDelta:
		return "deltaLink"
	}
	return "nextLink"
}

// tracing makes the spans of a feed: one for each round, and below it one for each fetch, append and commit. It is for the
// goroutine that calls Step. Without a tracer it makes none.
type tracing struct {
	tracer trace.Tracer    // nil = none
	feed   []attr.KeyValue // what every span says
	round  trace.Span      // in hand; nil = none
}

func newTracing(cfg Config) tracing {
	return tracing{tracer: cfg.Tracer, feed: []attr.KeyValue{attrTenant.String(cfg.Tenant), attrCollection.String(cfg.Collection)}}
}

// begin starts the span of a round when what it fetched is in hand, or could not be had; the round itself began when it was
// waited for. What was broken off because the feed is told to stop is no round.
func (t *tracing) begin(ctx context.Context, since time.Time, cursor, origin string, changes int, err error) {
	if t.tracer == nil || err != nil && ctx.Err() != nil {
		return
	}
	ctx, t.round = t.tracer.Start(ctx, "round", trace.WithTimestamp(since),
		t.attributes(attrCursor.String(cursor), attrOrigin.String(origin), attrChanges.Int(changes)))
	_, fetch := t.tracer.Start(ctx, "fetch", trace.WithTimestamp(since), trace.WithSpanKind(trace.SpanKindClient),
		t.attributes(attrCursor.String(cursor), attrChanges.Int(changes)))
	finish(fetch, err)
}

// end ends the round in hand, if there is one.
func (t *tracing) end(position uint64, err error) {
	if t.round == nil {
		return
	}
	t.round.SetAttributes(attrPosition.Int64(int64(position))) //nolint:gosec // a stream is not that long
	finish(t.round, err)
	t.round = nil
}

// append starts the span of an append that is to end at a position. Its messages lead to it.
func (t *tracing) append(changes int, position uint64) trace.Span {
	return t.below("append", trace.SpanKindProducer, attrChanges.Int(changes), attrPosition.Int64(int64(position))) //nolint:gosec // as in end
}

// commit starts the span of a commit of a checkpoint at a position.
func (t *tracing) commit(position uint64) trace.Span {
	return t.below("commit", trace.SpanKindInternal, attrPosition.Int64(int64(position))) //nolint:gosec // as in end
}

// below starts a span of the round in hand. Outside of one, as when a feed catches up, it records nothing.
func (t *tracing) below(name string, kind trace.SpanKind, attrs ...attr.KeyValue) trace.Span {
	if t.round == nil {
		return noop.Span{}
	}
	_, span := t.tracer.Start(trace.ContextWithSpan(context.Background(), t.round), name, trace.WithSpanKind(kind), t.attributes(attrs...))
	return span
}

func (t *tracing) attributes(more ...attr.KeyValue) trace.SpanStartEventOption {
	return trace.WithAttributes(append(slices.Clip(t.feed), more...)...)
}

// finish ends a span, with what failed. The texts of errors hold no secrets: the log shows the same.
func finish(span trace.Span, err error) {
	if err != nil {
		span.RecordError(err)
		span.SetStatus(codes.Error, err.Error())
	}
	span.End()
}

// traceParent is the header that leads to the span of ctx, nil if that is not recorded.
func traceParent(ctx context.Context) []string {
	if !trace.SpanContextFromContext(ctx).IsSampled() {
		return nil
	}
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	return []string{carrier[headerTraceParent]}
}
