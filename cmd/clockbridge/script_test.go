package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rogpeppe/go-internal/testscript"

	"clockbridge/bridge"
	"clockbridge/protime/protimetest"
)

// TestMain lets the test binary be the program, and the other processes that tests and benchmarks need.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"clockbridge": main,
		"code":        printCode,
		"bench-nats":  benchNATS,
		"bench-sim":   benchSim,
	})
}

// printCode runs a command line and prints with which code it ended: code COMMAND ARGS...
func printCode() {
	c := exec.Command(os.Args[1], os.Args[2:]...)
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	if err := c.Run(); c.ProcessState == nil {
		panic(err)
	}
	fmt.Println("code", c.ProcessState.ExitCode())
}

func TestScripts(t *testing.T) { runScripts(t, "testdata/script") }

func runScripts(t *testing.T, dir string) {
	testscript.Run(t, testscript.Params{
		Dir:                 dir,
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("PROTIME_TENANT", "acme")
			env.Setenv("PROTIME_CLIENT_ID", "demo")
			env.Setenv("PROTIME_CLIENT_SECRET", secret)
			env.Setenv("SECRET", secret) // scripts must not hold it: they are printed
			env.Setenv("CLOCKBRIDGE_HTTP_ADDR", "127.0.0.1:0")
			env.Setenv("TODAY", time.Now().UTC().Format(time.DateOnly))
			given, err := filesOf(env.WorkDir)
			env.Defer(func() { noSecretLeft(t, env.WorkDir, given) })
			return err
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"sim":      cmdSim,
			"natsd":    cmdNATS,
			"waitfor":  cmdWaitFor,
			"sigterm":  cmdSignal(syscall.SIGTERM),
			"sighup":   cmdSignal(syscall.SIGHUP),
			"nosecret": cmdNoSecret,
			"taken":    cmdTaken,
			"foreign":  cmdForeign,
			"stream":   cmdStream,
			"erase":    cmdErase,
			"forge":    cmdForge,
			"chmod":    cmdChmod,
		},
	})
}

// cmdSim starts a simulator, of the tenant acme alone, and points clockbridge at it. sim [any]
func cmdSim(ts *testscript.TestScript, _ bool, args []string) {
	o := protimetest.Options{Tenant: "acme", ClientSecret: secret}
	for _, a := range args {
		if a == "any" {
			o.Tenant = ""
		}
	}
	s := protimetest.NewServer(o)
	ts.Defer(s.Close)
	ts.Setenv("SIM", s.URL)
	ts.Setenv("PROTIME_API_URL", s.URL)
	ts.Setenv("PROTIME_AUTH_URL", s.URL)
}

// cmdNATS starts a nats-server and points clockbridge at it. natsd [nojetstream] [restricted] [password]
func cmdNATS(ts *testscript.TestScript, _ bool, args []string) {
	dir := ts.MkAbs("natsd")
	o := &server.Options{Host: "127.0.0.1", Port: -1, NoSigs: true, NoLog: true, JetStream: true, StoreDir: dir}
	user := ""
	for _, a := range args {
		switch a {
		case "nojetstream":
			o.JetStream = false
		case "restricted":
			// Everything but the API call that looks a stream up.
			o.Users = []*server.User{{Username: "bridge", Password: secret, Permissions: &server.Permissions{
				Publish:   &server.SubjectPermission{Allow: []string{"$JS.API.INFO"}},
				Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX.>"}},
			}}}
			user = "bridge:" + secret + "@"
		case "password":
			o.Username, o.Password = "bridge", secret
		}
	}
	s, err := server.NewServer(o)
	ts.Check(err)
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		ts.Fatalf("nats-server is not ready")
	}
	ts.Defer(func() { s.Shutdown(); s.WaitForShutdown() })
	ts.Setenv("NATS_URL", strings.Replace(s.ClientURL(), "nats://", "nats://"+user, 1))
}

// cmdWaitFor waits until a file or a URL shows a pattern: waitfor FILE|URL REGEXP
func cmdWaitFor(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: waitfor FILE|URL REGEXP")
	}
	re, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	read := func() string {
		if !strings.HasPrefix(args[0], "http") {
			text, _ := os.ReadFile(ts.MkAbs(args[0])) // it may not be there yet
			return string(text)
		}
		resp, err := http.Get(args[0])
		if err != nil {
			return err.Error()
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return resp.Status + "\n" + string(body)
	}
	text := ""
	ok := poll(time.Minute, func() bool {
		text = read()
		return re.MatchString(text)
	})
	if !ok {
		ts.Fatalf("waited a minute for %q in %s, which shows:\n%s", args[1], args[0], text)
	}
}

func poll(limit time.Duration, ok func() bool) bool { return pollEvery(10*time.Millisecond, limit, ok) }

func pollEvery(pause, limit time.Duration, ok func() bool) bool {
	tick := time.NewTicker(pause)
	defer tick.Stop()
	deadline := time.After(limit)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			return false
		}
	}
	return true
}

// cmdSignal sends a signal to the process that wrote its id into a file: sigterm FILE, sighup FILE. (Not stop: testscript has one
// that ends the script and lets it pass.)
func cmdSignal(signal syscall.Signal) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, _ bool, args []string) {
		var pid int
		_, err := fmt.Sscan(ts.ReadFile(args[0]), &pid)
		ts.Check(err)
		ts.Check(syscall.Kill(pid, signal))
	}
}

// cmdNoSecret fails if a file, or stdout or stderr of the last command, shows the secret.
func cmdNoSecret(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range append(args, "stdout", "stderr") {
		if strings.Contains(ts.ReadFile(name), secret) {
			ts.Fatalf("%s shows the secret", name)
		}
	}
}

// cmdTaken holds a port, and names it: taken VARIABLE
func cmdTaken(ts *testscript.TestScript, _ bool, args []string) {
	s := protimetest.NewServer(protimetest.Options{})
	ts.Defer(s.Close)
	ts.Setenv(args[0], strings.TrimPrefix(s.URL, "http://"))
}

// cmdForeign creates the feed's stream the way somebody else would.
func cmdForeign(ts *testscript.TestScript, _ bool, _ []string) {
	nc, err := nats.Connect(ts.Getenv("NATS_URL"))
	ts.Check(err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	ts.Check(err)
	_, err = js.CreateStream(context.Background(), jetstream.StreamConfig{
		Name: "PROTIME_ACME_CLOCKINGS", Subjects: []string{"protime.>"}, Storage: jetstream.MemoryStorage,
	})
	ts.Check(err)
}

// cmdStream creates a stream: stream NAME SUBJECT
func cmdStream(ts *testscript.TestScript, _ bool, args []string) {
	js, _, done := feedStream(ts)
	defer done()
	_, err := js.CreateStream(context.Background(), jetstream.StreamConfig{Name: args[0], Subjects: args[1:]})
	ts.Check(err)
}

// feedStream is the stream of acme's clockings.
func feedStream(ts *testscript.TestScript) (js jetstream.JetStream, s jetstream.Stream, done func()) {
	nc, err := nats.Connect(ts.Getenv("NATS_URL"))
	ts.Check(err)
	js, err = jetstream.New(nc)
	ts.Check(err)
	s, err = js.Stream(context.Background(), "PROTIME_ACME_CLOCKINGS")
	ts.Check(err)
	return js, s, nc.Close
}

// cmdErase removes the last message of a clocking, as an operator might: erase ID
func cmdErase(ts *testscript.TestScript, _ bool, args []string) {
	_, s, done := feedStream(ts)
	defer done()
	m, err := s.GetLastMsgForSubject(context.Background(), bridge.Subject("acme", "clockings", args[0]))
	ts.Check(err)
	ts.Check(s.DeleteMsg(context.Background(), m.Sequence))
}

// cmdForge publishes an older version of a clocking, or one that never was: forge ID
func cmdForge(ts *testscript.TestScript, _ bool, args []string) {
	js, _, done := feedStream(ts)
	defer done()
	id, version := args[0], "0000090200000000000A"
	_, err := js.PublishMsg(context.Background(), &nats.Msg{
		Subject: bridge.Subject("acme", "clockings", id),
		Header: nats.Header{
			"ce-id": {"acme/clockings/" + id + "/" + version}, "ce-subject": {id}, "ce-changeversion": {version},
			"ce-type": {"eu.myprotime.clockings.upserted"},
		},
		Data: []byte(`{"id":` + id + `,"date":"` + ts.Getenv("TODAY") + `"}`),
	})
	ts.Check(err)
}

func cmdChmod(ts *testscript.TestScript, _ bool, args []string) {
	var mode uint32
	_, err := fmt.Sscanf(args[0], "%o", &mode)
	ts.Check(err)
	ts.Check(os.Chmod(ts.MkAbs(args[1]), os.FileMode(mode)))
}

var update = flag.Bool("update", false, "write the help texts that the commands have now")

// TestHelp compares the whole help of every command: it is the program's surface.
func TestHelp(t *testing.T) {
	commands := []string{"", "run", "demo", "sim", "check", "verify", "pause", "schema", "tail", "replay", "history", "export", "collections", "clocking", "clocking create", "clocking get", "clocking list"}
	var all strings.Builder
	for _, command := range commands {
		args := append(strings.Fields(command), "--help")
		var out, errs strings.Builder
		code := run(context.Background(), args, &program{stdout: &out, stderr: &errs})
		if code != exitOK || errs.Len() > 0 {
			t.Errorf("%v: exit code %d, stderr %q", args, code, errs.String())
		}
		fmt.Fprintf(&all, "$ clockbridge %s\n%s\n", strings.Join(args, " "), out.String())
	}
	golden := filepath.Join("testdata", "help.txt")
	if *update {
		if err := os.WriteFile(golden, []byte(all.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if all.String() != string(want) {
		t.Errorf("help has changed; if that is meant: go test ./cmd/clockbridge -run TestHelp -update\n%s", all.String())
	}
}

// waitSignal ends the helper processes of this package.
func waitSignal() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	<-ctx.Done()
}
