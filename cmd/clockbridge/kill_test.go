package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"clockbridge/bridge"
	"clockbridge/protime/protimetest"
)

var (
	killSeed  = flag.Uint64("kill-seed", 0, "seed of TestKilledFiftyTimes; 0 = a new one, which is printed")
	killTimes = flag.Int("kill-times", 50, "how often TestKilledFiftyTimes kills")
)

// dedupWindow is the shortest that the server takes. Every restart comes after it, so it can hide no duplicate.
const dedupWindow = 100 * time.Millisecond

// TestKilledFiftyTimes kills `clockbridge run` with SIGKILL at random moments while changes flow, and starts it again
// when the stream's dedup window is over. The stream must hold every change exactly once, in order.
func TestKilledFiftyTimes(t *testing.T) {
	seed := *killSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("replay with -kill-seed=%d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	sim := protimetest.NewServer(protimetest.Options{Tenant: "acme", Seed: seed, PageSize: 50})
	defer sim.Close()
	work := protimetest.NewWorkload(sim, "acme", protimetest.WorkloadOptions{People: 30, Seed: seed})
	work.Backfill(20)
	js, url := testJetStream(t)
	stream := bridge.StreamName("acme", "clockings")
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{
		Name: stream, Subjects: []string{bridge.SubjectPrefix("acme", "clockings") + ".*"}, Storage: jetstream.FileStorage,
		AllowAtomicPublish: true, AllowDirect: true, Duplicates: dedupWindow,
	}); err != nil {
		t.Fatal(err)
	}

	dir := t.TempDir()
	messages := func() uint64 {
		s, err := js.Stream(ctx, stream)
		if err != nil {
			return 0
		}
		return s.CachedInfo().State.Msgs
	}
	alive := 0
	life := 400 * time.Millisecond
	for i := range *killTimes {
		began, before := time.Now(), messages()
		cmd := follow(t, dir, sim.URL, url)
		if i == 0 {
			// The first life ends in the listing, and tells how long it takes here to come that far.
			if !poll(time.Minute, func() bool { return messages() > 0 }) {
				t.Fatalf("clockbridge publishes nothing\n%s", cmd.Stderr)
			}
			life = min(max(life, 2*time.Since(began)), 10*life)
		}
		// Dead before it was up, in its first listing, or in mid-stream: the moment is random, the changes go on.
		deadline := time.After(time.Duration(rng.Int64N(int64(life))))
		for running := true; running; {
			for range rng.IntN(20) {
				work.Step()
			}
			select {
			case <-deadline:
				running = false
			case <-time.After(time.Duration(rng.IntN(5)) * time.Millisecond): // the pace of the workload
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		died := time.Now()
		if err := cmd.Wait(); err != nil && !strings.Contains(err.Error(), "killed") {
			t.Fatalf("clockbridge ended by itself: %v\n%s", err, cmd.Stderr)
		}
		if messages() > before {
			alive++
		}
		// The window has to pass for real: it is the server's clock that counts.
		<-time.After(time.Until(died.Add(dedupWindow + 10*time.Millisecond)))
	}
	if alive < 2 && *killTimes > 1 {
		t.Fatal("clockbridge was always killed before it had published anything")
	}
	cmd := follow(t, dir, sim.URL, url)
	defer func() {
		cmd.Process.Signal(os.Interrupt)
		if err := cmd.Wait(); err != nil {
			t.Errorf("clockbridge did not stop gracefully: %v\n%s", err, cmd.Stderr)
		}
	}()
	var v verdict
	caughtUp := poll(time.Minute, func() bool {
		var err error
		if v, err = judge(ctx, js, stream, sim.Truth("clockings")); err != nil {
			t.Fatal(err)
		}
		return v.missing == 0
	})
	if !caughtUp || v.duplicates+v.disorder > 0 {
		t.Errorf("after %d kills: %+v, want nothing missing, twice or out of order\n%s", *killTimes, v, cmd.Stderr)
	}
	t.Logf("%d kills, %d of them after something was published: %+v", *killTimes, alive, v)
}

// follow starts `clockbridge run` as a process of its own.
func follow(t testing.TB, dir, sim, natsURL string) *exec.Cmd {
	t.Helper()
	cmd := command(sim, natsURL, "run", "--data-dir", filepath.Join(dir, "data"), "--http-addr", "127.0.0.1:0", "--poll-interval", "20ms")
	cmd.Stderr = new(logBuffer)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// command is a command line of the program for the tenant acme, to be run as a process of its own.
func command(sim, natsURL string, args ...string) *exec.Cmd {
	cmd := exec.Command("clockbridge", args...)
	cmd.Env = append(os.Environ(), "PROTIME_TENANT=acme", "PROTIME_CLIENT_ID=demo", "PROTIME_CLIENT_SECRET=demo",
		"PROTIME_API_URL="+sim, "PROTIME_AUTH_URL="+sim, "NATS_URL="+natsURL)
	return cmd
}

// testJetStream is a nats-server of the test process.
func testJetStream(t testing.TB) (jetstream.JetStream, string) {
	t.Helper()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, NoSigs: true, NoLog: true, JetStream: true, StoreDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("nats-server is not ready")
	}
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	nc, err := nats.Connect(s.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js, s.ClientURL()
}

// TestJudge: what judges everything else must itself see each kind of flaw.
func TestJudge(t *testing.T) {
	truth := map[string]protimetest.Record{
		"1": {ID: "1", Version: "B", Data: []byte("1B")},
		"2": {ID: "2", Version: "C", Removed: true},
	}
	type m struct{ id, version, kind, data string }
	tests := map[string]struct {
		msgs []m
		want verdict
	}{
		"exact":          {[]m{{"1", "A", "upserted", "1A"}, {"2", "A", "upserted", ""}, {"1", "B", "upserted", "1B"}, {"2", "C", "deleted", ""}}, verdict{changes: 4}},
		"deleted equal":  {[]m{{"1", "B", "upserted", "1B"}, {"2", "C", "upserted", ""}, {"2", "C", "deleted", ""}}, verdict{changes: 3}},
		"twice":          {[]m{{"1", "B", "upserted", "1B"}, {"1", "B", "upserted", "1B"}, {"2", "C", "deleted", ""}}, verdict{changes: 3, duplicates: 1}},
		"out of order":   {[]m{{"1", "B", "upserted", "1B"}, {"1", "A", "upserted", "1A"}, {"1", "B", "upserted", "1B"}}, verdict{changes: 3, duplicates: 1, disorder: 1}},
		"twice, later":   {[]m{{"1", "A", "upserted", "1A"}, {"1", "B", "upserted", "1B"}, {"1", "A", "upserted", "1A"}, {"1", "B", "upserted", "1B"}}, verdict{changes: 4, duplicates: 2}},
		"deleted twice":  {[]m{{"1", "B", "upserted", "1B"}, {"2", "C", "deleted", ""}, {"2", "C", "deleted", ""}}, verdict{changes: 3, duplicates: 1}},
		"risen again":    {[]m{{"1", "B", "deleted", ""}, {"1", "B", "upserted", "1B"}}, verdict{changes: 2, disorder: 1}},
		"never":          {[]m{{"2", "C", "deleted", ""}}, verdict{changes: 1, missing: 1}},
		"stale":          {[]m{{"1", "A", "upserted", "1A"}}, verdict{changes: 1, missing: 1}},
		"deletion lost":  {[]m{{"1", "B", "upserted", "1B"}, {"2", "A", "upserted", ""}}, verdict{changes: 2, missing: 1}},
		"wrong payload":  {[]m{{"1", "B", "upserted", "1X"}}, verdict{changes: 1, missing: 1}},
		"nothing at all": {nil, verdict{missing: 1}},
		"erased":         {[]m{{"1", "B", "erased", ""}, {"2", "C", "deleted", ""}, {"2", "C", "erased", ""}}, verdict{changes: 3}},
		"erased before":  {[]m{{"1", "A", "erased", ""}}, verdict{changes: 1, missing: 1}},
		"erased twice":   {[]m{{"1", "B", "erased", ""}, {"1", "B", "erased", ""}}, verdict{changes: 2, duplicates: 1}},
	}
	js, _ := testJetStream(t)
	n := 0
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			n++
			ctx := context.Background()
			stream := fmt.Sprintf("T%d", n)
			if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: stream, Subjects: []string{stream + ".*"}}); err != nil {
				t.Fatal(err)
			}
			for _, m := range tt.msgs {
				msg := nats.NewMsg(stream + "." + m.id)
				msg.Header = nats.Header{"ce-subject": {m.id}, "ce-changeversion": {m.version}, "ce-type": {"x." + m.kind}}
				if m.kind == "erased" {
					msg.Header["ce-type"], msg.Header["ce-origin"] = []string{"x.deleted"}, []string{"erasure"}
				}
				msg.Data = []byte(m.data)
				if _, err := js.PublishMsg(ctx, msg); err != nil {
					t.Fatal(err)
				}
			}
			got, err := judge(ctx, js, stream, truth)
			if err != nil {
				t.Fatal(err)
			}
			if got != tt.want {
				t.Errorf("verdict %+v, want %+v", got, tt.want)
			}
		})
	}
	if _, err := judge(context.Background(), js, "NONE", truth); !errors.Is(err, jetstream.ErrStreamNotFound) {
		t.Errorf("judge of no stream: %v", err)
	}
}
