package main

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"clockbridge/bridge"
)

// What a subscriber may try, and what must be so afterwards.

// beats are the heartbeats in the bucket.
func (a *accounts) beats(nc *nats.Conn) (all []jetstream.KeyValueEntry) {
	a.t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		a.t.Fatal(err)
	}
	kv, err := js.KeyValue(a.t.Context(), bridge.Bucket)
	if err != nil {
		a.t.Fatal(err)
	}
	watch, err := kv.Watch(a.t.Context(), "member.*", jetstream.IgnoreDeletes())
	if err != nil {
		a.t.Fatal(err)
	}
	defer watch.Stop()
	for {
		entry := <-watch.Updates()
		if entry == nil {
			return all
		}
		all = append(all, entry)
	}
}

func (a *accounts) insert(tenant string) {
	a.sim.Tenant(tenant).Insert("clockings", map[string]any{"person": map[string]any{"id": 1}, "date": "2026-01-15", "timeOfDayInMinutes": 510, "kind": "InOut"})
}

// writesNothing tries to get a message into the streams, and a request to the feeds, by publishing, and by having JetStream answer or
// deliver there. It listens to the streams' subjects, too: JetStream delivers where somebody does. consumes: it may make consumers, so that
// there are deliveries to wait for.
func (a *accounts) writesNothing(nc *nats.Conn, consumes bool) {
	t := a.t
	t.Helper()
	operator, _ := a.connect("operator")
	own, _ := a.connect("bridge")
	requests, err := own.SubscribeSync("clockbridge.*.*.*")
	if err != nil {
		t.Fatal(err)
	}
	if err := own.Flush(); err != nil {
		t.Fatal(err)
	}
	ownJS, err := jetstream.New(own)
	if err != nil {
		t.Fatal(err)
	}
	another := jetstream.StreamConfig{Name: "PROTIME_ACME_PEOPLE", Subjects: []string{"protime.acme.people.*"}}
	if _, err := ownJS.CreateStream(t.Context(), another); err != nil {
		t.Fatal(err)
	}
	resyncs := a.resyncs(operator)
	before := a.ends()
	stored := []string{"protime.acme.clockings.1", "protime.acme.people.1", "protime.other.clockings.1", "$KV.CLOCKBRIDGE.feed.acme.clockings"}
	for _, target := range stored {
		if _, err := nc.SubscribeSync(target); err != nil {
			t.Fatal(err)
		}
		if m, err := nc.Request(target, []byte("{}"), 100*time.Millisecond); err == nil {
			t.Errorf("a message to %s is answered: %s", target, m.Data)
		}
		for _, r := range [][2]string{
			{"STREAM.INFO.PROTIME_ACME_CLOCKINGS", ""},
			{"DIRECT.GET.PROTIME_ACME_CLOCKINGS.protime.acme.clockings.19250", ""},
			{"CONSUMER.CREATE.PROTIME_ACME_CLOCKINGS.pull", `{"stream_name":"PROTIME_ACME_CLOCKINGS","config":{"name":"pull"}}`},
			{"CONSUMER.MSG.NEXT.PROTIME_ACME_CLOCKINGS.pull", ""},
			{"CONSUMER.MSG.NEXT.PROTIME_ACME_CLOCKINGS.payroll", `{"batch":100}`},
		} {
			if err := nc.PublishRequest("$JS.clockbridge.API."+r[0], target, []byte(r[1])); err != nil {
				t.Fatal(err)
			}
		}
		for _, consumer := range []string{"pull", "payroll"} {
			if err := nc.PublishRequest("$JS.ACK.PROTIME_ACME_CLOCKINGS."+consumer+".1.1.1.1.0", target, []byte("+NXT")); err != nil {
				t.Fatal(err)
			}
		}
	}
	asked := map[string]int{} // heartbeats that were delivered to where feeds take requests
	for _, tenant := range []string{"acme", "other"} {
		for _, verb := range []string{"pause", "repair", "resync", "verify"} {
			asked[bridge.ControlSubject(tenant, "clockings", verb)] = 0
		}
	}
	pushes := 0
	for _, target := range slices.Concat(stored, slices.Sorted(maps.Keys(asked)), []string{"$SRV.PING", "$SRV.INFO.clockbridge"}) {
		for _, form := range []string{
			`"ack_policy":"none"`,
			`"ack_policy":"explicit"`,
			`"ack_policy":"explicit","headers_only":true`,
			`"ack_policy":"none","idle_heartbeat":100000000,"flow_control":true`,
		} {
			pushes++
			name := fmt.Sprintf("push%d", pushes)
			config := fmt.Sprintf(`{"stream_name":"PROTIME_ACME_CLOCKINGS","config":{"name":%q,"deliver_subject":%q,%s}}`, name, target, form)
			if err := nc.PublishRequest("$JS.clockbridge.API.CONSUMER.CREATE.PROTIME_ACME_CLOCKINGS."+name, target, []byte(config)); err != nil {
				t.Fatal(err)
			}
		}
	}
	// Each kind of delivery has come where its consumer has become idle, and says so.
	for consumes && slices.Min(slices.Collect(maps.Values(asked))) < 3 {
		m, err := requests.NextMsg(20 * time.Second)
		if err != nil {
			t.Fatalf("heartbeats %v: %v", asked, err)
		}
		if m.Header.Get("Status") == "100" {
			asked[m.Subject]++
		}
	}
	// Whatever was to come of that has come when a change that is made now is there.
	a.insert("acme")
	before["PROTIME_ACME_CLOCKINGS"]++
	var after map[string]uint64
	poll(20*time.Second, func() bool {
		after = a.ends()
		return after["PROTIME_ACME_CLOCKINGS"] >= before["PROTIME_ACME_CLOCKINGS"]
	})
	for stream, end := range before {
		if after[stream] != end {
			t.Errorf("%s ends at %d, want %d", stream, after[stream], end)
		}
	}
	a.settled(operator, bridge.StateHealthy)
	if got := a.resyncs(operator); got != resyncs {
		t.Errorf("resyncs: %v, want %v", got, resyncs)
	}
}

// resyncs counts those of acme and other.
func (a *accounts) resyncs(nc *nats.Conn) (n [2]uint64) {
	a.t.Helper()
	for i, tenant := range []string{"acme", "other"} {
		s, err := bridge.RequestStatus(a.t.Context(), nc, tenant, "clockings")
		if err != nil {
			a.t.Fatal(err)
		}
		n[i] = s.Resyncs
	}
	return n
}

// ends are the last positions of the streams.
func (a *accounts) ends() map[string]uint64 {
	a.t.Helper()
	_, js := a.connect("operator")
	ends := map[string]uint64{}
	streams := js.ListStreams(a.t.Context(), jetstream.WithStreamListSubject("protime.>"))
	for s := range streams.Info() {
		ends[s.Config.Name] = s.State.LastSeq
	}
	if err := streams.Err(); err != nil {
		a.t.Fatal(err)
	}
	return ends
}
