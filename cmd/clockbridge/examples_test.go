//go:build examples

package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"clockbridge/bridge"
	"clockbridge/protime/protimetest"
)

var (
	exampleCLI   = flag.String("example-nats-cli", "nats", "the nats CLI that the examples call")
	exampleNode  = flag.String("example-node", "node", "Node.js; examples/javascript has its packages, by npm ci")
	exampleKills = flag.Int("example-kills", 30, "how often an example is killed")
)

// example is a tenant called demo that is followed, and what the examples find there.
type example struct {
	*testing.T
	sim    *protimetest.Server
	work   *protimetest.Workload
	js     jetstream.JetStream
	url    string
	dir    string
	stream string
}

func newExample(t *testing.T) *example {
	t.Helper()
	e := &example{T: t, dir: t.TempDir(), stream: bridge.StreamName("demo", "clockings")}
	e.js, e.url = testJetStream(t)
	e.sim, e.work = e.tenant("demo")
	return e
}

// tenant simulates a tenant and follows it with a clockbridge of its own.
func (e *example) tenant(name string) (*protimetest.Server, *protimetest.Workload) {
	e.Helper()
	sim := protimetest.NewServer(protimetest.Options{Tenant: name})
	e.Cleanup(sim.Close)
	work := protimetest.NewWorkload(sim, name, protimetest.WorkloadOptions{People: 10})
	work.Backfill(10)
	cmd := exec.Command("clockbridge", "run", "--data-dir", filepath.Join(e.dir, "data-"+name), "--http-addr", "127.0.0.1:0", "--poll-interval", "20ms")
	cmd.Env = append(os.Environ(), "PROTIME_TENANT="+name, "PROTIME_CLIENT_ID=demo", "PROTIME_CLIENT_SECRET=demo",
		"PROTIME_API_URL="+sim.URL, "PROTIME_AUTH_URL="+sim.URL, "NATS_URL="+e.url)
	e.start(cmd)
	if !poll(time.Minute, func() bool {
		_, err := e.js.Stream(e.Context(), bridge.StreamName(name, "clockings"))
		return err == nil
	}) {
		e.Fatalf("clockbridge makes no stream for %s", name)
	}
	return sim, work
}

// start starts a program, and ends it with the test. What it says is shown if the test fails.
func (e *example) start(cmd *exec.Cmd) {
	e.Helper()
	said := new(logBuffer)
	cmd.Stderr = said
	if err := cmd.Start(); err != nil {
		e.Fatal(err)
	}
	e.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if e.Failed() {
			e.Logf("%s:\n%s", strings.Join(cmd.Args, " "), said)
		}
	})
}

// flow lets the company work until it is told to stop.
func (e *example) flow() (stop func()) {
	ctx, cancel := context.WithCancel(e.Context())
	done := make(chan struct{})
	go func() { defer close(done); work(ctx, 200, func() { e.work.Step() }) }()
	return func() { cancel(); <-done }
}

// message is one of a feed's stream.
type message struct {
	published
	position uint64
	kind     string
}

func (m message) line() string {
	return fmt.Sprint(m.position, " ", m.kind, " ", m.id, " ", string(m.data))
}

// messages waits until the stream is what the API holds, and returns all of it.
func (e *example) messages(sim *protimetest.Server, stream string) (all []message) {
	e.Helper()
	if !pollEvery(100*time.Millisecond, time.Minute, func() bool {
		v, err := judge(e.Context(), e.js, stream, sim.Truth("clockings"))
		return err == nil && v.exact()
	}) {
		e.Fatalf("%s does not become what the API holds", stream)
	}
	e.read(stream, func(msg jetstream.Msg, meta *jetstream.MsgMetadata) {
		all = append(all, message{read(msg), meta.Sequence.Stream, msg.Headers().Get("ce-type")})
	})
	return all
}

// read calls each with every message of a stream.
func (e *example) read(stream string, each func(jetstream.Msg, *jetstream.MsgMetadata)) {
	e.Helper()
	consumer, err := e.js.OrderedConsumer(e.Context(), stream, jetstream.OrderedConsumerConfig{})
	if err != nil {
		e.Fatal(err)
	}
	msgs, err := consumer.Messages()
	if err != nil {
		e.Fatal(err)
	}
	defer msgs.Stop()
	for left := consumer.CachedInfo().NumPending; left > 0; left-- {
		msg, err := msgs.Next(jetstream.NextMaxWait(10 * time.Second))
		if err != nil {
			e.Fatal(err)
		}
		meta, err := msg.Metadata()
		if err != nil {
			e.Fatal(err)
		}
		each(msg, meta)
	}
}

// present is the API's state: the data of each record that there is.
func present(sim *protimetest.Server) map[string]string {
	state := map[string]string{}
	for id, r := range sim.Truth("clockings") {
		if !r.Removed {
			state[id] = string(r.Data)
		}
	}
	return state
}

func (e *example) same(what string, got, want map[string]string) {
	e.Helper()
	for id := range want {
		if got[id] != want[id] {
			e.Errorf("%s: record %s is %q, want %q", what, id, got[id], want[id])
			return
		}
	}
	if len(got) != len(want) {
		e.Errorf("%s: %d records, want %d", what, len(got), len(want))
	}
}

// golang is a command line of the example of that name in Go.
func (e *example) golang(name string) *exec.Cmd {
	e.Helper()
	program := filepath.Join(e.dir, name)
	if _, err := os.Stat(program); err != nil {
		build := exec.Command("go", "build", "-o", program, "./"+name)
		build.Dir = "../../examples/go"
		if out, err := build.CombinedOutput(); err != nil {
			e.Fatalf("%v\n%s", err, out)
		}
	}
	return e.command(program)
}

// node is a command line of the example of that name in JavaScript.
func (e *example) node(name string) *exec.Cmd {
	return e.command(*exampleNode, "../../examples/javascript/"+name+".mjs")
}

// shell is a command line of the example of that name for the nats CLI.
func (e *example) shell(name string, args ...string) *exec.Cmd {
	e.Helper()
	cmd := e.command("sh", append([]string{"../../examples/nats-cli/" + name + ".sh"}, args...)...)
	cli, err := exec.LookPath(*exampleCLI)
	if err != nil {
		e.Fatal(err)
	}
	cmd.Env = append(cmd.Env, "HOME="+e.dir, "PATH="+filepath.Dir(cli)+":"+os.Getenv("PATH"))
	return cmd
}

func (e *example) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "NATS_URL="+e.url, "DB="+filepath.Join(e.dir, "clockings.db"))
	return cmd
}

// output collects what one or several programs print, in the order in which they did.
func (e *example) output() (file *os.File, lines func() []string) {
	e.Helper()
	file, err := os.OpenFile(filepath.Join(e.dir, "output"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		e.Fatal(err)
	}
	e.Cleanup(func() { file.Close() })
	return file, func() []string {
		text, err := os.ReadFile(file.Name())
		if err != nil {
			e.Fatal(err)
		}
		all := strings.Split(string(text), "\n")
		return all[:len(all)-1] // the last one is not whole
	}
}

// TestExample_durable: each message is printed once, in order; one whose acknowledgement a kill prevented, twice in a row.
func TestExample_durable(t *testing.T) {
	for name, of := range map[string]func(*example) *exec.Cmd{
		"Go":         func(e *example) *exec.Cmd { return e.golang("durable") },
		"JavaScript": func(e *example) *exec.Cmd { return e.node("durable") },
	} {
		t.Run(name, func(t *testing.T) {
			e := newExample(t)
			out, lines := e.output()
			stop := e.flow()
			const kills = 3
			for i := range kills {
				cmd := of(e)
				cmd.Stdout = out
				e.start(cmd)
				before := len(lines())
				if !poll(2*time.Minute, func() bool { return len(lines()) > before+20 }) {
					t.Fatalf("nothing is printed in life %d", i)
				}
				cmd.Process.Kill()
				cmd.Wait()
			}
			stop()
			want := e.messages(e.sim, e.stream)
			cmd := of(e)
			cmd.Stdout = out
			e.start(cmd)
			poll(2*time.Minute, func() bool { all := lines(); return len(all) > 0 && all[len(all)-1] == want[len(want)-1].line() })
			got := slices.Compact(lines())
			if again := len(lines()) - len(got); again > kills {
				t.Errorf("%d messages came again, more than the %d kills", again, kills)
			}
			if i := firstDifference(got, want); i >= 0 {
				t.Errorf("%d messages printed, %d in the stream; they differ from the %d. on", len(got), len(want), i+1)
			}
		})
	}
}

func firstDifference(got []string, want []message) int {
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) || got[i] != want[i].line() {
			return i
		}
	}
	return -1
}

// TestExample_durable_natsCLI: the nats CLI prints every message, one after the other.
func TestExample_durable_natsCLI(t *testing.T) {
	e := newExample(t)
	want := e.messages(e.sim, e.stream)
	out, lines := e.output()
	cmd := e.shell("durable")
	cmd.Stdout = out
	e.start(cmd)
	const some = 30 // each is a process of its own
	var got []string
	poll(2*time.Minute, func() bool {
		got = nil
		for _, l := range lines() {
			if _, id, ok := strings.Cut(l, "ce-subject: "); ok {
				got = append(got, id)
			}
		}
		return len(got) >= some
	})
	for i := range some {
		if i >= len(got) || got[i] != want[i].id {
			t.Fatalf("message %d is missing or another one: %q", i+1, got)
		}
	}
}

// TestExample_latest: what is printed is what the API holds.
func TestExample_latest(t *testing.T) {
	e := newExample(t)
	for range 300 {
		e.work.Step()
	}
	e.messages(e.sim, e.stream)
	for name, cmd := range map[string]*exec.Cmd{"Go": e.golang("latest"), "JavaScript": e.node("latest")} {
		t.Run(name, func(t *testing.T) {
			out, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]string{}
			for line := range strings.Lines(string(out)) {
				var r struct{ ID json.Number }
				if err := json.Unmarshal([]byte(line), &r); err != nil {
					t.Fatal(err)
				}
				got[r.ID.String()] = strings.TrimSuffix(line, "\n")
			}
			(&example{T: t}).same("printed", got, present(e.sim))
		})
	}
	t.Run("nats CLI", func(t *testing.T) {
		out, lines := e.output()
		cmd := e.shell("latest")
		cmd.Stdout = out
		e.start(cmd)
		want := len(e.sim.Truth("clockings"))
		seen := map[string]bool{}
		poll(time.Minute, func() bool {
			for _, l := range lines() {
				if _, id, ok := strings.Cut(l, "ce-subject: "); ok {
					seen[id] = true
				}
			}
			return len(seen) >= want
		})
		last := map[string]bool{}
		for _, m := range e.messages(e.sim, e.stream) {
			last[m.id] = true
		}
		if !maps.Equal(seen, last) {
			t.Errorf("%d records printed, %d in the stream", len(seen), len(last))
		}
	})
}

// TestExample_workers: whatever becomes of the workers, every message is worked on, and those of one record on one partition, in order.
func TestExample_workers(t *testing.T) {
	e := newExample(t)
	out, lines := e.output()
	worker := func() *exec.Cmd {
		cmd := e.golang("workers")
		cmd.Stdout = out // of all of them, each line when it is printed
		e.start(cmd)
		return cmd
	}
	stop := e.flow()
	busy := worker()
	for i := range 5 { // they come and go
		before := len(lines())
		next := worker()
		if !poll(time.Minute, func() bool { return len(lines()) > before+50 }) {
			t.Fatalf("nothing is printed in round %d", i)
		}
		busy.Process.Kill()
		busy.Wait()
		busy = next
	}
	worker()
	stop()
	want := e.messages(e.sim, e.stream)
	done := map[uint64]bool{}
	poll(time.Minute, func() bool {
		for _, l := range lines() {
			position, _ := strconv.ParseUint(strings.Fields(l)[0], 10, 64)
			done[position] = true
		}
		return len(done) >= len(want)
	})
	at, of := map[string]uint64{}, map[string]string{} // by partition, and by id
	for _, l := range lines() {
		f := strings.Fields(l)
		position, _ := strconv.ParseUint(f[0], 10, 64)
		partition, id := f[1], f[3]
		if position < at[partition] { // nothing overtakes what comes again
			t.Errorf("partition %s: position %d behind %d", partition, position, at[partition])
		}
		at[partition] = position
		if was, ok := of[id]; ok && was != partition {
			t.Errorf("record %s is on partitions %s and %s", id, was, partition)
		}
		of[id] = partition
	}
	for _, m := range want {
		if !done[m.position] {
			t.Errorf("position %d was not worked on", m.position)
		}
	}
	if len(done) != len(want) || len(at) != 8 {
		t.Errorf("%d positions on %d partitions, want %d on 8", len(done), len(at), len(want))
	}
}

// TestExample_tenants: of each tenant the one stream holds what the feed's does, in that order, as long as changes come.
func TestExample_tenants(t *testing.T) {
	for name, of := range map[string]func(*example) *exec.Cmd{
		"Go": func(e *example) *exec.Cmd { return e.golang("tenants") },
		"nats CLI": func(e *example) *exec.Cmd {
			return e.shell("tenants", "PROTIME_DEMO_CLOCKINGS", "PROTIME_OTHER_CLOCKINGS")
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := newExample(t)
			other, otherWork := e.tenant("other")
			out, err := of(e).CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			for range 100 {
				e.work.Step()
				otherWork.Step()
			}
			want := map[string][]string{}
			for tenant, sim := range map[string]*protimetest.Server{"demo": e.sim, "other": other} {
				for _, m := range e.messages(sim, bridge.StreamName(tenant, "clockings")) {
					want[tenant] = append(want[tenant], m.kind+m.id+string(m.data))
				}
			}
			got := map[string][]string{}
			poll(time.Minute, func() bool {
				s, err := e.js.Stream(t.Context(), "ALL_CLOCKINGS")
				return err == nil && s.CachedInfo().State.Msgs >= uint64(len(want["demo"])+len(want["other"]))
			})
			e.read("ALL_CLOCKINGS", func(msg jetstream.Msg, _ *jetstream.MsgMetadata) {
				tenant, m := strings.Split(msg.Subject(), ".")[1], read(msg)
				got[tenant] = append(got[tenant], msg.Headers().Get("ce-type")+m.id+string(m.data))
			})
			for tenant := range want {
				if !slices.Equal(got[tenant], want[tenant]) {
					t.Errorf("tenant %s: %d messages, want the %d of its feed, in that order", tenant, len(got[tenant]), len(want[tenant]))
				}
			}
		})
	}
}

// TestExample_bucket kills the program while changes flow. The bucket must hold what is current, and never have gone backwards.
func TestExample_bucket(t *testing.T) {
	e := newExample(t)
	stop := e.flow()
	bucket := func() uint64 {
		s, err := e.js.Stream(t.Context(), "KV_CLOCKINGS")
		if err != nil {
			return 0
		}
		return s.CachedInfo().State.LastSeq
	}
	newKiller(t).kills(e, func() *exec.Cmd { return e.golang("bucket") }, bucket)
	stop()
	all := e.messages(e.sim, e.stream)
	want := map[string]string{}
	for id, data := range present(e.sim) {
		if !strings.Contains(data, `"status":"Deleted"`) {
			want[id] = data
		}
	}
	e.start(e.golang("bucket"))
	got := map[string]string{}
	poll(time.Minute, func() bool {
		clear(got)
		e.read("KV_CLOCKINGS", func(msg jetstream.Msg, _ *jetstream.MsgMetadata) {
			if msg.Headers().Get("KV-Operation") == "" {
				got[strings.TrimPrefix(msg.Subject(), "$KV.CLOCKINGS.")] = string(msg.Data())
			}
		})
		return maps.Equal(got, want)
	})
	e.same("bucket", got, want)
	// Each message was written once: the bucket's revisions are as many as the feed's messages.
	if n := bucket(); n != uint64(len(all)) {
		t.Errorf("the bucket has seen %d writes of %d messages", n, len(all))
	}
}
