package bridge

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

var natsServer = flag.String("nats-server", "", "run the suite against this nats-server binary instead of the embedded one")

// testServer is a real nats-server with JetStream: embedded, or an older one as a process of its own.
type testServer struct {
	t      testing.TB
	dir    string
	port   int
	always bool
	srv    *server.Server
	cmd    *exec.Cmd
}

func startServer(t testing.TB) *testServer {
	t.Helper()
	s := &testServer{t: t, dir: t.TempDir(), port: freePort(t)}
	s.start()
	t.Cleanup(s.stop)
	// A server that deletes its last stream takes the folder of streams away, maybe from under the next one.
	nc := s.connect(t)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(context.Background(), jetstream.StreamConfig{Name: "KEEP", Subjects: []string{"keep"}}); err != nil {
		t.Fatal(err)
	}
	return s
}

var nextPort atomic.Int32

// freePort is one that nobody listens on now, and that no connection is given by the system while its server is down.
func freePort(t testing.TB) int {
	t.Helper()
	nextPort.CompareAndSwap(0, 26_000+rand.Int32N(5_000))
	for range 1_000 {
		port := int(nextPort.Add(1))
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

func (s *testServer) url() string { return fmt.Sprintf("nats://127.0.0.1:%d", s.port) }

func (s *testServer) start() {
	s.t.Helper()
	if *natsServer != "" {
		s.cmd = exec.Command(*natsServer, "-js", "-a", "127.0.0.1", "-p", fmt.Sprint(s.port), "-sd", s.dir)
		if err := s.cmd.Start(); err != nil {
			s.t.Fatalf("start nats-server: %v", err)
		}
	} else {
		srv, err := server.NewServer(&server.Options{
			Host: "127.0.0.1", Port: s.port, JetStream: true, StoreDir: s.dir, SyncAlways: s.always, NoLog: true, NoSigs: true,
		})
		if err != nil {
			s.t.Fatal(err)
		}
		s.srv = srv
		srv.Start()
	}
	waitFor(s.t, "nats-server to answer", func() bool {
		nc, err := nats.Connect(s.url())
		if err != nil {
			return false
		}
		defer nc.Close()
		js, err := jetstream.New(nc)
		if err != nil {
			return false
		}
		_, err = js.AccountInfo(context.Background())
		return err == nil
	})
}

func (s *testServer) stop() {
	switch {
	case s.cmd != nil:
		s.cmd.Process.Kill()
		s.cmd.Wait()
		s.cmd = nil
	case s.srv != nil:
		s.srv.Shutdown()
		s.srv.WaitForShutdown()
		s.srv = nil
	}
}

func (s *testServer) connect(t testing.TB) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(s.url(), nats.Name(t.Name()), nats.MaxReconnects(-1), nats.ReconnectBufSize(-1),
		nats.ReconnectWait(20*time.Millisecond), nats.ReconnectJitter(0, 0), nats.CustomInboxPrefix("_INBOX"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// connectRestricted connects to a server of its own, with JetStream, as a user who may publish to those subjects.
func connectRestricted(t *testing.T, publish *server.SubjectPermission) *nats.Conn {
	t.Helper()
	srv, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: t.TempDir(), NoLog: true, NoSigs: true,
		Users: []*server.User{{Username: "a", Password: "a", Permissions: &server.Permissions{Publish: publish}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	t.Cleanup(srv.Shutdown)
	nc, err := nats.Connect(srv.ClientURL(), nats.UserInfo("a", "a"), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(time.Minute)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited a minute for %s", what)
		}
	}
}

// takesBatches reports whether the server under test knows atomic batches.
func takesBatches(nc *nats.Conn) bool {
	v := nc.ConnectedServerVersion()
	return !strings.HasPrefix(v, "2.10.") && !strings.HasPrefix(v, "2.11.")
}

func copyDir(t testing.TB, from, to string) {
	t.Helper()
	if err := os.RemoveAll(to); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}
