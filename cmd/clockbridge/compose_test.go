//go:build compose

// The compose suite: what the README says of docker compose, done as an operator does it. See README, "With docker compose".
//
//	unshare --net --mount --pid --fork --kill-child --mount-proc go test -tags compose ./cmd/clockbridge -run Compose -compose.plugin=...
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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
	began := time.Now()
	for _, test := range []struct {
		name string
		run  func(*stack)
	}{
		{"Tenant", tenantStack}, {"Several", severalStack}, {"Standby", standbyStack}, {"Demo", demoStack}, {"Cluster", clusterStack},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.run(newStack(t, d, dir))
		})
	}
	if took := time.Since(began).Round(time.Second); took > suiteWithin {
		t.Errorf("it took %s with the images built, want less than %s", took, suiteWithin)
	}
}

// How long the suite may take with the images built. It takes some three minutes; the rest is for a machine that does other things too.
// One tenant through every fault has three minutes for itself, and needs one.
const (
	tenantWithin = 3 * time.Minute
	suiteWithin  = 5 * time.Minute
)

// tenantStack: a tenant that .env names. Each container is killed, the network goes away, everything goes down and up again, while
// changes flow.
func tenantStack(s *stack) {
	began := time.Now()
	s.tenant()
	s.literally("docker compose up --detach --wait")
	s.confined()
	s.healthy("bridge-1", bridge.StateHealthy)
	s.grows()
	if out := s.literally("docker compose exec bridge clockbridge status"); !strings.Contains(out, "acme/clockings  healthy") {
		s.Errorf("status says\n%s", out)
	}
	if address := s.literally("docker compose port bridge 8080"); s.get("http://"+address+"/healthz") != "ok\n" {
		s.Errorf("nothing answers at %q", address)
	}

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
	s.followed[0].sim.KillTokens()
	s.shows("bridge-1", bridge.StateUnauthorized)
	s.write("secrets/protime", secret+"\n")
	s.literally("docker compose exec bridge clockbridge sync-now")
	s.shows("bridge-1", bridge.StateHealthy)
	s.literally("docker compose restart bridge")
	s.healthy("bridge-1", bridge.StateHealthy)
	if out := s.literally("docker compose ps"); strings.Count(out, "(healthy)") != 2 {
		s.Errorf("ps says\n%s", out)
	}

	s.literally("docker compose --profile '*' down")
	s.up()
	s.healthy("bridge-1", bridge.StateHealthy)
	s.natsHealth()
	s.exact()
	if took := time.Since(began).Round(time.Second); took > tenantWithin {
		s.Errorf("it took %s, want less than %s", took, tenantWithin)
	}
}

// severalStack: tenants that a file names, which an override mounts, and the NATS server too; watched by Prometheus and Grafana.
func severalStack(s *stack) {
	s.files = []string{"--profile", "observability"}
	s.write("secrets/acme", secret+"\n")
	s.write("secrets/other", secret+"\n")
	s.write(".env", "CLOCKBRIDGE_CONFIG=/etc/clockbridge.yml\nNATS_URL=\n")
	const tenant = `  - {name: %[1]s, client_id: bridge, client_secret_file: /run/secrets/%[1]s, api_url: "%[2]s", auth_url: "%[2]s", poll_interval: 200ms}` + "\n"
	s.write("clockbridge.yml", "tenants:\n"+fmt.Sprintf(tenant, "acme", s.api("acme"))+fmt.Sprintf(tenant, "other", s.api("other"))+
		"nats: {url: nats://"+s.container("nats-1")+":4222}\n")
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
	s.literally("docker compose --profile observability up --detach --wait")
	s.healthy("bridge-1", bridge.StateHealthy)
	out := s.compose("exec", "-T", "bridge", "clockbridge", "check")
	for _, want := range []string{"configuration: 2 tenant(s)", "API of other, clockings: token and list", "NATS: nats://" + s.container("nats-1") + ":4222,", "in use by a running clockbridge"} {
		if !strings.Contains(out, want) {
			s.Errorf("check says\n%s\nwant %q", out, want)
		}
	}
	s.exact()
}

// standbyStack: of two bridges one follows and one stands by, each with a data directory of its own.
func standbyStack(s *stack) {
	s.tenant()
	s.literally("docker compose up --detach --wait --scale bridge=2")
	if address := s.literally("docker compose port --index 2 bridge 8080"); s.get("http://"+address+"/healthz") != "ok\n" {
		s.Errorf("nothing answers at %q", address)
	}
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

// demoStack: without .env, against the simulator; first alone and in sight, then watched by Prometheus and Grafana.
func demoStack(s *stack) {
	s.files = []string{"--profile", "demo", "--profile", "observability"}
	s.must("image", "rm", "clockbridge:v1.2.3-test") // it is built by up, for bridge and for sim
	interrupt := s.attached("docker compose --profile demo up")
	s.healthy("bridge-1", bridge.StateHealthy)
	interrupt()
	s.literally("docker compose --profile demo down --volumes")
	s.literally("docker compose --profile demo --profile observability up --detach --wait")
	s.healthy("bridge-1", bridge.StateHealthy)
	s.exactDemo()

	// A simulator that crashes has forgotten all, and makes its tenant anew: to clockbridge a database that was restored. Ids and
	// versions are used again, and until it has lived as long as the one before, a new record may be taken for one of those.
	s.kill("sim-1")
	s.resynced(1)
	trusted := uint64(1)
	if !poll(time.Minute, func() bool {
		trusted++
		s.compose("exec", "-T", "bridge", "clockbridge", "resync", "--trust-api")
		s.resynced(trusted)
		_, err := s.verify()
		return err == nil
	}) {
		s.exactDemo() // it says what differs
	}

	s.kill("prometheus-1")
	s.kill("grafana-1")
	scraped := poll(30*time.Second, func() bool {
		return strings.Contains(s.get("http://127.0.0.1:9090/api/v1/query?query=clockbridge_published_changes_total"), `"tenant":"demo"`)
	})
	if !scraped {
		s.Errorf("Prometheus knows nothing of clockbridge: %s", s.get("http://127.0.0.1:9090/api/v1/targets"))
	}
	if rules := s.get("http://127.0.0.1:9090/api/v1/rules"); !strings.Contains(rules, `"type":"alerting"`) {
		s.Errorf("Prometheus has no alert rules: %s", rules)
	}
	for _, name := range []string{"provisioning/datasources/prometheus.yml", "provisioning/dashboards/clockbridge.yml", "dashboards/clockbridge.json"} {
		want, err := os.ReadFile(filepath.Join(s.dir, "deploy", "grafana", name))
		got := ""
		if err != nil || !poll(30*time.Second, func() bool { got = s.get("http://127.0.0.1:3000/" + name); return got == string(want) }) {
			s.Errorf("Grafana has of %s: %.100q, %v", name, got, err)
		}
	}
	s.must("exec", s.container("grafana-1"), "wget", "-qO", "/dev/null", "http://prometheus:9090/-/ready") // as its data source says
	s.compose("config", "--quiet")

	s.literally("docker compose --profile '*' down")
	if left := s.must("ps", "--all", "--quiet"); left != "" {
		s.Errorf("these containers are left: %s", left)
	}
	if volumes := s.must("volume", "ls", "--quiet"); !strings.Contains(volumes, s.project+"_nats") {
		s.Errorf("the stream is gone; volumes are %q", volumes)
	}
}

// exactDemo: the stream is what the simulator holds.
func (s *stack) exactDemo() {
	s.Helper()
	if out, err := s.verify(); err != nil || !strings.Contains(out, "demo/clockings") {
		s.Fatalf("verify ends with %v, and says\n%s", err, out)
	}
}

func (s *stack) verify() (string, error) {
	return s.try(s.dir, "docker", "compose", "exec", "-T", "bridge", "clockbridge", "verify", "--patience", "5s")
}

// resynced waits until so many resyncs have been done, and all is well.
func (s *stack) resynced(n uint64) {
	s.Helper()
	var last statusPage
	done := poll(time.Minute, func() bool {
		last = s.status("bridge-1")
		return last.Ready && uint64(last.Feeds[0].Resyncs) >= n && last.Feeds[0].Phase == bridge.OriginDelta
	})
	if !done {
		s.Fatalf("after a minute there were not %d resyncs: %+v", n, last.Feeds)
	}
}

// clusterStack: three servers, of which one may go.
func clusterStack(s *stack) {
	s.files = []string{"-f", "docker-compose.yml", "-f", "deploy/cluster.yml"}
	s.tenant()
	s.literally("docker compose -f docker-compose.yml -f deploy/cluster.yml up --detach --wait")
	s.healthy("bridge-1", bridge.StateHealthy)
	s.grows()
	stream, err := s.js.Stream(s.Context(), s.followed[0].stream)
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

// stack is a project of docker compose, and the APIs outside that its tenants are followed at.
type stack struct {
	*docker
	t        *testing.T
	dir      string
	project  string
	files    []string // flags of every docker compose
	followed []followed
	js       jetstream.JetStream
}

// followed is a tenant whose records change all the time.
type followed struct {
	stream string
	sim    *protimetest.Server
	stop   func() // ends the flow of changes
}

// newStack returns a project that ends, volumes and all, with t. What its containers said must hold no secret.
func newStack(t *testing.T, d *docker, dir string) *stack {
	own := *d
	own.T = t
	s := &stack{docker: &own, t: t, dir: dir, project: "clockbridge"}
	t.Cleanup(func() {
		s.stop()
		said := s.compose("logs", "--no-color")
		for _, hidden := range []string{secret, "eyJhbGciOi", "eyJ2YWxpZGF0"} { // tokens, and what cursors hold
			if strings.Contains(said, hidden) {
				t.Error("a log shows a secret")
			}
		}
		if t.Failed() {
			t.Logf("containers:\n%s\nlogs:\n%s", s.compose("ps", "--all"), said)
		}
		s.compose("down", "--volumes")
		os.Remove(filepath.Join(dir, ".env"))
		os.RemoveAll(filepath.Join(dir, "secrets"))
	})
	nc, err := nats.Connect("nats://127.0.0.1:4222", nats.MaxReconnects(-1), nats.RetryOnFailedConnect(true), nats.ReconnectWait(100*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	if s.js, err = jetstream.New(nc); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *stack) stop() {
	for _, f := range s.followed {
		f.stop()
	}
}

// tenant makes a tenant, and writes the .env that follows it, as the README says.
func (s *stack) tenant() {
	s.Helper()
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		s.Fatal(err)
	}
	_, made, _ := strings.Cut(string(readme), "\n    mkdir -m 700 secrets\n")
	made, _, _ = strings.Cut(made, "\n\n")
	if out, err := s.try(s.dir, "sh", "-ec", "mkdir -m 700 secrets\n"+strings.ReplaceAll(strings.TrimPrefix(made, "    "), "\n    ", "\n")); err != nil {
		s.Fatalf("the README's commands end with %v: %s", err, out)
	}
	s.write("secrets/protime", secret+"\n")
	env, err := os.ReadFile(filepath.Join(s.dir, ".env"))
	if err != nil {
		s.Fatal(err)
	}
	api := s.api("acme")
	s.write(".env", string(env)+"PROTIME_API_URL="+api+"\nPROTIME_AUTH_URL="+api+"\nPROTIME_POLL_INTERVAL=200ms\nCLOCKBRIDGE_HEARTBEAT=1s\n") // for this test
}

// api serves the API of a tenant to every container, by TLS, and returns its URL.
func (s *stack) api(tenant string) string {
	s.Helper()
	gateway, err := net.InterfaceByName("docker0") // from every container this machine is there
	if err != nil {
		s.Fatal(err)
	}
	addrs, err := gateway.Addrs()
	if err != nil || len(addrs) == 0 {
		s.Fatalf("docker0 has no address: %v", err)
	}
	ip := addrs[0].(*net.IPNet).IP
	own := s.certificate(&x509.Certificate{IPAddresses: []net.IP{ip}}, s.authority.Leaf)
	l, err := tls.Listen("tcp", "0.0.0.0:0", &tls.Config{Certificates: []tls.Certificate{own}})
	if err != nil {
		s.Fatal(err)
	}
	sim := protimetest.New(protimetest.Options{Tenant: tenant, ClientID: "bridge", ClientSecret: secret})
	server := &http.Server{Handler: sim, ErrorLog: log.New(io.Discard, "", 0)}
	go server.Serve(l)
	s.Cleanup(func() { server.Close() })
	people := protimetest.NewWorkload(sim, tenant, protimetest.WorkloadOptions{People: 30})
	people.Backfill(20)
	ctx, cancel := context.WithCancel(s.Context())
	flowing := make(chan struct{})
	go func() {
		defer close(flowing)
		work(ctx, 50, func() { people.Step() })
	}()
	s.followed = append(s.followed, followed{bridge.StreamName(tenant, "clockings"), sim, func() { cancel(); <-flowing }})
	return "https://" + net.JoinHostPort(ip.String(), strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
}

// literally runs a command that stands in the README, word for word, in the checkout.
func (s *stack) literally(command string) string {
	s.Helper()
	out, err := s.try(s.dir, "timeout", "180", "sh", "-c", command) // whoever waits for what does not come waits for ever
	if err != nil {
		s.Fatalf("%s: %v\n%s", command, err, out)
	}
	return out
}

// attached does the same with a command that goes on, and waits until there are containers. It is interrupted as by a terminal.
func (s *stack) attached(command string) (interrupt func()) {
	s.Helper()
	said, err := os.Create(filepath.Join(s.TempDir(), "said"))
	if err != nil {
		s.Fatal(err)
	}
	defer said.Close()
	c := exec.Command("sh", "-c", command)
	c.Dir, c.Env, c.Stdout, c.Stderr, c.SysProcAttr = s.dir, s.env, said, said, &syscall.SysProcAttr{Setpgid: true}
	if err := c.Start(); err != nil {
		s.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	if !poll(3*time.Minute, func() bool { return s.must("ps", "--quiet", "--filter", "name=bridge-1") != "" }) {
		text, _ := os.ReadFile(said.Name()) // it is there
		s.Fatalf("%s starts nothing:\n%s", command, text)
	}
	return func() {
		s.Helper()
		syscall.Kill(-c.Process.Pid, syscall.SIGINT) //nolint:errcheck // what has ended is no worse
		select {
		case <-ended: // with whatever code
		case <-time.After(time.Minute):
			s.Fatalf("%s does not end", command)
		}
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
	if err != nil || len(page.Feeds) == 0 {
		return statusPage{}
	}
	return page
}

func (s *stack) inside(name, path string) (string, error) {
	return s.try("", "nsenter", "--net", "--target", s.inspect(name, "{{.State.Pid}}"), "curl", "-sf", "-m", "2", "http://127.0.0.1:8080"+path)
}

// shows waits until every feed of an instance is in a state, and readiness says the same.
func (s *stack) shows(name string, state bridge.State) {
	s.Helper()
	var last statusPage
	ok := poll(time.Minute, func() bool {
		last = s.status(name)
		_, notReady := s.inside(name, "/readyz")
		other := slices.ContainsFunc(last.Feeds, func(f bridge.Status) bool { return f.State != state || f.Ready() != last.Ready })
		return len(last.Feeds) > 0 && !other && last.Ready == (notReady == nil)
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

// grows waits until there are more changes in the stream of the first tenant.
func (s *stack) grows() {
	s.Helper()
	name := s.followed[0].stream
	var first, last uint64
	ok := poll(time.Minute, func() bool {
		ctx, cancel := context.WithTimeout(s.Context(), time.Second)
		defer cancel()
		stream, err := s.js.Stream(ctx, name)
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
		s.Fatalf("%s stands still at %d", name, last)
	}
}

// exact ends the flow of changes and waits until every stream is what the API holds.
func (s *stack) exact() {
	s.Helper()
	s.stop()
	for _, f := range s.followed {
		truth := f.sim.Truth("clockings")
		var v verdict
		var err error
		poll(time.Minute, func() bool {
			ctx, cancel := context.WithTimeout(s.Context(), 10*time.Second)
			defer cancel()
			v, err = judge(ctx, s.js, f.stream, truth)
			return err == nil && (v.exact() || v.duplicates+v.disorder > 0)
		})
		if err != nil || !v.exact() {
			s.Fatalf("%s: %+v, %v, want nothing missing, twice or out of order", f.stream, v, err)
		}
		s.Logf("%s is exact: %d messages of %d records", f.stream, v.changes, len(truth))
	}
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
	if err != nil {
		return err.Error()
	}
	return string(body)
}
