package bridge

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nats.go/micro"

	"clockbridge/protime/protimetest"
)

// TestControl_delivered: what JetStream delivers to where a feed takes requests is none, whoever made it do so, nor is what has nobody
// to answer to. It has no effect, and no answer.
func TestControl_delivered(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	ids := w.company(5)
	holder := w.join("one", "", beatNever)
	waitFor(t, "one to hold the feed", holder.holds)
	js, err := jetstream.New(w.nc)
	if err != nil {
		t.Fatal(err)
	}
	verbs := []string{verbPause, verbRepair, verbResync, verbResume, verbStatus, verbSync, verbVerify}
	for _, verb := range verbs {
		subject := ControlSubject(w.tenant, "clockings", verb)
		for i, c := range []jetstream.ConsumerConfig{
			{AckPolicy: jetstream.AckNonePolicy},
			{AckPolicy: jetstream.AckExplicitPolicy},
			{AckPolicy: jetstream.AckExplicitPolicy, HeadersOnly: true},
			{AckPolicy: jetstream.AckNonePolicy, IdleHeartbeat: 100 * time.Millisecond, FlowControl: true},
		} {
			c.Name, c.DeliverSubject = fmt.Sprintf("%s%d", verb, i), subject
			if _, err := js.CreatePushConsumer(t.Context(), w.stream(), c); err != nil {
				t.Fatal(err)
			}
		}
		for _, reply := range []string{"", "$JS.FC.x"} {
			if err := w.nc.PublishMsg(&nats.Msg{Subject: subject, Reply: reply, Data: []byte("{}")}); err != nil {
				t.Fatal(err)
			}
		}
	}
	// Four times five messages, two that were published, and heartbeats.
	heard := func() (all micro.Stats) {
		reply, err := w.nc.Request("$SRV.STATS."+ControlService, nil, time.Second)
		if err == nil {
			err = json.Unmarshal(reply.Data, &all)
		}
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	waitFor(t, "all of it to come", func() bool {
		n := 0
		for _, e := range heard().Endpoints {
			if e.NumRequests >= 25 {
				n++
			}
		}
		return n == len(verbs)
	})
	for _, e := range heard().Endpoints {
		if e.NumErrors != 0 {
			t.Errorf("%s: %d were refused, want all of them ignored (%s)", e.Name, e.NumErrors, e.LastError)
		}
	}
	w.bustle(ids, 0)
	w.current(holder)
	if s := holder.feeds[0].Status(); s.State != StateHealthy || s.Resyncs != 0 || s.LastVerify != nil || strings.Contains(holder.logs.String(), "paused") {
		t.Errorf("status %+v, want nothing done\n%s", s, holder.logs)
	}
	w.pauseFeed(holder)
	for _, want := range []bool{true, false} {
		if resumed, err := RequestResume(t.Context(), w.nc, w.tenant, "clockings"); resumed != want || err != nil {
			t.Errorf("resumed: %v, %v, want %v", resumed, err, want)
		}
	}
}

// TestControl_notPermitted: a request that the server refuses says so, and at once.
func TestControl_notPermitted(t *testing.T) {
	nc := connectRestricted(t, &server.SubjectPermission{Allow: []string{"clockbridge.acme.clockings.status"}})
	for range 2 {
		if _, err := RequestPause(t.Context(), nc, "acme", "clockings"); !errors.Is(err, ErrNotPermitted) || errors.Is(err, ErrNobody) {
			t.Errorf("pause: got %v, want %v", err, ErrNotPermitted)
		}
		if _, err := RequestStatus(t.Context(), nc, "acme", "clockings"); !errors.Is(err, ErrNobody) || errors.Is(err, ErrNotPermitted) {
			t.Errorf("status: got %v, want %v", err, ErrNobody)
		}
	}
}
