package bridge

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"clockbridge/protime/protimetest"
	"clockbridge/store"
)

// instance is one process of several that share the feeds of a world, as far as one can be had inside a test.
type instance struct {
	w     *world
	name  string
	path  string // of its store
	nc    *nats.Conn
	store *store.Store
	feeds []*Feed
	logs  *logBuffer
	fleet *Fleet
	end   context.CancelFunc
	ended chan error
}

// beatSoon is a heartbeat for tests that wait until it is missed; beatSlow one for those in which a busy machine must not miss
// any other; beatNever one for tests that must not need that.
const (
	beatSoon  = 300 * time.Millisecond
	beatSlow  = 2 * time.Second
	beatNever = time.Hour
)

// join starts an instance that follows the clockings, or the collections that are named. path is that of its store; "" = a new one.
func (w *world) join(name, path string, heartbeat time.Duration, collections ...string) *instance {
	w.t.Helper()
	if path == "" {
		path = filepath.Join(w.t.TempDir(), name+".db")
	}
	if len(collections) == 0 {
		collections = []string{"clockings"}
	}
	i := &instance{w: w, name: name, path: path, nc: w.nats.connect(w.t), logs: new(logBuffer), ended: make(chan error, 1)}
	var err error
	if i.store, err = store.Open(path); err != nil {
		w.t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(i.logs, nil))
	for _, c := range collections {
		cfg := w.cfg
		cfg.Collection, cfg.NATS, cfg.Store, cfg.Logger = c, i.nc, i.store, log
		if cfg.PollInterval == 0 {
			cfg.PollInterval = 10 * time.Millisecond
		}
		feed, err := NewFeed(cfg)
		if err != nil {
			w.t.Fatal(err)
		}
		i.feeds = append(i.feeds, feed)
	}
	fleet, err := NewFleet(FleetConfig{NATS: i.nc, Store: i.store, Name: name, Heartbeat: heartbeat, Logger: log})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, end := context.WithCancel(context.Background())
	i.fleet, i.end = fleet, end
	go func() { i.ended <- fleet.Run(ctx, i.feeds) }()
	w.t.Cleanup(i.stop)
	return i
}

// stop ends an instance gracefully. Stopping twice is allowed.
func (i *instance) stop() {
	i.end()
	if err, ok := <-i.ended; ok {
		if err != nil {
			i.w.t.Errorf("instance %s: %v", i.name, err)
		}
		close(i.ended)
		i.nc.Close()
		i.store.Close()
	}
}

// crash ends it without a word to the others: nothing can be written any more.
func (i *instance) crash() {
	i.nc.Close()
	i.stop()
}

func (i *instance) holds() bool { return i.feeds[0].Status().State == StateHealthy }

func (i *instance) held() (n int) {
	for _, f := range i.feeds {
		if s := f.Status(); s.State != StateStandby && s.Holder == i.name {
			n++
		}
	}
	return n
}

// pair starts two instances: a, which follows the feed, and b, which stands by.
func (w *world) pair(heartbeat time.Duration) (a, b *instance) {
	w.t.Helper()
	a = w.join("a", "", heartbeat)
	waitFor(w.t, "a to follow", a.holds)
	b = w.join("b", "", heartbeat)
	waitFor(w.t, "b to stand by", func() bool { return b.feeds[0].Status().State == StateStandby })
	return a, b
}

// current waits until the stream is an exact log of what the API has now.
func (w *world) current(is ...*instance) {
	w.t.Helper()
	var err error
	deadline := time.Now().Add(time.Minute)
	for {
		if err = judgeStream(w.messages(), w.sim.Truth("clockings")); err == nil {
			return
		}
		if time.Now().After(deadline) {
			for _, i := range is {
				w.t.Logf("%s:\n%s", i.name, i.logs)
			}
			w.t.Fatal(err)
		}
		<-time.After(5 * time.Millisecond) // the next look
	}
}

// starts counts the deltas that were started at the API.
func (w *world) starts() (n int) {
	for _, r := range w.sim.Requests() {
		if r.Method == http.MethodGet && strings.HasSuffix(r.Query, "&delta") {
			n++
		}
	}
	return n
}

func kv(t testing.TB, nc *nats.Conn) jetstream.KeyValue {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	kv, err := js.KeyValue(context.Background(), Bucket)
	if err != nil {
		t.Fatal(err)
	}
	return kv
}

// TestFleet_standBy: a second instance stands by, says so, is ready, and leaves the API alone.
func TestFleet_standBy(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.company(20)
	a, b := w.pair(beatNever)
	if s := b.feeds[0].Status(); !s.Ready() || s.Holder != "a" {
		t.Errorf("b: %+v, want it ready, and a the holder", s)
	}
	if !strings.Contains(b.logs.String(), `msg="standing by"`) || !strings.Contains(b.logs.String(), "holder=a") {
		t.Errorf("b does not say that it stands by:\n%s", b.logs)
	}
	w.company(5)
	w.current(a, b)
	if n := w.starts(); n != 1 {
		t.Errorf("%d deltas were started, want one", n)
	}
}

// TestFleet_gracefulStop: whoever stands by takes over at once, not after the heartbeats of an hour, and goes on with the
// delta that there is, although its store is empty.
func TestFleet_gracefulStop(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	ids := w.company(30)
	a, b := w.pair(beatNever)
	w.bustle(ids, 0)
	a.stop()
	waitFor(t, "b to take over", b.holds)
	w.bustle(ids, 1)
	w.current(a, b)
	if n := w.starts(); n != 1 {
		t.Errorf("%d deltas were started, want one", n)
	}
}

// TestFleet_crash: whoever stands by takes over within three heartbeats.
func TestFleet_crash(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	ids := w.company(30)
	a, b := w.pair(beatSlow)
	w.bustle(ids, 0)
	crashed := time.Now()
	a.crash()
	waitFor(t, "b to take over", b.holds)
	if took := time.Since(crashed); took > 5*beatSlow { // machines that run tests are slow now and then
		t.Errorf("taken over after %s, heartbeats are %s apart", took, beatSlow)
	} else {
		t.Logf("taken over after %.1f heartbeats", float64(took)/float64(beatSlow))
	}
	w.bustle(ids, 1)
	w.current(a, b)
	if n := w.starts(); n != 1 {
		t.Errorf("%d deltas were started, want one", n)
	}
}

// TestFleet_restart: an instance that crashed and comes back with its own store does not wait for anybody to miss it.
func TestFleet_restart(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	ids := w.company(30)
	a := w.join("a", "", beatNever)
	waitFor(t, "a to follow", a.holds)
	w.bustle(ids, 0)
	a.crash()
	again := w.join("a", a.path, beatNever)
	waitFor(t, "a to follow again", again.holds)
	w.bustle(ids, 1)
	w.current(again)
	if n := w.starts(); n != 1 {
		t.Errorf("%d deltas were started, want one", n)
	}
}

// TestFleet_buried: an instance that the others took for dead gives up what it holds, and joins again.
func TestFleet_buried(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	ids := w.company(30)
	a, b := w.pair(beatSoon)
	w.bury("a")
	waitFor(t, "b to take over", b.holds)
	waitFor(t, "a to stand by", func() bool { return a.feeds[0].Status().State == StateStandby })
	waitFor(t, "a to say what happened", func() bool { return strings.Contains(a.logs.String(), "taken for dead") })
	w.bustle(ids, 0)
	b.stop()
	waitFor(t, "a to take over", a.holds)
	w.bustle(ids, 1)
	w.current(a, b)
}

// bury deletes an instance's key, as others do that have not seen it for long.
func (w *world) bury(name string) {
	w.t.Helper()
	bucket := kv(w.t, w.nc)
	keys, err := bucket.Keys(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, key := range keys {
		entry, err := bucket.Get(w.t.Context(), key)
		if err != nil {
			w.t.Fatal(err)
		}
		if m, ok := decodeMember(entry.Value()); ok && m.Name == name {
			if err := bucket.Delete(w.t.Context(), key); err != nil {
				w.t.Fatal(err)
			}
		}
	}
}

// TestFleet_bucketLost: the bucket is deleted under the feet of two instances. They make a new one and go on.
func TestFleet_bucketLost(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	ids := w.company(30)
	a, b := w.pair(beatSoon)
	if err := w.js.DeleteKeyValue(t.Context(), Bucket); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "one to follow again", func() bool {
		_, err := w.js.KeyValue(context.Background(), Bucket)
		return err == nil && a.holds() != b.holds()
	})
	w.bustle(ids, 0)
	w.current(a, b)
}

// TestFleet_robbed: somebody writes another holder into the record by hand. The one who holds the lease lets go, and takes it again in
// the proper way.
func TestFleet_robbed(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.company(10)
	w.cfg.PollInterval = time.Hour // so that it does not learn it from its own next save
	a := w.join("a", "", beatNever)
	waitFor(t, "a to follow", a.holds)
	bucket, key := kv(t, w.nc), leaseKey(w.tenant+"/clockings")
	if _, err := bucket.PutString(t.Context(), key, `{"holder":"x","name":"somebody","term":7}`); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "a to take the lease again", func() bool {
		entry, err := bucket.Get(t.Context(), key)
		return err == nil && decodeLease(entry.Value()).Term == 8 && a.holds()
	})
	if !strings.Contains(a.logs.String(), "lease lost") {
		t.Errorf("a does not say what happened:\n%s", a.logs)
	}
}

// TestFleet_recordPurged: the record is gone such that no watch shows it. The one who holds the lease finds out, and takes it again.
func TestFleet_recordPurged(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.company(10)
	a := w.join("a", "", beatSoon)
	waitFor(t, "a to follow", a.holds)
	s, err := w.js.Stream(t.Context(), "KV_"+Bucket)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Purge(t.Context(), jetstream.WithPurgeSubject("$KV."+Bucket+"."+leaseKey(w.tenant+"/clockings"))); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "a to take the lease again", func() bool {
		entry, err := kv(t, w.nc).Get(t.Context(), leaseKey(w.tenant+"/clockings"))
		return err == nil && decodeLease(entry.Value()).Term == 2 && a.holds()
	})
	w.company(5)
	w.current(a)
}

// TestFleet_forgetfulBucket: a bucket whose keys vanish by themselves is refused, since a lease carries the checkpoint.
func TestFleet_forgetfulBucket(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	if _, err := w.js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: Bucket, TTL: time.Hour}); err != nil {
		t.Fatal(err)
	}
	a := w.join("a", "", beatSoon)
	waitFor(t, "a to complain", func() bool { return a.feeds[0].Status().State == StateMisconfigured })
	if s := a.feeds[0].Status(); !strings.Contains(s.Error, "max_age is 1h0m0s, must be absent") {
		t.Errorf("it says %q", s.Error)
	}
	// The next try would be in five minutes. Whoever has put it right reloads the configuration.
	if err := w.js.DeleteKeyValue(t.Context(), Bucket); err != nil {
		t.Fatal(err)
	}
	a.fleet.Follow(a.feeds)
	waitFor(t, "a to follow", a.holds)
}

// TestFleet_resyncElsewhere: a resync that was asked of an instance that stands by is not begun by surprise when it takes over.
func TestFleet_resyncElsewhere(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.company(10)
	a, b := w.pair(beatSlow)
	b.feeds[0].Resync(true)
	waitFor(t, "b to refuse it", func() bool { return strings.Contains(b.logs.String(), "resync not begun") })
	a.stop()
	waitFor(t, "b to take over", b.holds)
	w.company(5)
	w.current(a, b)
	if n := w.starts(); n != 1 {
		t.Errorf("%d deltas were started, want one", n)
	}
}

// TestFleet_newcomer: whoever joins knows who is a member before it calls a lease free.
func TestFleet_newcomer(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.company(10)
	w.cfg.PollInterval = time.Hour
	a := w.join("a", "", beatSlow)
	waitFor(t, "a to follow", a.holds)
	// The lease is shown to a newcomer before the key of its holder.
	bucket, key := kv(t, w.nc), leaseKey(w.tenant+"/clockings")
	entry, err := bucket.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "a heartbeat behind the lease", func() bool {
		holder, err := bucket.Get(t.Context(), memberPrefix+decodeLease(entry.Value()).Holder)
		return err == nil && holder.Revision() > entry.Revision()
	})
	for range 5 {
		b := w.join("b", "", beatSlow)
		waitFor(t, "b to stand by", func() bool { return b.feeds[0].Status().State == StateStandby })
		b.stop()
	}
	if now, err := bucket.Get(t.Context(), key); err != nil || decodeLease(now.Value()).Term != 1 {
		t.Errorf("the lease has changed hands: %s (%v)", now.Value(), err)
	}
}

// TestFleet_blindWatch: what shows the keys of the others has ended without a word. It is noticed, since the own key is not
// shown either.
func TestFleet_blindWatch(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.company(10)
	a, b := w.pair(beatSoon)
	s, err := w.js.Stream(t.Context(), "KV_"+Bucket)
	if err != nil {
		t.Fatal(err)
	}
	for name := range s.ConsumerNames(t.Context()).Name() {
		if err := s.DeleteConsumer(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	stopped := time.Now()
	a.stop()
	waitFor(t, "b to take over", b.holds)
	if took := time.Since(stopped); took > 5*time.Second { // the client library itself notices after ten
		t.Errorf("taken over after %s", took)
	}
}

// TestFleet_unreadable: records that nobody can read are nobody's.
func TestFleet_unreadable(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.company(10)
	a := w.join("a", "", beatNever)
	waitFor(t, "a to follow", a.holds)
	a.stop()
	bucket := kv(t, w.nc)
	for _, key := range []string{leaseKey(w.tenant + "/clockings"), memberPrefix + "nonsense"} {
		if _, err := bucket.PutString(t.Context(), key, `{"holder":7`); err != nil {
			t.Fatal(err)
		}
	}
	b := w.join("b", "", beatNever)
	waitFor(t, "b to follow", b.holds)
	w.company(5)
	w.current(a, b)
}

// TestFleet_share: instances that join and leave; every feed is followed by one of them, evenly.
func TestFleet_share(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	collections := []string{"clockings", "people", "absences", "tasks", "teams", "sites", "roles"}
	var all []*instance
	alone := func() error { // at most one holder of each, by what they say themselves
		for n, c := range collections {
			var holders []string
			for _, i := range all {
				if s := i.feeds[n].Status(); s.State != StateStandby && s.Holder == i.name {
					holders = append(holders, i.name)
				}
			}
			if len(holders) > 1 {
				return fmt.Errorf("%s is followed by %v", c, holders)
			}
		}
		return nil
	}
	even := func(want ...int) {
		t.Helper()
		defer func() {
			if t.Failed() {
				for _, i := range all {
					t.Logf("%s holds %d\n%s", i.name, i.held(), i.logs)
				}
			}
		}()
		waitFor(t, fmt.Sprintf("shares of %v", want), func() bool {
			if err := alone(); err != nil {
				t.Fatal(err)
			}
			got := map[int]int{}
			for _, i := range all {
				got[i.held()]++
			}
			for _, n := range want {
				got[n]--
			}
			for _, n := range got {
				if n != 0 {
					return false
				}
			}
			return true
		})
	}
	all = append(all, w.join("a", "", beatSlow, collections...))
	even(7)
	all = append(all, w.join("b", "", beatSlow, collections...))
	even(3, 4)
	all = append(all, w.join("c", "", beatSlow, collections...))
	even(2, 2, 3)
	all[0].stop()
	all = all[1:]
	even(3, 4)
	all[0].crash()
	all = all[1:]
	even(7)
}

// TestFleet_overlap: instances that are configured for different feeds agree on who follows those that they share.
func TestFleet_overlap(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	a := w.join("a", "", beatNever, "clockings", "people", "absences", "tasks")
	b := w.join("b", "", beatNever, "tasks", "absences", "teams", "sites")
	waitFor(t, "each to follow three", func() bool { return a.held() == 3 && b.held() == 3 })
}

// TestFleet_Follow: feeds come and go while the process runs; what is no longer followed here goes to another instance, and
// what stays is not touched.
func TestFleet_Follow(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	a := w.join("a", "", beatNever, "clockings", "people", "absences")
	waitFor(t, "a to follow all", func() bool { return a.held() == 3 })
	b := w.join("b", "", beatNever, "people")
	cfg := a.feeds[2].cfg
	cfg.PollInterval = time.Minute
	changed, err := NewFeed(cfg)
	if err != nil {
		t.Fatal(err)
	}
	clockings, people, absences := a.feeds[0], a.feeds[1], a.feeds[2]
	a.fleet.Follow([]*Feed{clockings, changed})
	waitFor(t, "the new feed in place of the old", func() bool { return changed.Status().Holder == "a" && absences.Status().State == StateStandby })
	waitFor(t, "people to go to b", func() bool { return b.held() == 1 && people.Status().State == StateStandby })
	entry, err := kv(t, w.nc).Get(t.Context(), leaseKey(clockings.name))
	if err != nil {
		t.Fatal(err)
	}
	if r := decodeLease(entry.Value()); r.Term != 1 || r.Name != "a" {
		t.Errorf("the feed that stays has had %d leases, the last with %q, want it untouched", r.Term, r.Name)
	}
	waitFor(t, "the feed that stays to be healthy", func() bool { return clockings.Status().State == StateHealthy })
}

// TestFleet_margins: who holds a feed is done with it before it may be another's, also with what it began at the last moment, and takeover is
// within three heartbeats.
func TestFleet_margins(t *testing.T) {
	if actTenths+sendTenths > deadTenths {
		t.Errorf("a member may act for %d tenths of a heartbeat and %d more, and is taken for dead after %d", actTenths, sendTenths, deadTenths)
	}
	if deadTenths+sendTenths > 30 {
		t.Errorf("a member is taken for dead after %d tenths of a heartbeat and %d more, takeover is promised within three heartbeats", deadTenths, sendTenths)
	}
}
