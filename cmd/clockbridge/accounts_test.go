package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nats.go/micro"

	"clockbridge/bridge"
	"clockbridge/protime/protimetest"
)

// accounts is a NATS server with deploy/nats-accounts.conf as it is, a simulated API, and clockbridge with the file's user.
type accounts struct {
	t      *testing.T
	server *server.Server
	trace  *natsTrace
	sim    *protimetest.Server
	dir    string
	config string // of the tenants acme and other
	users  []*server.User
}

func newAccounts(t *testing.T) *accounts {
	t.Helper()
	noEnvironment(t)
	for _, user := range []string{"bridge", "operator", "acme", "staff"} {
		t.Setenv(strings.ToUpper(user)+"_PASSWORD", "secret-of-"+user)
	}
	o, err := server.ProcessConfigFile(filepath.Join("..", "..", "deploy", "nats-accounts.conf"))
	if err != nil {
		t.Fatal(err)
	}
	o.Host, o.Port, o.NoSigs, o.JetStream, o.StoreDir = "127.0.0.1", -1, true, true, t.TempDir()
	o.Trace, o.MaxTracedMsgLen = true, 64
	a := &accounts{t: t, trace: &natsTrace{published: map[string][]string{}, subscribed: map[string][]string{}}, sim: protimetest.NewServer(protimetest.Options{})}
	t.Cleanup(a.sim.Close)
	if a.server, err = server.NewServer(o); err != nil {
		t.Fatal(err)
	}
	a.server.SetLoggerV2(a.trace, false, true, false)
	a.server.Start()
	t.Cleanup(func() { a.server.Shutdown(); a.server.WaitForShutdown() })
	if !a.server.ReadyForConnections(10 * time.Second) {
		t.Fatal("nats-server is not ready")
	}
	a.users, a.dir = o.Users, t.TempDir()
	a.config = filepath.Join(a.dir, "clockbridge.yaml")
	secret := filepath.Join(a.dir, "secret")
	tenant := "  - {name: %s, client_id: demo, client_secret_file: %q, poll_interval: 50ms, api_url: %q, auth_url: %[3]q}\n"
	text := "tenants:\n" + fmt.Sprintf(tenant, "acme", secret, a.sim.URL) + fmt.Sprintf(tenant, "other", secret, a.sim.URL) +
		fmt.Sprintf("nats: {url: %q}\nheartbeat: 500ms\nhttp_addr: 127.0.0.1:0\n", a.server.ClientURL())
	for name, text := range map[string]string{a.config: text, secret: "demo\n"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"acme", "other"} {
		a.insert(name)
	}
	return a
}

// bridge starts an instance of clockbridge, and returns what it logs.
func (a *accounts) bridge(name string) (*exec.Cmd, *logBuffer) {
	a.t.Helper()
	log := new(logBuffer)
	cmd := exec.Command("clockbridge", "run", "--config", a.config, "--data-dir", filepath.Join(a.dir, name))
	cmd.Env = append(os.Environ(), "NATS_USER=bridge", "NATS_PASSWORD=secret-of-bridge")
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd, log
}

// connect connects as a user of the file does, with the JetStream that its account sees.
func (a *accounts) connect(user string) (*nats.Conn, jetstream.JetStream) {
	a.t.Helper()
	nc, err := nats.Connect(a.server.ClientURL(), nats.UserInfo(user, "secret-of-"+user))
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(nc.Close)
	js, err := jetstream.NewWithDomain(nc, "clockbridge")
	if err != nil {
		a.t.Fatal(err)
	}
	return nc, js
}

// settled waits until both feeds are in a state.
func (a *accounts) settled(nc *nats.Conn, state bridge.State) {
	a.t.Helper()
	for _, tenant := range []string{"acme", "other"} {
		var s bridge.Status
		var err error
		if !poll(20*time.Second, func() bool {
			s, err = bridge.RequestStatus(context.Background(), nc, tenant, "clockings")
			return err == nil && s.State == state
		}) {
			a.t.Fatalf("%s is not %s within 20 s: %+v, %v", tenant, state, s, err)
		}
	}
}

// natsTrace is a server's log, and in it what each connection published and subscribed to, by the connection's number.
type natsTrace struct {
	mu                    sync.Mutex
	published, subscribed map[string][]string
	errors                []string
}

var tracedRE = regexp.MustCompile(`cid:(\d+) .*<<- \[(H?PUB|SUB) (\S+)`)

func (l *natsTrace) Noticef(string, ...any)         {}
func (l *natsTrace) Debugf(string, ...any)          {}
func (l *natsTrace) Warnf(string, ...any)           {} // of passwords that are not hashed
func (l *natsTrace) Fatalf(format string, v ...any) { l.Errorf(format, v...) }
func (l *natsTrace) Errorf(format string, v ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.errors = append(l.errors, fmt.Sprintf(format, v...))
}

func (l *natsTrace) Tracef(format string, v ...any) {
	m := tracedRE.FindStringSubmatch(fmt.Sprintf(format, v...))
	if m == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	all := l.published
	if m[2] == "SUB" {
		all = l.subscribed
	}
	if !slices.Contains(all[m[1]], m[3]) {
		all[m[1]] = append(all[m[1]], m[3])
	}
}

// of returns what clockbridge, connected as a user, published and subscribed to.
func (l *natsTrace) of(t *testing.T, s *server.Server, user string) (published, subscribed []string) {
	t.Helper()
	conns, err := s.Connz(&server.ConnzOptions{Username: true, State: server.ConnAll})
	if err != nil {
		t.Fatal(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range conns.Conns {
		if c.AuthorizedUser == user && c.Name == "clockbridge" {
			published = append(published, l.published[fmt.Sprint(c.Cid)]...)
			subscribed = append(subscribed, l.subscribed[fmt.Sprint(c.Cid)]...)
		}
	}
	return published, subscribed
}

// TestAccounts_bridge: clockbridge does everything that it does with the permissions of its user, and needs each of them.
func TestAccounts_bridge(t *testing.T) {
	a := newAccounts(t)
	nc, _ := a.connect("operator")
	first, firstLog := a.bridge("first")
	a.settled(nc, bridge.StateHealthy)
	_, secondLog := a.bridge("second")
	if !poll(20*time.Second, func() bool { return strings.Contains(secondLog.String(), "lease taken") }) {
		t.Fatalf("the second instance takes no feed:\n%s", secondLog)
	}
	a.settled(nc, bridge.StateHealthy)
	ctx := t.Context()
	for _, tenant := range []string{"acme", "other"} {
		until, err := bridge.RequestPause(ctx, nc, tenant, "clockings")
		if err != nil || until.IsZero() {
			t.Errorf("pause: %v, %v", until, err)
		}
		if resumed, err := bridge.RequestResume(ctx, nc, tenant, "clockings"); err != nil || !resumed {
			t.Errorf("resume: %v, %v", resumed, err)
		}
		if err := bridge.RequestSync(ctx, nc, tenant, "clockings"); err != nil {
			t.Errorf("sync: %v", err)
		}
	}
	a.settled(nc, bridge.StateHealthy)
	for _, tenant := range []string{"acme", "other"} {
		if err := bridge.RequestVerify(ctx, nc, tenant, "clockings"); err != nil {
			t.Errorf("verify: %v", err)
		}
	}
	if !poll(20*time.Second, func() bool {
		return strings.Contains(firstLog.String(), "stream verified") && strings.Contains(secondLog.String(), "stream verified")
	}) {
		t.Errorf("not verified:\n%s%s", firstLog, secondLog)
	}
	if err := first.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := first.Wait(); err != nil {
		t.Errorf("the first instance did not stop well: %v\n%s", err, firstLog)
	}
	if !poll(20*time.Second, func() bool { return strings.Count(secondLog.String(), "lease taken") == 2 }) {
		t.Errorf("the second instance does not take over:\n%s", secondLog)
	}
	a.settled(nc, bridge.StateHealthy)
	// Much that the watch shows, heartbeats that somebody else wrote over, and a newcomer that cleans up behind the one that left.
	own, _ := a.connect("bridge")
	written := map[string]bool{}
	for _, beat := range a.beats(own) {
		written[string(beat.Value())] = true
		if err := own.Publish("$KV."+bridge.Bucket+"."+beat.Key(), beat.Value()); err != nil {
			t.Fatal(err)
		}
	}
	if !poll(20*time.Second, func() bool {
		return !slices.ContainsFunc(a.beats(own), func(beat jetstream.KeyValueEntry) bool { return written[string(beat.Value())] })
	}) {
		t.Errorf("no heartbeat after somebody else wrote over it:\n%s", secondLog)
	}
	for i := range 40 {
		if err := own.Publish(fmt.Sprintf("$KV.%s.feed.none.%d", bridge.Bucket, i), make([]byte, 100_000)); err != nil {
			t.Fatal(err)
		}
	}
	_, thirdLog := a.bridge("third")
	if !poll(20*time.Second, func() bool { return strings.Contains(thirdLog.String(), "lease taken") }) {
		t.Errorf("the third instance takes no feed:\n%s", thirdLog)
	}
	a.settled(nc, bridge.StateHealthy)
	a.runsAs("bridge")
	for _, args := range [][]string{{"check", "--data-dir", filepath.Join(a.dir, "fourth")}, {"verify", "--repair", "--patience", "1s"}} {
		if out, code := runProgram(t, false, append(args, "--config", a.config)...); code != exitOK {
			t.Errorf("%v: exit code %d\n%s", args, code, out)
		}
	}
	a.forgets("bridge")

	a.asks("bridge", nc, thirdLog)

	a.trace.mu.Lock()
	for _, text := range a.trace.errors {
		t.Errorf("the server says: %s", text)
	}
	a.trace.mu.Unlock()
	user := a.users[slices.IndexFunc(a.users, func(u *server.User) bool { return u.Username == "bridge" })]
	published, subscribed := a.trace.of(t, a.server, "bridge")
	for _, direction := range []struct {
		name    string
		allowed []string
		used    []string
	}{
		{"publish", user.Permissions.Publish.Allow, published},
		{"subscribe", user.Permissions.Subscribe.Allow, subscribed},
	} {
		for _, subject := range direction.allowed {
			if !slices.ContainsFunc(direction.used, func(used string) bool { return server.SubjectsCollide(used, subject) }) {
				t.Errorf("nothing needs to %s %s", direction.name, subject)
			}
		}
	}

	// What it may not publish, NATS does not answer to; a replay of it must not say that all went well.
	a.runsAs("bridge")
	resume := filepath.Join(a.dir, "resume.json")
	if out, code := runProgram(t, false, "replay", "--tenant", "acme", "--config", a.config, "--to-subject", "closed", "--resume", resume); code != exitFailed {
		t.Errorf("replay to where it may not publish: exit code %d\n%s", code, out)
	}
	if saved, err := os.ReadFile(resume); err == nil && !strings.Contains(string(saved), `"position":0`) {
		t.Errorf("it is to be resumed behind what never arrived: %s", saved)
	}
}

func (a *accounts) runsAs(user string) {
	a.t.Helper()
	a.t.Setenv("NATS_USER", user)
	a.t.Setenv("NATS_PASSWORD", "secret-of-"+user)
}

// forgets has a person forgotten who has clocked once.
func (a *accounts) forgets(user string, args ...string) {
	a.t.Helper()
	a.runsAs(user)
	a.sim.Tenant("other").Insert("clockings", map[string]any{"person": map[string]any{"id": 4711}, "date": "2026-01-15", "timeOfDayInMinutes": 510, "kind": "InOut"})
	args = append([]string{"forget", "4711", "--yes", "--tenant", "other", "--config", a.config}, args...)
	if !poll(20*time.Second, func() bool {
		out, code := runProgram(a.t, false, args...)
		return code == exitOK && strings.Contains(out, "other/clockings: 1 messages erased")
	}) {
		out, code := runProgram(a.t, false, args...)
		a.t.Errorf("forget as %s: exit code %d\n%s", user, code, out)
	}
}

// asks runs every command that asks the running instances, as a user does, and looks at what they do with nc.
func (a *accounts) asks(user string, nc *nats.Conn, log *logBuffer) {
	t := a.t
	t.Helper()
	a.runsAs(user)
	for _, step := range []struct {
		args, want string
		state      bridge.State // afterwards
	}{
		{"status", "other/clockings  healthy", bridge.StateHealthy},
		{"sync-now", "other/clockings: asked", bridge.StateHealthy},
		{"verify --ask", "other/clockings: verification begins", bridge.StateHealthy},
		{"pause", "other/clockings: paused", bridge.StatePaused},
		{"resume", "other/clockings: resumed", bridge.StateHealthy},
		{"resume", "other/clockings: was not paused", bridge.StateHealthy},
		{"resync", "other/clockings: asked for a resync", bridge.StateHealthy},
	} {
		out, code := runProgram(t, false, append(strings.Fields(step.args), "--config", a.config)...)
		if code != exitOK || !strings.Contains(out, step.want) {
			t.Errorf("%s: exit code %d, want %d and %q:\n%s%s", step.args, code, exitOK, step.want, out, log)
		}
		a.settled(nc, step.state)
	}
}

// TestAccounts_operator: the operator's account sees and controls every feed, reads every stream, and cannot write any.
func TestAccounts_operator(t *testing.T) {
	a := newAccounts(t)
	nc, js := a.connect("operator")
	if _, err := bridge.RequestStatus(t.Context(), nc, "acme", "clockings"); !errors.Is(err, bridge.ErrNobody) {
		t.Errorf("nobody follows: got %v, want %v", err, bridge.ErrNobody)
	}
	_, log := a.bridge("first")
	a.settled(nc, bridge.StateHealthy)
	a.asks("operator", nc, log)
	if got := services(t, nc); len(got) != 2 || len(got[0].Endpoints) != 8 || len(got[1].Endpoints) != 8 {
		t.Errorf("services: %+v, want two with eight endpoints each", got)
	}
	for _, tenant := range []string{"ACME", "OTHER"} {
		if got := subjects(t, js, "PROTIME_"+tenant+"_CLOCKINGS"); len(got) != 1 {
			t.Errorf("%s: read %q, want one message", tenant, got)
		}
	}
	a.writesNothing(nc, true)
	a.settled(nc, bridge.StateHealthy)
	a.forgets("operator", "--js-domain", "clockbridge")
}

// TestAccounts_subscriber: a tenant's subscriber reads that tenant, live with the consumer that the operator has made, and neither sees
// nor changes anything else, nor has JetStream do so.
func TestAccounts_subscriber(t *testing.T) {
	a := newAccounts(t)
	operator, operatorJS := a.connect("operator")
	a.bridge("first")
	a.settled(operator, bridge.StateHealthy)
	ctx := t.Context()
	config := jetstream.ConsumerConfig{Durable: "payroll", AckPolicy: jetstream.AckExplicitPolicy}
	made, err := operatorJS.CreateOrUpdateConsumer(ctx, "PROTIME_ACME_CLOCKINGS", config)
	if err != nil {
		t.Fatal(err)
	}
	acmes, err := operatorJS.Stream(ctx, "PROTIME_ACME_CLOCKINGS")
	if err != nil {
		t.Fatal(err)
	}
	nc, js := a.connect("acme")
	consumer, err := js.Consumer(ctx, "PROTIME_ACME_CLOCKINGS", "payroll")
	if err != nil {
		t.Fatal(err)
	}
	live, err := consumer.Messages()
	if err != nil {
		t.Fatal(err)
	}
	defer live.Stop()
	for i, want := range []string{"protime.acme.clockings.19250", "protime.acme.clockings.19251"} {
		if i > 0 {
			a.insert("other")
			a.insert("acme")
		}
		m, err := live.Next(jetstream.NextMaxWait(20 * time.Second))
		if err != nil || m.Subject() != want {
			t.Fatalf("%v, %v, want %s", m, err, want)
		}
		if err := m.DoubleAck(ctx); err != nil {
			t.Errorf("acknowledge: %v", err)
		}
	}
	if !poll(20*time.Second, func() bool { return a.ends()["PROTIME_OTHER_CLOCKINGS"] == 2 }) {
		t.Fatalf("the other tenant's change does not arrive: %v", a.ends())
	}
	a.reads(nc, js)
	before, err := made.Info(ctx)
	if err != nil || before.AckFloor.Stream != 2 {
		t.Errorf("consumer: %+v, %v, want both messages acknowledged", before, err)
	}
	for _, request := range []string{
		"CONSUMER.CREATE.PROTIME_ACME_CLOCKINGS.x", "CONSUMER.CREATE.PROTIME_ACME_CLOCKINGS.payroll", "CONSUMER.CREATE.PROTIME_ACME_CLOCKINGS",
		"CONSUMER.DURABLE.CREATE.PROTIME_ACME_CLOCKINGS.x", "CONSUMER.DELETE.PROTIME_ACME_CLOCKINGS.payroll", "CONSUMER.PAUSE.PROTIME_ACME_CLOCKINGS.payroll",
	} {
		a.refused(nc, "$JS.clockbridge.API."+request, `{"stream_name":"PROTIME_ACME_CLOCKINGS","config":{"durable_name":"x","deliver_subject":"protime.other.clockings.1"}}`)
	}
	a.writesNothing(nc, false)
	var names []string
	listing := acmes.ConsumerNames(ctx)
	for name := range listing.Name() {
		names = append(names, name)
	}
	if err := listing.Err(); err != nil || !slices.Equal(names, []string{"payroll"}) {
		t.Errorf("consumers: %q, %v, want the operator's alone", names, err)
	}
	a.settled(operator, bridge.StateHealthy)
}

// reads is what every subscriber of acme may read without a consumer, once there are two messages, and what none may see or do.
func (a *accounts) reads(nc *nats.Conn, js jetstream.JetStream) {
	t, ctx := a.t, a.t.Context()
	t.Helper()
	stream, err := js.Stream(ctx, "PROTIME_ACME_CLOCKINGS")
	if err != nil {
		t.Fatal(err)
	}
	if m, err := stream.GetLastMsgForSubject(ctx, "protime.acme.clockings.19250"); err != nil || m.Sequence != 1 {
		t.Errorf("last message of a subject: %+v, %v", m, err)
	}
	if m, err := stream.GetMsg(ctx, 2); err != nil || m.Subject != "protime.acme.clockings.19251" {
		t.Errorf("message at a position: %+v, %v", m, err)
	}
	for _, verb := range []string{"status", "resync", "pause", "resume", "sync-now", "verify", "repair", "forget"} {
		a.refused(nc, bridge.ControlSubject("acme", "clockings", verb), "{}")
	}
	a.refused(nc, "$SRV.INFO.clockbridge", "")
	for _, request := range []string{
		"INFO", "STREAM.NAMES", "STREAM.LIST", "STREAM.INFO.PROTIME_OTHER_CLOCKINGS", "STREAM.INFO.KV_CLOCKBRIDGE",
		"STREAM.MSG.GET.PROTIME_OTHER_CLOCKINGS", "STREAM.PURGE.PROTIME_ACME_CLOCKINGS", "STREAM.DELETE.PROTIME_ACME_CLOCKINGS",
		"STREAM.MSG.DELETE.PROTIME_ACME_CLOCKINGS", "STREAM.UPDATE.PROTIME_ACME_CLOCKINGS", "STREAM.SNAPSHOT.PROTIME_ACME_CLOCKINGS",
		"DIRECT.GET.PROTIME_OTHER_CLOCKINGS.protime.other.clockings.19250", "DIRECT.GET.KV_CLOCKBRIDGE.$KV.CLOCKBRIDGE.feed.acme.clockings",
		"CONSUMER.CREATE.PROTIME_OTHER_CLOCKINGS.x", "CONSUMER.NAMES.PROTIME_ACME_CLOCKINGS",
	} {
		a.refused(nc, "$JS.clockbridge.API."+request, `{"seq":1}`)
	}
}

func (a *accounts) refused(nc *nats.Conn, subject, data string) {
	a.t.Helper()
	if m, err := nc.Request(subject, []byte(data), 300*time.Millisecond); err == nil {
		a.t.Errorf("%s is answered: %s", subject, m.Data)
	}
}

// TestAccounts_staff: people of the own house read a tenant in every way there is, and neither see nor write anything else.
func TestAccounts_staff(t *testing.T) {
	a := newAccounts(t)
	operator, _ := a.connect("operator")
	a.bridge("first")
	a.settled(operator, bridge.StateHealthy)
	nc, js := a.connect("staff")
	ctx := t.Context()
	heard, err := nc.SubscribeSync("protime.>")
	if err != nil {
		t.Fatal(err)
	}
	fromNow, err := js.OrderedConsumer(ctx, "PROTIME_ACME_CLOCKINGS", jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverNewPolicy})
	if err != nil {
		t.Fatal(err)
	}
	live, err := fromNow.Messages()
	if err != nil {
		t.Fatal(err)
	}
	defer live.Stop()
	for _, tenant := range []string{"other", "acme"} {
		a.insert(tenant)
	}
	if !poll(20*time.Second, func() bool {
		ends := a.ends()
		return ends["PROTIME_ACME_CLOCKINGS"] == 2 && ends["PROTIME_OTHER_CLOCKINGS"] == 2
	}) {
		t.Fatalf("the changes do not arrive: %v", a.ends())
	}
	if m, err := live.Next(jetstream.NextMaxWait(20 * time.Second)); err != nil || m.Subject() != "protime.acme.clockings.19251" {
		t.Errorf("live: %v, %v, want acme's change", m, err)
	}
	consumer, err := js.CreateOrUpdateConsumer(ctx, "PROTIME_ACME_CLOCKINGS", jetstream.ConsumerConfig{Durable: "payroll"})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		m, err := consumer.Next(jetstream.FetchMaxWait(10 * time.Second))
		if err != nil {
			t.Fatal(err)
		}
		if err := m.DoubleAck(ctx); err != nil {
			t.Errorf("acknowledge: %v", err)
		}
	}
	if info, err := consumer.Info(ctx); err != nil || info.AckFloor.Stream != 2 {
		t.Errorf("consumer: %+v, %v, want both messages acknowledged", info, err)
	}
	if got := subjects(t, js, "PROTIME_ACME_CLOCKINGS"); len(got) != 2 {
		t.Errorf("ordered consumer: %q, want two messages", got)
	}
	if err := js.DeleteConsumer(ctx, "PROTIME_ACME_CLOCKINGS", "payroll"); err != nil {
		t.Errorf("delete the own consumer: %v", err)
	}

	a.reads(nc, js)
	// The stream's name in the subject counts, not the one in the request.
	answer, err := nc.Request("$JS.clockbridge.API.CONSUMER.CREATE.PROTIME_ACME_CLOCKINGS.x", []byte(`{"stream_name":"PROTIME_OTHER_CLOCKINGS","config":{"name":"x"}}`), time.Second)
	if err != nil || !strings.Contains(string(answer.Data), `"error"`) {
		t.Errorf("a consumer of another stream: %v, %v, want an error", answer, err)
	}
	a.writesNothing(nc, true)
	a.settled(operator, bridge.StateHealthy)
	for {
		m, err := heard.NextMsg(100 * time.Millisecond)
		if err != nil {
			break
		}
		if m.Header.Get("ce-source") != "" && !strings.HasPrefix(m.Header.Get("ce-id"), "acme/") {
			t.Errorf("staff of acme sees %s: %s", m.Subject, m.Data)
		}
	}
}

// subjects reads a stream to its end with an ordered consumer.
func subjects(t *testing.T, js jetstream.JetStream, stream string) (all []string) {
	t.Helper()
	consumer, err := js.OrderedConsumer(t.Context(), stream, jetstream.OrderedConsumerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	for {
		m, err := consumer.Next(jetstream.FetchMaxWait(10 * time.Second))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, m.Subject())
		if meta, err := m.Metadata(); err != nil || meta.NumPending == 0 {
			return all
		}
	}
}

// services are what answers to be called clockbridge, as `nats micro info` asks for it.
func services(t *testing.T, nc *nats.Conn) (all []micro.Info) {
	t.Helper()
	inbox, err := nc.SubscribeSync(nc.NewRespInbox())
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.PublishRequest("$SRV.INFO."+bridge.ControlService, inbox.Subject, nil); err != nil {
		t.Fatal(err)
	}
	for {
		m, err := inbox.NextMsg(500 * time.Millisecond)
		if err != nil {
			return all
		}
		var info micro.Info
		if err := json.Unmarshal(m.Data, &info); err != nil {
			t.Fatal(err)
		}
		all = append(all, info)
	}
}
