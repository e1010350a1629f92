package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// logBuffer takes what several goroutines log.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func TestStartEmbedded(t *testing.T) {
	var log logBuffer
	s, err := startEmbedded(t.TempDir(), server.RANDOM_PORT, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { s.Shutdown(); s.WaitForShutdown() }()
	address := s.Addr().(*net.TCPAddr)
	if !address.IP.IsLoopback() {
		t.Errorf("listens on %s, want the loopback address", address)
	}
	nc, err := connect(natsConfig{URL: s.ClientURL()}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(context.Background(), jetstream.StreamConfig{Name: "S", Storage: jetstream.FileStorage}); err != nil {
		t.Errorf("create stream: %v", err)
	}
	if v, err := s.Varz(nil); err != nil || !v.JetStream.Config.SyncAlways || v.JetStream.Config.MaxMemory != embeddedMemory {
		t.Errorf("JetStream %+v, %v, want every write synced and memory limited", v.JetStream.Config, err)
	}

	t.Run("port taken", func(t *testing.T) {
		_, err := startEmbedded(t.TempDir(), address.Port, slog.New(slog.DiscardHandler))
		if err == nil || !strings.Contains(err.Error(), "is taken: stop what listens there, or set NATS_URL") {
			t.Errorf("got %v, want what to do about the port", err)
		}
	})
}

// A NATS that is not there yet is waited for, and credentials that are refused are tried again with what their file
// holds by then.
func TestConnect(t *testing.T) {
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte("hunter1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, NoSigs: true, NoLog: true, Username: "bridge", Password: "hunter2"})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	defer func() { s.Shutdown(); s.WaitForShutdown() }()
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("nats-server is not ready")
	}
	noEnvironment(t)
	var log logBuffer
	nc, err := connect(natsConfig{URL: s.ClientURL(), User: "bridge", PasswordFile: file}, slog.New(slog.NewTextHandler(&log, nil)),
		nats.ReconnectWait(10*time.Millisecond), nats.ReconnectJitter(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	tried := func() bool { // the library would give up after two refusals
		v, err := s.Varz(nil)
		return err == nil && v.TotalConnections >= 5
	}
	if !poll(20*time.Second, tried) {
		t.Fatalf("not tried again; connection %s, log:\n%s", nc.Status(), log.String())
	}
	poll(20*time.Second, func() bool { return strings.Contains(log.String(), "NATS not reachable") })
	if n := strings.Count(log.String(), "NATS not reachable"); n != 1 {
		t.Errorf("logged %d times that the credentials are refused, want once:\n%s", n, log.String())
	}
	if err := os.WriteFile(file, []byte("hunter2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if !poll(20*time.Second, func() bool { return nc.IsConnected() && strings.Contains(log.String(), "NATS connected") }) {
		t.Errorf("not connected with the new password: %s, log:\n%s", nc.Status(), log.String())
	}
	if strings.Contains(log.String(), "hunter") {
		t.Errorf("the log shows a password:\n%s", log.String())
	}
}

func TestConnect_errors(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"context.json": `{"url":"nats://u:hunter2@127.0.0.1:port"}`, "empty": "\n", "seed": "hunter2\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		name string
		c    natsConfig
		want string
	}{
		{"port", natsConfig{URL: "nats://u:hunter2@127.0.0.1:port"}, "NATS_URL: not a URL such as"},
		{"escape", natsConfig{URL: "nats://u:hunter2%zz@127.0.0.1"}, "NATS_URL: not a URL such as"},
		{"one of several", natsConfig{URL: "nats://127.0.0.1:4222,u:hunter2@ h"}, "NATS_URL: not a URL such as"},
		{"context's URL", natsConfig{Context: filepath.Join(dir, "context.json")}, "not a URL such as"},
		{"context", natsConfig{Context: filepath.Join(dir, "none.json")}, "none.json"},
		{"password file", natsConfig{URL: "127.0.0.1:1", PasswordFile: filepath.Join(dir, "empty")}, "is empty"},
		{"token file", natsConfig{URL: "127.0.0.1:1", TokenFile: filepath.Join(dir, "none")}, "none"},
		{"nkey", natsConfig{URL: "127.0.0.1:1", NKey: filepath.Join(dir, "seed")}, "nkey"},
		{"CA", natsConfig{URL: "127.0.0.1:1", CA: filepath.Join(dir, "none.pem")}, "none.pem"},
		{"certificate without its key", natsConfig{URL: "127.0.0.1:1", Cert: "cert.pem"}, "cert and key"},
	} {
		t.Run(test.name, func(t *testing.T) {
			noEnvironment(t)
			nc, err := connect(test.c, slog.New(slog.DiscardHandler))
			if err == nil {
				nc.Close()
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("got %q, want %q in it and no secret", err, test.want)
			}
		})
	}
}

func TestRedact(t *testing.T) {
	for list, want := range map[string]string{
		"nats://u:hunter2@one:4222, tls://token@two": "nats://one:4222,tls://two",
		"127.0.0.1:4222":            "nats://127.0.0.1:4222",
		"u:hunter2@one":             "nats://one",
		"nats://u:12/hunter2@one":   "nats://u:12",
		"nats://u:hunter2@one:port": "not a URL such as nats://nats.example.com:4222, or several separated by commas",
	} {
		if got := redact(list); got != want {
			t.Errorf("redact(%q) = %q, want %q", list, got, want)
		}
	}
}

// deadDialer reaches nobody, and counts how often it was asked.
type deadDialer struct{ asked atomic.Int32 }

func (d *deadDialer) Dial(string, string) (net.Conn, error) {
	d.asked.Add(1)
	return nil, errors.New("no route")
}

// A server that cannot be reached is tried for ever, and the same trouble is logged once.
func TestConnect_log(t *testing.T) {
	noEnvironment(t)
	var log logBuffer
	dialer := new(deadDialer)
	nc, err := connect(natsConfig{URL: "127.0.0.1:4222"}, slog.New(slog.NewTextHandler(&log, nil)),
		nats.SetCustomDialer(dialer), nats.ReconnectWait(5*time.Millisecond), nats.ReconnectJitter(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if !poll(20*time.Second, func() bool { return dialer.asked.Load() >= 2*nats.DefaultMaxReconnect }) {
		t.Fatalf("tried %d times only: the library left to itself would give up", dialer.asked.Load())
	}
	if n := strings.Count(log.String(), "NATS not reachable"); n != 1 {
		t.Errorf("logged %d times, want once:\n%s", n, log.String())
	}
}
