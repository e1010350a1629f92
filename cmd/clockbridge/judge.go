package main

import (
	"bytes"
	"context"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"clockbridge/protime/protimetest"
)

// verdict counts what a stream is, and what it should not be.
type verdict struct {
	changes    int
	duplicates int // the same version of a record once more
	disorder   int // an older version behind a newer one
	missing    int // records whose last message is not the API's present state
}

// judge reads a whole stream as a subscriber would and holds it against the API's truth.
func judge(ctx context.Context, js jetstream.JetStream, stream string, truth map[string]protimetest.Record) (verdict, error) {
	var v verdict
	s, err := js.Stream(ctx, stream)
	if err != nil {
		return v, err
	}
	v.changes = int(s.CachedInfo().State.Msgs)
	type state struct {
		version string
		deleted bool
		data    []byte
	}
	last := map[string]state{}
	if v.changes > 0 {
		consumer, err := js.OrderedConsumer(ctx, stream, jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverAllPolicy})
		if err != nil {
			return v, err
		}
		msgs, err := consumer.Messages()
		if err != nil {
			return v, err
		}
		defer msgs.Stop()
		for range v.changes {
			msg, err := msgs.Next(jetstream.NextMaxWait(10 * time.Second))
			if err != nil {
				return v, err
			}
			h := msg.Headers()
			id := h.Get("ce-subject")
			now := state{h.Get("ce-changeversion"), strings.HasSuffix(h.Get("ce-type"), ".deleted"), msg.Data()}
			was, known := last[id]
			switch {
			case !known, now.version > was.version, now.version == was.version && now.deleted && !was.deleted:
			case now.version == was.version && now.deleted == was.deleted:
				v.duplicates++
			default:
				v.disorder++
			}
			last[id] = now
		}
	}
	for id, r := range truth {
		l, known := last[id]
		switch {
		case r.Removed && (!known || l.deleted):
		case !r.Removed && known && !l.deleted && l.version == r.Version && bytes.Equal(l.data, r.Data):
		default:
			v.missing++
		}
	}
	return v, nil
}
