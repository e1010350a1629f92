package main

import (
	"bytes"
	"context"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"clockbridge/bridge"
	"clockbridge/protime/protimetest"
)

// verdict counts what a stream is, and what it should not be.
type verdict struct {
	changes    int
	duplicates int // the same version of a record once more, wherever it stands
	disorder   int // an older version behind a newer one
	missing    int // records whose last message is not the API's present state
}

// exact reports whether the stream is what clockbridge promises.
func (v verdict) exact() bool { return v.duplicates+v.disorder+v.missing == 0 }

// with adds up two streams.
func (v verdict) with(w verdict) verdict {
	return verdict{v.changes + w.changes, v.duplicates + w.duplicates, v.disorder + w.disorder, v.missing + w.missing}
}

// published is what one message says of a record.
type published struct {
	id, version string
	deleted     bool
	erased      bool // the deletion is none of the API's: a person was forgotten
	data        []byte
}

// is reports whether m, where there is one, is the state of record r. Of a record that came and went between two polls the API tells
// nothing.
func (m published) is(r protimetest.Record, known bool) bool {
	if r.Removed {
		return !known || m.deleted
	}
	if m.erased {
		return m.version == r.Version
	}
	return known && !m.deleted && m.version == r.Version && bytes.Equal(m.data, r.Data)
}

// judgement reads a stream from its first message to its last.
type judgement struct {
	verdict
	once map[publishedOnce]bool
	last map[string]published
}

type publishedOnce struct {
	id, version string
	deleted     bool
	erased      bool
}

func newJudgement() *judgement {
	return &judgement{once: map[publishedOnce]bool{}, last: map[string]published{}}
}

func (j *judgement) add(m published) {
	j.changes++
	this := publishedOnce{m.id, m.version, m.deleted, m.erased}
	was, known := j.last[m.id]
	switch {
	case j.once[this]:
		j.duplicates++
	case known && m.version < was.version, known && m.version == was.version && was.deleted && !m.erased:
		j.disorder++
	}
	j.once[this] = true
	j.last[m.id] = m
}

// hold compares the last message of every record with the API's truth.
func (j *judgement) hold(truth map[string]protimetest.Record) verdict {
	v := j.verdict
	for id, r := range truth {
		if last, known := j.last[id]; !last.is(r, known) {
			v.missing++
		}
	}
	return v
}

// judge reads a whole stream as a subscriber would and holds it against the API's truth.
func judge(ctx context.Context, js jetstream.JetStream, stream string, truth map[string]protimetest.Record) (verdict, error) {
	j := newJudgement()
	s, err := js.Stream(ctx, stream)
	if err != nil {
		return verdict{}, err
	}
	left := s.CachedInfo().State.Msgs
	if left == 0 {
		return j.hold(truth), nil
	}
	consumer, err := js.OrderedConsumer(ctx, stream, jetstream.OrderedConsumerConfig{
		DeliverPolicy: jetstream.DeliverAllPolicy, InactiveThreshold: 30 * time.Second, // not the usual five minutes: one may judge often
	})
	if err != nil {
		return verdict{}, err
	}
	msgs, err := consumer.Messages(jetstream.PullHeartbeat(time.Second)) // in a cluster a first request may be lost
	if err != nil {
		return verdict{}, err
	}
	defer msgs.Stop()
	for ; left > 0; left-- {
		msg, err := msgs.Next(jetstream.NextMaxWait(10 * time.Second))
		if err != nil {
			return verdict{}, err
		}
		j.add(read(msg))
	}
	return j.hold(truth), nil
}

func read(msg jetstream.Msg) published {
	h := msg.Headers()
	return published{
		id: h.Get("ce-subject"), version: h.Get("ce-changeversion"), deleted: strings.HasSuffix(h.Get("ce-type"), ".deleted"),
		erased: h.Get("ce-origin") == bridge.OriginErasure, data: msg.Data(),
	}
}
