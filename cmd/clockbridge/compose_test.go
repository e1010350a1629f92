//go:build compose

// The compose suite: what the README says of docker compose, done as an operator does it. See README, "With docker compose".
//
//	unshare --net --mount --pid --fork --kill-child --mount-proc go test -tags compose ./cmd/clockbridge -run Compose -compose.plugin=...
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"clockbridge/bridge"
	"clockbridge/protime/protimetest"
)

// TestCompose: one engine, and one project after the other.
func TestCompose(t *testing.T) {
	d := startDocker(t)
	d.standIns()
	dir := checkout(t)
	d.env = append(d.env, "CLOCKBRIDGE_VERSION=v1.2.3-test")
	if out, err := d.try(dir, "docker", "compose", "build"); err != nil {
		t.Fatalf("docker compose build: %v\n%s", err, out)
	}
	images := time.Now()
	for _, test := range []struct {
		name string
		run  func(*stack)
	}{
		{"Tenant", tenantStack}, {"Several", severalStack}, {"Standby", standbyStack}, {"Demo", demoStack}, {"Cluster", clusterStack},
	} {
		t.Run(test.name, func(t *testing.T) {
			began := time.Now()
			test.run(newStack(t, d, dir))
			t.Logf("took %s", time.Since(began).Round(time.Second))
		})
	}
	t.Logf("all took %s with the images built", time.Since(images).Round(time.Second))
}

// tenantStack: a tenant that .env names. Each container is killed, the network goes away, everything goes down and up again, while
// changes flow.
func tenantStack(s *stack) {
	s.tenant()
	s.up()
	s.confined()
	s.healthy("bridge-1", bridge.StateHealthy)
	s.grows()

	s.kill("bridge-1")
	s.healthy("bridge-1", bridge.StateHealthy)
	s.kill("nats-1")
	s.healthy("bridge-1", bridge.StateHealthy)
	s.grows()

	s.must("network", "disconnect", s.network(), s.container("bridge-1"))
	s.shows("bridge-1", bridge.StateRetrying)
	s.stillHealthy("bridge-1")
	s.must("network", "connect", "--alias", "bridge", s.network(), s.container("bridge-1"))
	s.healthy("bridge-1", bridge.StateHealthy)
	s.grows()

	s.must("stop", s.container("nats-1"))
	s.shows("bridge-1", bridge.StateRetrying)
	s.stillHealthy("bridge-1")
	s.must("start", s.container("nats-1"))
	s.healthy("bridge-1", bridge.StateHealthy)

	s.write("secrets/protime", "wrong\n")
	s.sim.KillTokens()
	s.shows("bridge-1", bridge.StateUnauthorized)
	s.write("secrets/protime", secret+"\n")
	s.compose("exec", "-T", "bridge", "clockbridge", "sync-now")
	s.shows("bridge-1", bridge.StateHealthy)

	s.compose("down")
	s.up()
	s.healthy("bridge-1", bridge.StateHealthy)
	s.natsHealth()
	s.exact()
}

// severalStack: tenants that a file names, which an override mounts.
func severalStack(s *stack) {
	s.write("secrets/acme", "one\n")
	s.write("secrets/other", "two\n")
	s.write(".env", "CLOCKBRIDGE_CONFIG=/etc/clockbridge.yml\nNATS_URL=nats://127.0.0.1:1\n")
	s.write("clockbridge.yml", `
tenants:
  - {name: acme, client_id: bridge, client_secret_file: /run/secrets/acme, api_url: "http://127.0.0.1:1", auth_url: "http://127.0.0.1:1"}
  - {name: other, client_id: bridge, client_secret_file: /run/secrets/other, api_url: "http://127.0.0.1:1", auth_url: "http://127.0.0.1:1"}
`)
	s.write("docker-compose.override.yml", `
services:
  bridge:
    volumes: ["./clockbridge.yml:/etc/clockbridge.yml:ro"]
    secrets: [acme, other]
secrets:
  acme: {file: ./secrets/acme}
  other: {file: ./secrets/other}
`)
	s.Cleanup(func() { os.Remove(filepath.Join(s.dir, "docker-compose.override.yml")) })
	out, _ := s.try(s.dir, "docker", "compose", "run", "--rm", "--no-deps", "-T", "bridge", "check", "--timeout", "1s") // nothing else runs
	if !strings.Contains(out, "ok    configuration: 2 tenant(s)") || strings.Contains(out, "cannot be read") {
		s.Errorf("check says\n%s", out)
	}
}

// standbyStack: of two bridges one follows and one stands by, each with a data directory of its own.
func standbyStack(s *stack) {
	s.tenant()
	s.up("--scale", "bridge=2")
	first, second := s.holder()
	s.healthy(first, bridge.StateHealthy)
	s.healthy(second, bridge.StateStandby)
	s.grows()

	s.kill(first)
	s.healthy(second, bridge.StateHealthy)
	s.healthy(first, bridge.StateStandby)
	s.grows()

	// What stands still is not well, and another follows meanwhile.
	s.signal(second, syscall.SIGSTOP)
	s.shows(first, bridge.StateHealthy)
	s.health(second, "unhealthy")
	s.grows()
	s.signal(second, syscall.SIGCONT)
	s.healthy(second, bridge.StateStandby)

	s.must("stop", s.container(first))
	s.healthy(second, bridge.StateHealthy)
	s.exact()
	if left := s.must("run", "--rm", "-v", s.project+"_bridge:/data", "--entrypoint", "ls", "nats:2.15-alpine", "/data"); left != "0\n1" {
		s.Errorf("the volume holds %q, want a directory for each of two", left)
	}
}

// demoStack: without .env, against the simulator, watched by Prometheus.
func demoStack(s *stack) {
	s.files = []string{"--profile", "demo", "--profile", "observability"}
	s.must("image", "rm", "clockbridge:v1.2.3-test") // it is built by up, for bridge and for sim
	s.up("bridge", "sim", "prometheus")              // for Grafana nothing stands in
	s.healthy("bridge-1", bridge.StateHealthy)
	if out := s.compose("exec", "-T", "bridge", "clockbridge", "verify", "--patience", "5s"); !strings.Contains(out, "demo/clockings") {
		s.Errorf("verify says %q", out)
	}
	scraped := poll(30*time.Second, func() bool {
		return strings.Contains(s.get("http://127.0.0.1:9090/api/v1/query?query=clockbridge_published_changes_total"), `"tenant":"demo"`)
	})
	if !scraped {
		s.Errorf("Prometheus knows nothing of clockbridge: %s", s.get("http://127.0.0.1:9090/api/v1/targets"))
	}
	if rules := s.get("http://127.0.0.1:9090/api/v1/rules"); !strings.Contains(rules, `"type":"alerting"`) {
		s.Errorf("Prometheus has no alert rules: %s", rules)
	}
	s.compose("config", "--quiet")
}

// clusterStack: three servers, of which one may go.
func clusterStack(s *stack) {
	s.files = []string{"-f", "docker-compose.yml", "-f", "deploy/cluster.yml"}
	s.tenant()
	s.up()
	s.healthy("bridge-1", bridge.StateHealthy)
	s.grows()
	stream, err := s.js.Stream(s.Context(), s.stream)
	if err != nil {
		s.Fatal(err)
	}
	if info := stream.CachedInfo(); info.Config.Replicas != 3 || len(info.Cluster.Replicas) != 2 {
		s.Errorf("stream has %d replicas, %d beside the leader, want 3 and 2", info.Config.Replicas, len(info.Cluster.Replicas))
	}
	s.must("stop", s.container("nats-2-1"))
	s.grows()
	s.kill("nats-3-1")
	s.must("start", s.container("nats-2-1"))
	s.grows()
	s.exact()
}

// stack is a project of docker compose, and the API outside that its tenant is followed at.
type stack struct {
	*docker
	t       *testing.T
	dir     string
	project string
	files   []string // flags of every docker compose
	sim     *protimetest.Server
	stop    context.CancelFunc // of the flow of changes
	stream  string
	js      jetstream.JetStream
}

// newStack returns a project that ends, volumes and all, with t. What its containers said must hold no secret.
func newStack(t *testing.T, d *docker, dir string) *stack {
	own := *d
	own.T = t
	s := &stack{docker: &own, t: t, dir: dir, project: "clockbridge", stop: func() {}}
	t.Cleanup(func() {
		s.stop()
		said := s.compose("logs", "--no-color")
		if strings.Contains(said, secret) || strings.Contains(said, "eyJ") {
			t.Error("a log shows a secret")
		}
		if t.Failed() {
			t.Logf("containers:\n%s\nlogs:\n%s", s.compose("ps", "--all"), said)
		}
		s.compose("down", "--volumes")
		os.Remove(filepath.Join(dir, ".env"))
	})
	return s
}

// tenant makes a tenant whose records change all the time, and writes the .env that follows it.
func (s *stack) tenant() {
	s.Helper()
	l, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		s.Fatal(err)
	}
	s.sim = protimetest.New(protimetest.Options{Tenant: "acme", ClientID: "bridge", ClientSecret: secret})
	server := &http.Server{Handler: s.sim}
	go server.Serve(l)
	s.Cleanup(func() { server.Close() })
	people := protimetest.NewWorkload(s.sim, "acme", protimetest.WorkloadOptions{People: 30})
	people.Backfill(20)
	ctx, cancel := context.WithCancel(s.Context())
	flowing := make(chan struct{})
	go func() {
		defer close(flowing)
		work(ctx, 50, func() { people.Step() })
	}()
	s.stop = func() { cancel(); <-flowing }
	s.stream = bridge.StreamName("acme", "clockings")

	gateway, err := net.InterfaceByName("docker0") // from every container this machine is there
	if err != nil {
		s.Fatal(err)
	}
	addrs, err := gateway.Addrs()
	if err != nil || len(addrs) == 0 {
		s.Fatalf("docker0 has no address: %v", err)
	}
	api := "http://" + net.JoinHostPort(addrs[0].(*net.IPNet).IP.String(), strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
	s.write("secrets/protime", secret+"\n")
	s.write(".env", "PROTIME_TENANT=acme\nPROTIME_CLIENT_ID=bridge\nPROTIME_CLIENT_SECRET_FILE=./secrets/protime\n"+
		// and for this test:
		"PROTIME_API_URL="+api+"\nPROTIME_AUTH_URL="+api+"\nPROTIME_POLL_INTERVAL=200ms\nCLOCKBRIDGE_HEARTBEAT=1s\n")

	nc, err := nats.Connect("nats://127.0.0.1:4222", nats.MaxReconnects(-1), nats.RetryOnFailedConnect(true), nats.ReconnectWait(100*time.Millisecond))
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(nc.Close)
	if s.js, err = jetstream.New(nc); err != nil {
		s.Fatal(err)
	}
}

func (s *stack) write(name, text string) {
	s.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		s.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		s.Fatal(err)
	}
}

// compose runs docker compose in the checkout, which must end well.
func (s *stack) compose(args ...string) string {
	s.Helper()
	command := append(append([]string{"docker", "compose"}, s.files...), args...)
	out, err := s.try(s.dir, command...)
	if err != nil {
		s.Fatalf("%s: %v\n%s", strings.Join(command, " "), err, out)
	}
	return out
}

func (s *stack) up(args ...string) {
	s.Helper()
	s.compose(append([]string{"up", "--detach", "--wait", "--wait-timeout", "90"}, args...)...)
}

func (s *stack) container(name string) string { return s.project + "-" + name }
func (s *stack) network() string              { return s.project + "_default" }

// inspect returns what docker inspect says of a container, by a template.
func (s *stack) inspect(name, template string) string {
	s.Helper()
	return s.must("inspect", "--format", template, s.container(name))
}

// signal sends a signal to the process of a container. What docker kill does would count as a stop by hand.
func (s *stack) signal(name string, sig syscall.Signal) {
	s.Helper()
	pid, err := strconv.Atoi(s.inspect(name, "{{.State.Pid}}"))
	if err != nil || pid == 0 {
		s.Fatalf("%s does not run: %v", name, err)
	}
	if err := syscall.Kill(pid, sig); err != nil {
		s.Fatalf("signal %s: %v", name, err)
	}
}

// kill lets the process of a container crash, and waits until it has been started again.
func (s *stack) kill(name string) {
	s.Helper()
	before := s.inspect(name, "{{.State.StartedAt}}")
	s.signal(name, syscall.SIGKILL)
	if !poll(time.Minute, func() bool {
		return s.inspect(name, "{{.State.Running}} {{.State.StartedAt}}") != "true "+before && s.inspect(name, "{{.State.Running}}") == "true"
	}) {
		s.Fatalf("%s was not started again", name)
	}
}

// status is what an instance says of itself; a zero one if it says nothing. It is asked from inside, since no port leads to a container
// without a network.
func (s *stack) status(name string) statusPage {
	var page statusPage
	out, err := s.inside(name, "/status.json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &page)
	}
	if err != nil || len(page.Feeds) != 1 {
		return statusPage{}
	}
	return page
}

func (s *stack) inside(name, path string) (string, error) {
	return s.try("", "nsenter", "--net", "--target", s.inspect(name, "{{.State.Pid}}"), "curl", "-sf", "-m", "2", "http://127.0.0.1:8080"+path)
}

// shows waits until the only feed of an instance is in a state, and readiness says the same.
func (s *stack) shows(name string, state bridge.State) {
	s.Helper()
	var last statusPage
	ok := poll(time.Minute, func() bool {
		last = s.status(name)
		_, notReady := s.inside(name, "/readyz")
		return len(last.Feeds) == 1 && last.Feeds[0].State == state && last.Ready == last.Feeds[0].Ready() && last.Ready == (notReady == nil)
	})
	if !ok {
		s.Fatalf("%s shows %+v after a minute, want %s", name, last.Feeds, state)
	}
}

// health waits until Docker's health check of a container says so.
func (s *stack) health(name, want string) {
	s.Helper()
	got := ""
	ok := poll(time.Minute, func() bool {
		got = s.inspect(name, "{{.State.Health.Status}}")
		return got == want
	})
	if !ok {
		s.Fatalf("%s is %s after a minute, want %s", name, got, want)
	}
}

// healthy waits until a container is, and its feed in a state.
func (s *stack) healthy(name string, state bridge.State) {
	s.Helper()
	s.shows(name, state)
	s.health(name, "healthy")
}

// stillHealthy waits for the next health check: the process works, although its feed does not.
func (s *stack) stillHealthy(name string) {
	s.Helper()
	const last = `{{with .State.Health}}{{.Status}}{{range .Log}} {{.ExitCode}} {{.Start}}{{end}}{{end}}`
	before, now := s.inspect(name, last), ""
	poll(time.Minute, func() bool {
		now = s.inspect(name, last)
		return now != before
	})
	if log := s.inspect(name, "{{(index .State.Health.Log 0).Output}}"); !strings.HasPrefix(now, "healthy 0 ") || log != "ok" {
		s.Errorf("%s: %s, %q, want it healthy", name, now, log)
	}
}

// grows waits until there are more changes in the stream.
func (s *stack) grows() {
	s.Helper()
	var first, last uint64
	ok := poll(time.Minute, func() bool {
		ctx, cancel := context.WithTimeout(s.Context(), time.Second)
		defer cancel()
		stream, err := s.js.Stream(ctx, s.stream)
		if err != nil {
			return false
		}
		last = stream.CachedInfo().State.LastSeq
		if first == 0 {
			first = last
		}
		return last > first+20
	})
	if !ok {
		s.Fatalf("%s stands still at %d", s.stream, last)
	}
}

// exact ends the flow of changes and waits until the stream is what the API holds.
func (s *stack) exact() {
	s.Helper()
	s.stop()
	truth := s.sim.Truth("clockings")
	var v verdict
	var err error
	poll(time.Minute, func() bool {
		ctx, cancel := context.WithTimeout(s.Context(), 10*time.Second)
		defer cancel()
		v, err = judge(ctx, s.js, s.stream, truth)
		return err == nil && (v.exact() || v.duplicates+v.disorder > 0)
	})
	if err != nil || !v.exact() {
		s.Fatalf("%s: %+v, %v, want nothing missing, twice or out of order", s.stream, v, err)
	}
	s.Logf("exact: %d messages of %d records", v.changes, len(truth))
}

// holder names the instance that follows the feed, and the other one.
func (s *stack) holder() (holds, stands string) {
	s.Helper()
	s.grows()
	one, two := "bridge-1", "bridge-2"
	feeds := s.status(one).Feeds
	if len(feeds) == 1 && strings.HasPrefix(feeds[0].Holder, s.inspect(one, "{{.Config.Hostname}}")+":") {
		return one, two
	}
	return two, one
}

// confined: no secret in what docker shows, and no more rights than needed.
func (s *stack) confined() {
	s.Helper()
	if got := s.compose("exec", "-T", "bridge", "clockbridge", "version"); got != "clockbridge v1.2.3-test" {
		s.Errorf("version: %q", got)
	}
	for _, what := range []string{s.container("bridge-1"), s.container("nats-1"), "clockbridge:v1.2.3-test"} {
		if strings.Contains(s.must("inspect", what), secret) {
			s.Errorf("docker inspect %s shows the secret", what)
		}
	}
	if got := s.inspect("bridge-1", "{{.Config.User}} {{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}}"); got != "65532:65532 true [ALL]" {
		s.Errorf("user, read-only root, capabilities dropped: %s", got)
	}
	for _, name := range []string{"bridge-1", "nats-1"} {
		if got := s.inspect(name, "{{.HostConfig.LogConfig.Config}} {{.HostConfig.RestartPolicy.Name}}"); got != "map[max-file:5 max-size:10m] unless-stopped" {
			s.Errorf("%s: logs and restart: %s", name, got)
		}
	}
	if out := s.compose("exec", "-T", "bridge", "clockbridge", "check"); strings.Contains(out, "FAIL") {
		s.Errorf("check says\n%s", out)
	}
}

// natsHealth: the health check of NATS fails where JetStream is off.
func (s *stack) natsHealth() {
	s.Helper()
	check := s.inspect("nats-1", "{{index .Config.Healthcheck.Test 1}}")
	s.must("exec", s.container("nats-1"), "sh", "-c", check)
	off := s.container("no-jetstream")
	s.must("run", "--detach", "--rm", "--name", off, "nats:2.15-alpine", "nats-server", "--http_port", "8222")
	defer s.must("rm", "--force", off)
	alive := poll(10*time.Second, func() bool {
		_, err := s.try("", "docker", "exec", off, "wget", "-qO", "-", "http://127.0.0.1:8222/healthz")
		return err == nil
	})
	if out, err := s.try("", "docker", "exec", off, "sh", "-c", check); !alive || err == nil {
		s.Errorf("server without JetStream: answers %v, health check %v %s, want it to fail", alive, err, out)
	}
}

// get returns what a URL answers, or why it does not.
func (s *stack) get(url string) string {
	resp, err := http.Get(url)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return fmt.Sprint(string(body), err)
}
