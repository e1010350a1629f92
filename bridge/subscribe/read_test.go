package subscribe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"clockbridge/bridge"
)

// read reads a range, and calls while before each message is taken.
func (w *world) read(ctx context.Context, r Range, while func(n int)) (got []seen, err error) {
	err = w.stream.Read(ctx, r, func(m Message) error {
		while(len(got))
		got = append(got, saw(m))
		return nil
	})
	return got, err
}

func nothing(int) {}

func TestRead_range(t *testing.T) {
	js := connect(t, startServer(t, t.TempDir(), -1))
	w := newWorld(t, js, 5, nil)
	id := w.all()[1].id
	w.update(id, 1)
	w.settle()
	w.sim.Remove("clockings", id)
	w.settle()
	all := w.all() // 5 records, 6 and 7 the second one again
	tests := map[string]struct {
		r    Range
		want []seen
	}{
		"everything":        {Range{To: 7}, all},
		"some":              {Range{From: 2, To: 4}, all[1:4]},
		"one":               {Range{From: 3, To: 3}, all[2:3]},
		"none":              {Range{From: 5, To: 4}, nil},
		"behind the end":    {Range{From: 8, To: 9}, nil},
		"up to what comes":  {Range{From: 7, To: 20}, all[6:]},
		"a record":          {Range{To: 7, Record: id}, []seen{all[1], all[5], all[6]}},
		"part of a record":  {Range{From: 3, To: 6, Record: id}, all[5:6]},
		"an unknown record": {Range{To: 7, Record: "nobody"}, nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := w.read(t.Context(), tt.r, nothing)
			if err != nil || !slices.Equal(got, tt.want) {
				t.Errorf("got %v, %v, want %v", got, err, tt.want)
			}
		})
	}
	if n := w.consumers(); n != 0 {
		t.Errorf("%d consumers are left behind", n)
	}
}

// TestRead_outage: whatever happens to the connection, the server and the consumer, each message comes once, and in order.
func TestRead_outage(t *testing.T) {
	dir := t.TempDir()
	srv := startServer(t, dir, -1)
	port := srv.Addr().(*net.TCPAddr).Port
	js := connect(t, srv)
	w := newWorld(t, js, 6000, nil)
	var troubles []error
	w.stream.Trouble = func(err error) { troubles = append(troubles, err) }
	restart := func() {
		srv.Shutdown()
		srv.WaitForShutdown()
		srv = startServer(t, dir, port)
	}
	deleteConsumers := func() {
		s, err := connect(t, srv).Stream(t.Context(), w.name())
		if err != nil {
			t.Fatal(err)
		}
		names := s.ConsumerNames(t.Context())
		for name := range names.Name() {
			if err := s.DeleteConsumer(t.Context(), name); err != nil {
				t.Error(err)
			}
		}
	}
	got, err := w.read(t.Context(), Range{To: 6000}, func(n int) {
		switch n {
		case 1000, 4500:
			restart()
		case 2500:
			deleteConsumers()
		case 3500:
			dropConnections(t, srv)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := w.all(); !slices.Equal(got, want) {
		t.Errorf("%d messages, want all %d, once and in order", len(got), len(want))
	}
	if len(troubles) < 2 || troubles[0] == nil || troubles[len(troubles)-1] != nil {
		t.Errorf("said of the troubles: %v, want when each began and ended", troubles)
	}
}

func dropConnections(t *testing.T, srv *server.Server) {
	t.Helper()
	conns, err := srv.Connz(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range conns.Conns {
		if err := srv.DisconnectClientByID(c.Cid); err != nil {
			t.Error(err)
		}
	}
}

// A range without an end shows what comes later, over an outage of the feed's own server, too.
func TestRead_follow(t *testing.T) {
	js := connect(t, startServer(t, t.TempDir(), -1))
	w := newWorld(t, js, 3, nil)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	positions := make(chan uint64, 100)
	ended := make(chan error, 1)
	go func() {
		ended <- w.stream.Read(ctx, Range{From: 3}, func(m Message) error { positions <- m.Position; return nil })
	}()
	for want := uint64(3); want < 10; want++ {
		select {
		case got := <-positions:
			if got != want {
				t.Fatalf("position %d, want %d", got, want)
			}
		case <-time.After(time.Minute):
			t.Fatalf("position %d does not come", want)
		}
		w.insert()
		w.settle()
	}
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
	if !poll(time.Minute, func() bool { return w.consumers() == 0 }) {
		t.Error("a consumer is left behind")
	}
}

func TestRead_recreated(t *testing.T) {
	js := connect(t, startServer(t, t.TempDir(), -1))
	w := newWorld(t, js, 5000, nil)
	s, err := js.Stream(t.Context(), w.name())
	if err != nil {
		t.Fatal(err)
	}
	cfg := s.CachedInfo().Config
	_, err = w.read(t.Context(), Range{To: 5000}, func(n int) {
		if n != 10 {
			return
		}
		if err := js.DeleteStream(t.Context(), w.name()); err != nil {
			t.Fatal(err)
		}
		if _, err := js.CreateStream(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
	})
	if !errors.Is(err, ErrRecreated) {
		t.Errorf("the stream was made anew: %v", err)
	}
	if err := js.DeleteStream(t.Context(), w.name()); err != nil {
		t.Fatal(err)
	}
	for what, read := range map[string]func() error{
		"read":   func() error { _, err := w.read(t.Context(), Range{To: 1}, nothing); return err },
		"follow": func() error { _, err := w.read(t.Context(), Range{}, nothing); return err },
		"open":   func() error { _, _, err := Open(t.Context(), js, w.stream.Feed); return err },
		"export": func() error { _, _, err := w.export(func() {}); return err },
	} {
		if err := read(); !errors.Is(err, ErrNoStream) {
			t.Errorf("%s, without a stream: %v", what, err)
		}
	}
}

// TestRead_dropped: messages that go in front of a reader are not passed over in silence.
func TestRead_dropped(t *testing.T) {
	js := connect(t, startServer(t, t.TempDir(), -1))
	w := newWorld(t, js, 9000, nil)
	s, err := js.Stream(t.Context(), w.name())
	if err != nil {
		t.Fatal(err)
	}
	purge := func(at int, to uint64) func(int) {
		return func(n int) {
			if n == at {
				if err := s.Purge(t.Context(), jetstream.WithPurgeSequence(to)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if _, err := w.read(t.Context(), Range{To: 9000}, purge(2000, 1000)); err != nil {
		t.Errorf("what had been read was purged: %v", err)
	}
	if got, err := w.read(t.Context(), Range{To: 9000}, purge(10, 8001)); !errors.Is(err, ErrDropped) {
		t.Errorf("%d messages, and %v, want to be told of a purge", len(got), err)
	}
	if got, err := w.read(t.Context(), Range{To: 9000}, nothing); err != nil || len(got) != 1000 {
		t.Errorf("%d messages, %v, want what is left", len(got), err)
	}
}

// A message that the feed cannot have written ends a read.
func TestRead_foreign(t *testing.T) {
	js := connect(t, startServer(t, t.TempDir(), -1))
	w := newWorld(t, js, 1, nil)
	if _, err := js.Publish(t.Context(), bridge.Subject(w.tenant, "clockings", "7"), []byte("{}")); err != nil {
		t.Fatal(err)
	}
	got, err := w.read(t.Context(), Range{To: 2}, nothing)
	if len(got) != 1 || err == nil {
		t.Errorf("%v, %v", got, err)
	}
}

func TestStream_At(t *testing.T) {
	js := connect(t, startServer(t, t.TempDir(), -1))
	w := newWorld(t, js, 2, nil)
	w.insert()
	w.settle()
	var stored []time.Time
	if err := w.stream.Read(t.Context(), Range{To: 3}, func(m Message) error { stored = append(stored, m.Stored); return nil }); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		at   time.Time
		want uint64
	}{
		{stored[0].Add(-time.Hour), 1},
		{stored[0], 1},
		{stored[2], 3},
		{stored[2].Add(-1), 3},
		{stored[2].Add(1), 4},
		{stored[2].Add(time.Hour), 4},
	} {
		got, err := w.stream.At(t.Context(), tt.at)
		if err != nil || got != tt.want {
			t.Errorf("at %v: %d, %v, want %d", tt.at, got, err, tt.want)
		}
	}
}

func TestFeeds(t *testing.T) {
	js := connect(t, startServer(t, t.TempDir(), -1))
	for _, name := range []string{"PROTIME_B_CLOCKINGS", "PROTIME_A-C_ABSENCE-GROUPS", "PROTIME_A_PEOPLE", "OTHER", "PROTIME_X"} {
		if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: name, Subjects: []string{name}}); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Feeds(t.Context(), js)
	if want := "[{a people} {a-c absence-groups} {b clockings}]"; err != nil || fmt.Sprint(got) != want {
		t.Errorf("got %v, %v, want %s", got, err, want)
	}
}
