//go:build compose

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
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
