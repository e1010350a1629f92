//go:build torture

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"clockbridge/bridge"
)

// process is a program that is killed, frozen and started again. What it prints in all its lives goes to one file.
type process struct {
	t       *testing.T
	name    string
	log     string
	env     []string
	command []string

	cmd   *exec.Cmd
	ended chan struct{} // closed when this life is over
}

func (p *process) start() {
	p.t.Helper()
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		p.t.Fatal(err)
	}
	defer log.Close()
	fmt.Fprintf(log, "--- %s %s starts\n", time.Now().UTC().Format(time.RFC3339Nano), p.name)
	cmd := exec.Command(p.command[0], p.command[1:]...)
	cmd.Env = append(os.Environ(), p.env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // nothing outlives a test binary that is killed itself
	if err := cmd.Start(); err != nil {
		p.t.Fatalf("start %s: %v", p.name, err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		cmd.Wait() //nolint:errcheck // how it ended is read from its state
	}()
	p.cmd, p.ended = cmd, ended
}

// signal sends sig to the process, if it is still there.
func (p *process) signal(sig syscall.Signal) { p.cmd.Process.Signal(sig) }

func (p *process) running() bool {
	if p.cmd == nil {
		return false
	}
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// kill ends the process with SIGKILL, frozen or not, and waits until it is gone. One that has ended by itself before is a
// failure of the test.
func (p *process) kill() {
	p.t.Helper()
	if !p.running() {
		p.t.Errorf("%s ended by itself: %v; see %s", p.name, p.cmd.ProcessState, p.log)
		return
	}
	p.signal(syscall.SIGKILL)
	<-p.ended
}

// exit waits until the process has ended by itself and returns its code.
func (p *process) exit(within time.Duration) (code int, ended bool) {
	select {
	case <-p.ended:
		return p.cmd.ProcessState.ExitCode(), true
	case <-time.After(within):
		return 0, false
	}
}

// said returns what the process has printed so far.
func (p *process) said() string {
	text, _ := os.ReadFile(p.log) // it may not be there yet
	return string(text)
}

// instance is one `clockbridge run` with a data directory of its own.
type instance struct {
	process
	data string  // directory
	http string  // address of its status page
	api  *wire   // between it and the API
	nats []*wire // between it and each node
}

// heartbeat of the instances: short, so that a takeover is.
const heartbeat = 500 * time.Millisecond

// instance returns one that is not started yet.
func (r *rig) instance(name string) *instance {
	r.Helper()
	b := &instance{data: filepath.Join(r.dir, name), http: fmt.Sprintf("127.0.0.1:%d", freePort(r.T)), api: newWire(r.T, strings.TrimPrefix(r.sim.URL, "http://"))}
	var urls []string
	for _, n := range r.servers.nodes {
		w := newWire(r.T, n.addr)
		b.nats = append(b.nats, w)
		urls = append(urls, "nats://"+w.addr())
	}
	file := filepath.Join(r.dir, name+".yaml")
	text := fmt.Sprintf("tenants:\n  - {name: %s, client_id: demo, poll_interval: 20ms, api_url: %q, auth_url: %q}\n"+
		"nats: {url: %q, replicas: %d}\ndata_dir: %s\nhttp_addr: %s\nheartbeat: %s\nlog_level: debug\nlog_format: text\n",
		r.tenant, "http://"+b.api.addr(), "http://"+b.api.addr(), strings.Join(urls, ","), len(r.servers.nodes), b.data, b.http, heartbeat)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		r.Fatal(err)
	}
	b.process = process{
		t: r.T, name: name, log: filepath.Join(r.dir, name+".log"), env: []string{"PROTIME_CLIENT_SECRET=" + secret},
		command: []string{"clockbridge", "run", "--config", file},
	}
	r.instances = append(r.instances, b)
	return b
}

// stop ends the instance as a service manager does; it must end well, and in time.
func (b *instance) stop() {
	b.t.Helper()
	b.signal(syscall.SIGTERM)
	b.ends()
}

// ends waits until the instance has ended after SIGTERM: well, and in time. (A second SIGTERM would end it at once.)
func (b *instance) ends() {
	b.t.Helper()
	switch code, ended := b.exit(12 * time.Second); {
	case !ended:
		b.t.Errorf("%s did not end within 12 s of SIGTERM; see %s", b.name, b.log)
		b.signal(syscall.SIGQUIT) // its goroutines say why
		<-b.ended
	case code != 0:
		b.t.Errorf("%s ended with %v after SIGTERM, want 0; see %s", b.name, b.cmd.ProcessState, b.log)
	}
}

// status is what the instance says of its only feed; a zero one if it says nothing.
func (b *instance) status() bridge.Status {
	client := http.Client{Timeout: 2 * time.Second}
	resp, err := client.Get("http://" + b.http + "/status.json")
	if err != nil {
		return bridge.Status{}
	}
	defer resp.Body.Close()
	var page statusPage
	if err := json.NewDecoder(resp.Body).Decode(&page); err != nil || len(page.Feeds) != 1 {
		return bridge.Status{}
	}
	return page.Feeds[0]
}

// shows waits until the feed's state is one of those.
func (b *instance) shows(within time.Duration, states ...bridge.State) {
	b.t.Helper()
	var last bridge.Status
	ok := poll(within, func() bool {
		last = b.status()
		for _, s := range states {
			if last.State == s {
				return true
			}
		}
		return false
	})
	if !ok {
		b.t.Errorf("%s shows %q (%s) after %s, want one of %q; see %s", b.name, last.State, last.Error, within, states, b.log)
	}
}

// cluster is one nats-server, or a cluster of them, each a process of its own.
type cluster struct {
	*place
	nodes []*node
	wires map[[2]int]*wire // the route that the second node hears from the first
	js    jetstream.JetStream
}

type node struct {
	process
	index   int
	addr    string // for clients
	monitor string
	routes  string // where other nodes reach it
	store   string // directory
	limit   string // max_file
}

// startServers starts n nodes. They are ended, and what they leave is removed unless the test has failed, when t ends.
func startServers(t *testing.T, n int) *cluster {
	t.Helper()
	s := newServers(t, n)
	s.start()
	return s
}

func newServers(t *testing.T, n int) *cluster {
	t.Helper()
	if *natsServer == "" {
		t.Fatal("the torture suite needs a nats-server: go install github.com/nats-io/nats-server/v2@v2.15.2, then -nats-server=$(go env GOPATH)/bin/nats-server")
	}
	s := &cluster{place: newPlace(t), wires: map[[2]int]*wire{}}
	for i := range n {
		name := fmt.Sprintf("n%d", i)
		s.nodes = append(s.nodes, &node{
			index: i, addr: fmt.Sprintf("127.0.0.1:%d", freePort(t)), monitor: fmt.Sprintf("127.0.0.1:%d", freePort(t)),
			routes: fmt.Sprintf("127.0.0.1:%d", freePort(t)), store: filepath.Join(s.dir, name), limit: "1GB",
			process: process{
				t: t, name: name, log: filepath.Join(s.dir, name+".log"),
				command: []string{*natsServer, "-c", filepath.Join(s.dir, name+".conf")},
			},
		})
	}
	for i := range n {
		for j := range i {
			s.wires[[2]int{i, j}] = newWire(t, s.nodes[j].routes)
		}
	}
	t.Cleanup(s.close)
	return s
}

// start starts every node and waits until JetStream answers.
func (s *cluster) start() {
	s.t.Helper()
	var urls []string
	for _, n := range s.nodes {
		s.configure(n)
		n.start()
		urls = append(urls, "nats://"+n.addr)
	}
	nc, err := nats.Connect(strings.Join(urls, ","), nats.MaxReconnects(-1), nats.RetryOnFailedConnect(true), nats.ReconnectWait(100*time.Millisecond),
		nats.PingInterval(time.Second), nats.Timeout(time.Second))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(nc.Close)
	if s.js, err = jetstream.New(nc); err != nil {
		s.t.Fatal(err)
	}
	s.healthy(s.t, time.Minute)
}

// configure writes the file of a node. Of two nodes the later one dials, through a wire of its own; what nodes tell each
// other of their addresses leads nowhere, so that no route goes another way.
func (s *cluster) configure(n *node) {
	s.t.Helper()
	text := fmt.Sprintf("server_name: %s\nlisten: %q\nhttp: %q\nping_interval: 2s\njetstream {store_dir: %q, max_mem: 64MB, max_file: %s}\n",
		n.name, n.addr, n.monitor, n.store, n.limit)
	if len(s.nodes) > 1 {
		var routes []string
		for j := range len(s.nodes) - 1 {
			to := fmt.Sprintf("127.0.0.1:%d", 1+j) // nobody: a node wants to know of as many others as there are
			if j < n.index {
				to = s.wires[[2]int{n.index, j}].addr()
			}
			routes = append(routes, fmt.Sprintf("%q", "nats-route://"+to))
		}
		text += fmt.Sprintf("cluster {name: torture, listen: %q, advertise: \"127.0.0.1:1\", no_advertise: true, routes: [%s]}\n",
			n.routes, strings.Join(routes, ", "))
	}
	if err := os.WriteFile(filepath.Join(s.dir, n.name+".conf"), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// healthy waits until every node says that all it holds is there and up to date.
func (s *cluster) healthy(t testing.TB, within time.Duration) {
	t.Helper()
	if sick := s.sickAfter(within); sick != "" {
		t.Fatalf("nats-server not healthy within %s: %s; see %s", within, sick, s.dir)
	}
}

// sickAfter waits like healthy, and says what keeps a node from it at last, "" for nothing.
func (s *cluster) sickAfter(within time.Duration) (sick string) {
	poll(within, func() bool {
		for _, n := range s.nodes {
			if sick = n.sick(); sick != "" {
				return false
			}
		}
		return true
	})
	return sick
}

// sick is what keeps a node from being healthy, "" for nothing.
func (n *node) sick() string {
	client := http.Client{Timeout: time.Second}
	resp, err := client.Get("http://" + n.monitor + "/healthz")
	if err != nil {
		return n.name + ": " + err.Error()
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		why, _ := io.ReadAll(resp.Body) // its status says enough
		return fmt.Sprintf("%s: %s %s", n.name, resp.Status, why)
	}
	return ""
}

// leader is the node that leads a stream, or any that runs if none is known to.
func (s *cluster) leader(stream string) *node {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if found, err := s.js.Stream(ctx, stream); err == nil {
		if c := found.CachedInfo().Cluster; c != nil {
			for _, n := range s.nodes {
				if n.name == c.Leader {
					return n
				}
			}
		}
	}
	return s.nodes[0]
}

// stop ends a node as a service manager does.
func (n *node) stop() {
	n.t.Helper()
	n.signal(syscall.SIGTERM)
	if _, ended := n.exit(20 * time.Second); !ended {
		n.t.Errorf("%s did not end within 20 s of SIGTERM; see %s", n.name, n.log)
		n.kill()
	}
}

func (s *cluster) close() {
	for _, n := range s.nodes {
		if n.running() {
			n.kill()
		}
	}
}

var nextPort atomic.Int32

// freePort is one that nobody listens on now, and that no connection is given by the system while its server is down.
func freePort(t testing.TB) int {
	t.Helper()
	nextPort.CompareAndSwap(0, 20_000+rand.Int32N(5_000))
	for range 5_000 {
		port := int(nextPort.Add(1))
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}
