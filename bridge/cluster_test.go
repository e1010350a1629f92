//go:build torture

package bridge

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// TestRead_firstRequestLost reads what was just written to a stream of three replicas, again and again. In a cluster, the
// request to a consumer that was just created may come to nothing, and a consumer that was made on a replica which was behind may
// never show what arrived there meanwhile, though it sends its heartbeats. Neither must cost a takeover the time until a read is
// given up, let alone fail it.
func TestRead_firstRequestLost(t *testing.T) {
	nc := startCluster(t)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	c := newCodec("acme", "clockings", "https://x/clockings")
	l := &lane{&appender{nc: nc, codec: c}, t, js, &stream{nc: nc, js: js, name: StreamName("acme", "clockings"), codec: c, replicas: 3}}
	t.Cleanup(l.close)
	ctx := context.Background()
	var at uint64
	waitFor(t, "a stream of three replicas", func() bool {
		state, batches, err := l.stream.open(ctx)
		return err == nil && state.Last == 0 && l.reset(batches, false) == nil
	})
	var worst time.Duration
	for i := range 150 {
		msgs := records(1+i*200, 200)
		if _, err := l.Append(ctx, msgs, at); err != nil {
			t.Fatal(err)
		}
		began, last := time.Now(), at
		if err := l.stream.read(ctx, at+1, func(m message) error { last = m.Position; return nil }); err != nil {
			t.Fatalf("read %d: %v", i, err)
		}
		worst = max(worst, time.Since(began))
		if at += uint64(len(msgs)); last != at {
			t.Fatalf("read %d: ended at %d, want %d", i, last, at)
		}
	}
	if worst > readTimeout/2 {
		t.Errorf("a read took %s", worst)
	}
	t.Logf("worst read: %s", worst)
}

// startCluster starts three servers that share a JetStream, and connects to the first.
func startCluster(t *testing.T) *nats.Conn {
	t.Helper()
	var routes []*url.URL
	for range 3 {
		u, err := url.Parse(fmt.Sprintf("nats-route://127.0.0.1:%d", freePort(t)))
		if err != nil {
			t.Fatal(err)
		}
		routes = append(routes, u)
	}
	var all []*server.Server
	for i, u := range routes {
		var port int
		fmt.Sscan(u.Port(), &port)
		s, err := server.NewServer(&server.Options{
			ServerName: fmt.Sprintf("n%d", i), Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: t.TempDir(), NoLog: true, NoSigs: true,
			Cluster: server.ClusterOpts{Name: "c", Host: "127.0.0.1", Port: port}, Routes: routes,
		})
		if err != nil {
			t.Fatal(err)
		}
		s.Start()
		t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
		all = append(all, s)
	}
	waitFor(t, "three servers to find each other", func() bool {
		return slices.ContainsFunc(all, func(s *server.Server) bool { return s.JetStreamIsLeader() && len(s.JetStreamClusterPeers()) == 3 })
	})
	nc, err := nats.Connect(all[0].ClientURL(), nats.Name(t.Name()), nats.ReconnectBufSize(-1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}
