//go:build compose

// The compose suite: what the README says of docker compose, done as an operator does it. See README, "With docker compose".
//
//	unshare --net --mount --pid --fork --kill-child --mount-proc go test -tags compose ./cmd/clockbridge -run Compose -compose.plugin=...
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"clockbridge/bridge"
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
	t.Logf("all took %s with the images built", time.Since(began).Round(time.Second))
}

// tenantWithin is how long one tenant may take through every fault, with the images built. It takes one minute; the rest is for a
// machine that does other things too.
const tenantWithin = 3 * time.Minute

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
