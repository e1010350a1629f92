package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"clockbridge/bridge"
	"clockbridge/protime/protimetest"
)

// These benchmarks run simulator, clockbridge and nats-server as processes of their own, and next to each figure the
// ceiling: a publisher of ready-made messages with the same headers, in the same run. Ratios can be compared between
// machines, the rest cannot. See README, "Speed".
//
//	go test ./cmd/clockbridge -run '^$' -bench . -benchtime 1x

const benchSize = 350 // bytes of a record

// benchNATS is a nats-server; BENCH_SYNC=always syncs every write.
func benchNATS() {
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, NoSigs: true, NoLog: true, JetStream: true,
		StoreDir: os.Getenv("BENCH_DIR"), SyncAlways: os.Getenv("BENCH_SYNC") == "always"})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	s.Start()
	s.ReadyForConnections(10 * time.Second)
	fmt.Println(s.ClientURL())
	waitSignal()
}

// benchSim is a simulator with BENCH_RECORDS records; on SIGUSR1 all of them change.
func benchSim() {
	n, _ := strconv.Atoi(os.Getenv("BENCH_RECORDS"))
	s := protimetest.NewServer(protimetest.Options{Tenant: "acme", PageSize: 1000})
	if n > 0 {
		s.Tenant("acme").Fill("clockings", n, benchSize)
	}
	fmt.Println(s.URL)
	touch := make(chan os.Signal, 1)
	signal.Notify(touch, syscall.SIGUSR1)
	go func() {
		for range touch {
			s.Tenant("acme").Touch("clockings", n, benchSize)
			fmt.Println("touched")
		}
	}()
	waitSignal()
}

// helper is a process of this package's own.
type helper struct {
	cmd *exec.Cmd
	out *bufio.Scanner
	url string
}

func startHelper(b *testing.B, name string, env ...string) *helper {
	b.Helper()
	h := &helper{cmd: exec.Command(name)}
	h.cmd.Env = append(os.Environ(), env...)
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	h.cmd.Stderr = os.Stderr
	if err := h.cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { h.cmd.Process.Kill(); h.cmd.Wait() })
	h.out = bufio.NewScanner(out)
	h.url = h.line(b)
	return h
}

func (h *helper) line(b *testing.B) string {
	b.Helper()
	if !h.out.Scan() {
		b.Fatalf("%s ended", h.cmd.Path)
	}
	return h.out.Text()
}

// benchWorld is a nats-server with nothing in it, and a simulator with n records.
func benchWorld(b *testing.B, n int) (ns, sim *helper, nc *nats.Conn) {
	b.Helper()
	ns = startHelper(b, "bench-nats", "BENCH_DIR="+b.TempDir())
	sim = startHelper(b, "bench-sim", fmt.Sprintf("BENCH_RECORDS=%d", n))
	nc, err := nats.Connect(ns.url)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(nc.Close)
	return ns, sim, nc
}

// peak ends a process gracefully and returns the most memory that it held, in MiB: pages of the mapped store included,
// which the kernel may take back at any time. (The rusage of a child would count its parent's memory before the exec.)
func peak(b *testing.B, cmd *exec.Cmd) float64 {
	b.Helper()
	mib, err := highWater(cmd.Process.Pid)
	if err != nil {
		b.Fatal(err)
	}
	cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); err != nil {
		b.Fatalf("clockbridge: %v\n%s", err, cmd.Stderr)
	}
	return mib
}

func highWater(pid int) (mib float64, err error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			var kib float64
			_, err = fmt.Sscanf(rest, "%g kB", &kib)
			mib = kib / 1024
		}
	}
	return mib, err
}

func BenchmarkListing(b *testing.B) {
	for _, sync := range []string{"default", "always"} {
		for _, n := range []int{300_000, 1_000_000} {
			if sync == "always" && n > 300_000 {
				continue
			}
			b.Run(fmt.Sprintf("sync=%s/records=%d", sync, n), func(b *testing.B) {
				for range b.N {
					ns := startHelper(b, "bench-nats", "BENCH_DIR="+b.TempDir(), "BENCH_SYNC="+sync)
					sim := startHelper(b, "bench-sim", fmt.Sprintf("BENCH_RECORDS=%d", n))
					nc, err := nats.Connect(ns.url)
					if err != nil {
						b.Fatal(err)
					}
					defer nc.Close()
					form := "chain"
					if sync == "always" {
						form = "batch"
					}
					before := bare(b, nc, form, 100_000)
					began := time.Now()
					cmd := follow(b, b.TempDir(), sim.url, ns.url)
					waitMessages(b, nc, uint64(n))
					rate := float64(n) / time.Since(began).Seconds()
					memory := peak(b, cmd)
					after := bare(b, nc, form, 100_000)
					ceiling := (before + after) / 2
					b.ReportMetric(rate, "records/s")
					b.ReportMetric(ceiling, "bare-"+form+"/s")
					b.ReportMetric(100*rate/ceiling, "%")
					b.ReportMetric(memory, "peak-MiB")
					b.ReportMetric(0, "ns/op")
				}
			})
		}
	}
}

// BenchmarkBacklog is a delta response of one million changes in one body.
func BenchmarkBacklog(b *testing.B) {
	const n = 1_000_000
	for range b.N {
		ns, sim, nc := benchWorld(b, n)
		dir := b.TempDir()
		first := follow(b, dir, sim.url, ns.url)
		waitMessages(b, nc, n)
		peak(b, first)
		sim.cmd.Process.Signal(syscall.SIGUSR1)
		sim.line(b)
		began := time.Now()
		cmd := follow(b, dir, sim.url, ns.url)
		waitMessages(b, nc, 2*n)
		b.ReportMetric(n/time.Since(began).Seconds(), "changes/s")
		b.ReportMetric(peak(b, cmd), "peak-MiB")
		b.ReportMetric(0, "ns/op")
	}
}

// BenchmarkRebuild is a takeover with an empty data directory: the index of a million records is read from the stream.
func BenchmarkRebuild(b *testing.B) {
	const n = 1_000_000
	for range b.N {
		ns, sim, nc := benchWorld(b, n)
		first := follow(b, b.TempDir(), sim.url, ns.url)
		waitMessages(b, nc, n)
		peak(b, first)
		began := time.Now()
		cmd := follow(b, b.TempDir(), sim.url, ns.url)
		var logged string
		ok := poll(5*time.Minute, func() bool {
			logged = fmt.Sprint(cmd.Stderr)
			return strings.Contains(logged, "feed follows")
		})
		if !ok || strings.Contains(logged, "resync") {
			b.Fatalf("not taken over:\n%s", logged)
		}
		b.ReportMetric(time.Since(began).Seconds(), "s")
		b.ReportMetric(n/time.Since(began).Seconds(), "records/s")
		memory := peak(b, cmd)
		if memory > 200 {
			b.Errorf("%.0f MiB, want at most 200", memory)
		}
		b.ReportMetric(memory, "peak-MiB")
		b.ReportMetric(0, "ns/op")
	}
}

// BenchmarkVerify compares a stream with the API's list, by a process of its own.
func BenchmarkVerify(b *testing.B) {
	for _, n := range []int{200_000, 1_000_000} {
		b.Run(fmt.Sprintf("records=%d", n), func(b *testing.B) {
			for range b.N {
				ns := startHelper(b, "bench-nats", "BENCH_DIR="+b.TempDir())
				sim := startHelper(b, "bench-sim", fmt.Sprintf("BENCH_RECORDS=%d", n))
				nc, err := nats.Connect(ns.url)
				if err != nil {
					b.Fatal(err)
				}
				defer nc.Close()
				peak(b, func() *exec.Cmd {
					cmd := follow(b, b.TempDir(), sim.url, ns.url)
					waitMessages(b, nc, uint64(n))
					return cmd
				}())
				var out, errs strings.Builder
				cmd := command(sim.url, ns.url, "verify")
				cmd.Env = append(cmd.Env, "TMPDIR="+b.TempDir())
				cmd.Stdout, cmd.Stderr = &out, &errs
				began := time.Now()
				if err := cmd.Start(); err != nil {
					b.Fatal(err)
				}
				memory := watchPeak(cmd)
				if err := cmd.Wait(); err != nil || !strings.Contains(out.String(), fmt.Sprint(n)) {
					b.Fatalf("%v\n%s%s", err, &out, &errs)
				}
				b.ReportMetric(float64(n)/time.Since(began).Seconds(), "records/s")
				b.ReportMetric(<-memory, "peak-MiB")
				b.ReportMetric(0, "ns/op")
			}
		})
	}
}

// BenchmarkReplay replays a stream of a million messages, by a process of its own: printed as NDJSON, published on a subject that nobody
// holds, and into another stream. The ceiling is a plain consumer of the same stream that only counts, before and after. BenchmarkExport
// is beside it.
func BenchmarkReplay(b *testing.B) {
	const n = 1_000_000
	ns, sim, nc := benchFilled(b, n)
	for _, to := range []string{"", "nowhere.*", "again.*"} {
		b.Run("to="+to, func(b *testing.B) {
			for range b.N {
				js, err := jetstream.New(nc)
				if err != nil {
					b.Fatal(err)
				}
				if to == "again.*" {
					if _, err := js.CreateStream(b.Context(), jetstream.StreamConfig{Name: "AGAIN", Subjects: []string{to}}); err != nil {
						b.Fatal(err)
					}
				}
				before := plainConsumer(b, js, n)
				args := []string{"replay"}
				if to != "" {
					args = append(args, "--to-subject", to)
				}
				rate, memory, errs := benchRead(b, sim, ns, n, args...)
				if !strings.Contains(errs, fmt.Sprintf("%d messages replayed", n)) {
					b.Fatal(errs)
				}
				plain := (before + plainConsumer(b, js, n)) / 2
				b.ReportMetric(rate, "messages/s")
				b.ReportMetric(plain, "plain/s")
				b.ReportMetric(100*rate/plain, "%")
				b.ReportMetric(memory, "peak-MiB")
				b.ReportMetric(0, "ns/op")
				if memory > 100 || to == "" && rate < plain/2 {
					b.Errorf("to %q: %.0f messages/s, a plain consumer %.0f; %.0f MiB: promised are half of that, within 100 MiB", to, rate, plain, memory)
				}
				if to == "again.*" {
					js.DeleteStream(b.Context(), "AGAIN")
				}
			}
		})
	}
}

// BenchmarkExport exports a million records, as they are and as they were.
func BenchmarkExport(b *testing.B) {
	const n = 1_000_000
	ns, sim, _ := benchFilled(b, n)
	for name, args := range map[string][]string{
		"ndjson": {"export"}, "csv": {"export", "--format", "csv"}, "past": {"export", "--at", fmt.Sprint(n)},
	} {
		b.Run(name, func(b *testing.B) {
			for range b.N {
				rate, memory, errs := benchRead(b, sim, ns, n, args...)
				if !strings.Contains(errs, fmt.Sprintf("%d records", n)) {
					b.Fatal(errs)
				}
				b.ReportMetric(rate, "records/s")
				b.ReportMetric(memory, "peak-MiB")
				b.ReportMetric(0, "ns/op")
			}
		})
	}
}

// benchFilled is a nats-server with a stream that clockbridge filled.
func benchFilled(b *testing.B, n int) (ns, sim *helper, nc *nats.Conn) {
	b.Helper()
	ns, sim, nc = benchWorld(b, n)
	cmd := follow(b, b.TempDir(), sim.url, ns.url)
	waitMessages(b, nc, uint64(n))
	peak(b, cmd)
	return ns, sim, nc
}

// benchRead runs a command over n records.
func benchRead(b *testing.B, sim, ns *helper, n int, args ...string) (rate, memory float64, errs string) {
	b.Helper()
	cmd := command(sim.url, ns.url, args...)
	cmd.Env = append(cmd.Env, "TMPDIR="+b.TempDir())
	out, text := new(counter), new(strings.Builder)
	cmd.Stdout, cmd.Stderr = out, text
	began := time.Now()
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	watched := watchPeak(cmd)
	if err := cmd.Wait(); err != nil {
		b.Fatalf("%v\n%s", err, text)
	}
	return float64(n) / time.Since(began).Seconds(), <-watched, text.String()
}

// counter counts what is written.
type counter int

func (c *counter) Write(p []byte) (int, error) { *c += counter(len(p)); return len(p), nil }

// plainConsumer reads n messages with an ordered consumer, as nats.go has it, and returns how many a second.
func plainConsumer(b *testing.B, js jetstream.JetStream, n int) float64 {
	b.Helper()
	consumer, err := js.OrderedConsumer(b.Context(), bridge.StreamName("acme", "clockings"), jetstream.OrderedConsumerConfig{})
	if err != nil {
		b.Fatal(err)
	}
	done, left := make(chan struct{}), n
	began := time.Now()
	consume, err := consumer.Consume(func(jetstream.Msg) {
		if left--; left == 0 {
			close(done)
		}
	})
	if err != nil {
		b.Fatal(err)
	}
	defer consume.Stop()
	select {
	case <-done:
	case <-time.After(5 * time.Minute):
		b.Fatal("the plain consumer does not come to its end")
	}
	return float64(n) / time.Since(began).Seconds()
}

// watchPeak looks at a process until it has ended; then it sends the most memory that it held, in MiB.
func watchPeak(cmd *exec.Cmd) <-chan float64 {
	peak := make(chan float64, 1)
	go func() {
		last := 0.0
		for {
			mib, err := highWater(cmd.Process.Pid)
			if err != nil || mib == 0 { // a process that has ended, but was not waited for yet, holds none
				peak <- last
				return
			}
			last = mib
			<-time.After(20 * time.Millisecond) // the next look
		}
	}()
	return peak
}

// BenchmarkIdlePoll counts what a poll costs that brings nothing.
func BenchmarkIdlePoll(b *testing.B) {
	sim := protimetest.NewServer(protimetest.Options{Tenant: "acme"})
	defer sim.Close()
	sim.Tenant("acme").Fill("clockings", 10, benchSize)
	js, url := testJetStream(b)
	cmd := follow(b, b.TempDir(), sim.URL, url)
	waitMessages(b, js.Conn(), 10)
	sim.ResetRequests()
	began := time.Now()
	if !poll(20*time.Second, func() bool { return sim.RequestCount() >= 50 }) {
		b.Fatal("no polls")
	}
	elapsed := time.Since(began)
	polls := 0
	for _, r := range sim.Requests() {
		if strings.HasPrefix(r.Path, protimetest.Root+"delta/") {
			polls++
		}
	}
	b.ReportMetric(float64(len(sim.Requests()))/float64(polls), "requests/poll")
	b.ReportMetric(float64(polls)/elapsed.Seconds(), "polls/s")
	b.ReportMetric(peak(b, cmd), "peak-MiB")
	b.ReportMetric(0, "ns/op")
}

func waitMessages(b *testing.B, nc *nats.Conn, last uint64) {
	b.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		b.Fatal(err)
	}
	ok := poll(5*time.Minute, func() bool {
		s, err := js.Stream(context.Background(), bridge.StreamName("acme", "clockings"))
		return err == nil && s.CachedInfo().State.LastSeq >= last
	})
	if !ok {
		b.Fatalf("the stream does not reach %d", last)
	}
}

// bare publishes n ready-made messages the fastest way there is and returns how many a second: as a chain with an
// acknowledgement on every 500th and two groups open, or as atomic batches of 1,000.
func bare(b *testing.B, nc *nats.Conn, form string, n int) float64 {
	b.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		b.Fatal(err)
	}
	ctx := context.Background()
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "BARE", Subjects: []string{"bare.*"}, AllowAtomicPublish: true}); err != nil {
		b.Fatal(err)
	}
	defer js.DeleteStream(ctx, "BARE")
	group, open := 500, 2
	if form == "batch" {
		group, open = 1000, 1
	}
	data := []byte(strings.Repeat("x", benchSize))
	msgs := make([]*nats.Msg, n)
	inbox := nc.NewRespInbox()
	for i := range msgs {
		h := nats.Header{
			"ce-specversion": {"1.0"}, "ce-id": {fmt.Sprintf("acme/clockings/%d/0000090200004BD0000A", i)},
			"ce-source": {"https://acme.myprotime.eu/connector/protimeapi/api/v1/clockings"}, "ce-type": {"eu.myprotime.clockings.upserted"},
			"ce-subject": {strconv.Itoa(i)}, "ce-time": {"2026-11-20T09:00:00.123456789Z"}, "content-type": {"application/json"},
			"ce-datacontenttype": {"application/json"},
			"ce-changeversion":   {"0000090200004BD0000A"}, "ce-origin": {"snapshot"}, "clockbridge-walk": {"1"},
		}
		msgs[i] = &nats.Msg{Subject: fmt.Sprintf("bare.%d", i), Header: h, Data: data}
		last := i%group == group-1
		if last {
			msgs[i].Reply = inbox
		}
		if form == "chain" || i%group == 0 {
			h["Nats-Expected-Last-Sequence"] = []string{strconv.Itoa(i)}
		}
		if form == "batch" {
			h["Nats-Batch-Id"] = []string{fmt.Sprintf("bare-%d", i/group)}
			h["Nats-Batch-Sequence"] = []string{strconv.Itoa(i%group + 1)}
			if last {
				h["Nats-Batch-Commit"] = []string{"1"}
			}
		}
	}
	sub, err := nc.SubscribeSync(inbox)
	if err != nil {
		b.Fatal(err)
	}
	defer sub.Unsubscribe()
	acked := func() {
		ack, err := sub.NextMsg(10 * time.Second)
		if err != nil || strings.Contains(string(ack.Data), `"error"`) {
			b.Fatalf("bare publish: %v %s", err, ack.Data)
		}
	}
	began := time.Now()
	waiting := 0
	for i, m := range msgs {
		if err := nc.PublishMsg(m); err != nil {
			b.Fatal(err)
		}
		if i%group == group-1 {
			if waiting++; waiting == open {
				acked()
				waiting--
			}
		}
	}
	for ; waiting > 0; waiting-- {
		acked()
	}
	return float64(n) / time.Since(began).Seconds()
}
