package bridge

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"clockbridge/store"
)

// lane is an appender on a stream of its own.
type lane struct {
	*appender
	t      testing.TB
	js     jetstream.JetStream
	stream *stream
}

func newLane(t testing.TB, srv *testServer) *lane {
	t.Helper()
	nc := srv.connect(t)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	c := newCodec("acme", "clockings", "https://x/clockings")
	l := &lane{&appender{nc: nc, codec: c}, t, js, &stream{nc: nc, js: js, name: StreamName("acme", "clockings"), codec: c}}
	state, batches, err := l.stream.open(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if err := l.reset(batches, state.Limited); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.close)
	return l
}

func (l *lane) holds() uint64 {
	l.t.Helper()
	s, err := l.js.Stream(context.Background(), l.stream.name)
	if err != nil {
		l.t.Fatal(err)
	}
	return s.CachedInfo().State.Msgs
}

func records(from, n int) []message {
	msgs := make([]message, n)
	for i := range msgs {
		id := fmt.Sprint(from + i)
		msgs[i] = message{Entry: store.Entry{ID: id, Version: "A"}, data: []byte(`{"id":` + id + `}`), origin: OriginDelta}
	}
	return msgs
}

func forms(t *testing.T, l *lane) []form {
	t.Helper()
	if takesBatches(l.nc) != l.batches {
		t.Fatalf("server %s: batches %v, want %v", l.nc.ConnectedServerVersion(), l.batches, takesBatches(l.nc))
	}
	if !l.batches {
		return []form{formChain, formSingle}
	}
	return []form{formBatch, formChain, formSingle}
}

// TestAppend_Contract is the same for every form.
func TestAppend_Contract(t *testing.T) {
	for _, form := range forms(t, newLane(t, startServer(t))) {
		t.Run(form.String(), func(t *testing.T) {
			l := newLane(t, startServer(t))
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if err := l.send(ctx, form, records(1, 10), 0); err != nil {
				t.Fatalf("append: %v", err)
			}
			if got := l.holds(); got != 10 {
				t.Fatalf("stream holds %d messages, want 10", got)
			}
			for _, at := range []uint64{0, 11, 1 << 40} {
				if err := l.send(ctx, form, records(100, 10), at); !errors.Is(err, errRefused) {
					t.Errorf("append at %d: %v, want %v", at, err, errRefused)
				}
				if got := l.holds(); got != 10 {
					t.Fatalf("stream holds %d messages after a refused append at %d, want 10", got, at)
				}
			}
			if err := l.send(ctx, form, records(100, maxRun), 10); err != nil {
				t.Fatalf("append of a whole run: %v", err)
			}
			n := uint64(0)
			err := l.stream.read(ctx, 1, func(m message) error {
				if n++; m.Position != n {
					return fmt.Errorf("message at %d, want %d", m.Position, n)
				}
				return nil
			})
			if err != nil || n != 10+maxRun {
				t.Errorf("read %d messages, %v; want %d in order", n, err, 10+maxRun)
			}
		})
	}
}

// TestAppend_TooLate: when its time is over, an append sends nothing any more, as after a pause of the whole process.
func TestAppend_TooLate(t *testing.T) {
	l := newLane(t, startServer(t))
	for _, form := range forms(t, l) {
		ctx, cancel := context.WithDeadline(context.Background(), time.Now())
		if err := l.send(ctx, form, records(1, 10), 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v, want a deadline", form, err)
		}
		cancel()
		if err := l.nc.Flush(); err != nil {
			t.Fatal(err)
		}
		if got := l.holds(); got != 0 {
			t.Errorf("%s: the stream holds %d messages, want none", form, got)
		}
	}
}

// TestAppend_ChainRefusedInTheMiddle: where another writer took positions that a chain was to have, the chain's later
// messages fit again. The refusal must show all the same, and of no record a later message without its earlier one.
func TestAppend_ChainRefusedInTheMiddle(t *testing.T) {
	l := newLane(t, startServer(t))
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := l.send(ctx, formChain, records(1, 5), 0); err != nil {
		t.Fatal(err)
	}
	// Positions 4 and 5 are taken: the chain's first two are refused; the third fits, but follows the refused second
	// of its record; so the fourth does not fit either.
	msgs := records(50, 4)
	msgs[2] = message{Entry: store.Entry{ID: "51", Version: "B"}, prev: 5, data: []byte(`{"id":51}`), origin: OriginDelta}
	if err := l.send(ctx, formChain, msgs, 3); !errors.Is(err, errRefused) {
		t.Errorf("append: %v, want %v", err, errRefused)
	}
	if got := l.holds(); got != 5 {
		t.Errorf("stream holds %d messages, want 5", got)
	}
	if err := l.send(ctx, formChain, records(50, 5), 3); !errors.Is(err, errRefused) {
		t.Errorf("append of which three fit: %v, want %v", err, errRefused)
	}
	waitFor(t, "the three to be stored", func() bool { return l.holds() == 8 })
}

func TestAppend_AnswerLost(t *testing.T) {
	for _, form := range forms(t, newLane(t, startServer(t))) {
		t.Run(form.String(), func(t *testing.T) {
			l := newLane(t, startServer(t))
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			// The answer goes to a subject that nobody listens on.
			deaf := *l.appender
			deaf.inbox = "nobody." + deaf.inbox
			patience, lose := context.WithCancel(ctx)
			defer lose()
			msgs := records(1, 10)
			if form == formSingle {
				msgs = msgs[:1]
			}
			sent := make(chan error, 1)
			go func() { sent <- deaf.send(patience, form, msgs, 0) }()
			waitFor(t, "the messages to be stored", func() bool { return l.holds() == uint64(len(msgs)) })
			lose()
			if err := <-sent; !errors.Is(err, context.Canceled) {
				t.Fatalf("append: %v, want %v", err, context.Canceled)
			}
			if err := l.send(ctx, form, msgs, 0); !errors.Is(err, errRefused) {
				t.Errorf("the same append again: %v, want %v", err, errRefused)
			}
			if got := l.holds(); got != uint64(len(msgs)) {
				t.Errorf("stream holds %d messages, want %d", got, len(msgs))
			}
		})
	}
}

func TestAppend_ChoosesForm(t *testing.T) {
	known := records(1, maxRun)
	known[3].prev = 17
	lost := records(1, 5)
	lost[2].prev = prevUnknown
	twice := records(1, 5)
	twice[4].ID, twice[4].Version, twice[4].prev = twice[1].ID, "B", 102
	fast, slow := pace{paceTries, time.Microsecond}, pace{paceTries, time.Millisecond}
	tests := map[string]struct {
		a    appender
		msgs []message
		want form
	}{
		"small":                  {appender{batches: true}, records(1, 5), formBatch},
		"first try":              {appender{batches: true}, records(1, maxRun), formBatch},
		"second try":             {appender{batches: true, pace: [2]pace{{tries: 1}, {}}}, records(1, maxRun), formChain},
		"chain is faster":        {appender{batches: true, pace: [2]pace{slow, fast}}, records(1, maxRun), formChain},
		"batch is faster":        {appender{batches: true, pace: [2]pace{fast, slow}}, records(1, maxRun), formBatch},
		"after a failure":        {appender{batches: true, failed: 1, pace: [2]pace{slow, fast}}, records(1, maxRun), formBatch},
		"old server":             {appender{}, records(1, 5), formChain},
		"old server, failure":    {appender{failed: 1}, records(1, 5), formSingle},
		"lost record":            {appender{}, lost, formSingle},
		"known records":          {appender{}, known, formChain},
		"one record twice":       {appender{}, twice, formSingle},
		"limits, new records":    {appender{limited: true}, records(1, maxRun), formChain},
		"limits, known records":  {appender{limited: true}, known, formSingle},
		"batch when limits bite": {appender{limited: true, batches: true, pace: [2]pace{slow, fast}}, known, formBatch},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := tt.a.choose(tt.msgs, 100); got != tt.want {
				t.Errorf("form is %s, want %s", got, tt.want)
			}
		})
	}
}

// TestAppend_PrevGone: a record's message before was removed behind the feed's back, so that what names it cannot fit. After
// a few appends one must.
func TestAppend_PrevGone(t *testing.T) {
	l := newLane(t, startServer(t))
	l.batches = false
	ctx := context.Background()
	if _, err := l.Append(ctx, records(1, 3), 0); err != nil {
		t.Fatal(err)
	}
	s, err := l.js.Stream(ctx, l.stream.name)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteMsg(ctx, 2); err != nil {
		t.Fatal(err)
	}
	again := []message{{Entry: store.Entry{ID: "2", Version: "B"}, prev: 2, data: []byte(`{"id":2}`), origin: OriginDelta}}
	for range maxCertain {
		if _, err := l.Append(ctx, again, 3); !errors.Is(err, errRefused) {
			t.Fatalf("append: %v, want %v", err, errRefused)
		}
	}
	if at, err := l.Append(ctx, again, 3); err != nil || at != 4 {
		t.Errorf("append behind %d that failed: %d, %v; want 4", maxCertain, at, err)
	}
}

func TestStream_Before(t *testing.T) {
	l := newLane(t, startServer(t))
	ctx := context.Background()
	if _, err := l.Append(ctx, records(1, 100), 0); err != nil {
		t.Fatal(err)
	}
	s, err := l.js.Stream(ctx, l.stream.name)
	if err != nil {
		t.Fatal(err)
	}
	for seq := uint64(61); seq <= 100; seq++ {
		if err := s.DeleteMsg(ctx, seq); err != nil {
			t.Fatal(err)
		}
	}
	for position, want := range map[uint64]uint64{100: 60, 61: 60, 60: 59, 2: 1, 1: 0} {
		if got, err := l.stream.before(ctx, position); err != nil || got != want {
			t.Errorf("before(%d) = %d, %v; want %d", position, got, err, want)
		}
	}
}

func TestReadAck(t *testing.T) {
	status := func(code string) *nats.Msg {
		return &nats.Msg{Header: nats.Header{"Status": {code}}}
	}
	answer := func(s string) *nats.Msg { return &nats.Msg{Data: []byte(s)} }
	tests := map[string]struct {
		reply *nats.Msg
		want  error // nil = stored at 7, as expected
	}{
		"OK":                  {answer(`{"stream":"S","seq":7}`), nil},
		"OK, batch":           {answer(`{"stream":"S","seq":7,"batch":"b","count":3}`), nil},
		"at another position": {answer(`{"stream":"S","seq":8}`), errRefused},
		"a duplicate":         {answer(`{"stream":"S","seq":3,"duplicate":true}`), errRefused},
		"refused":             {answer(`{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 3"}}`), errRefused},
		"refused, replicated": {answer(`{"error":{"code":400,"err_code":10164,"description":"wrong last sequence"}}`), errRefused},
		"no stream":           {status("503"), nats.ErrNoResponders},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if err := readAck(tt.reply, 7); !errors.Is(err, tt.want) {
				t.Errorf("readAck = %v, want %v", err, tt.want)
			}
		})
	}
	for _, plain := range []string{`{"stream":"S","seq":7}`, `{"stream":"S","domain":"D","seq":7}`} { // as nats-server 2.15 writes them
		if seq, ok := plainAck([]byte(plain)); !ok || seq != 7 {
			t.Errorf("plainAck(%s) = %d, %t", plain, seq, ok)
		}
	}
	for _, bad := range []string{"", "{", `{"error":{"code":503,"err_code":10077,"description":"maximum bytes exceeded"}}`} {
		if err := readAck(answer(bad), 7); err == nil || errors.Is(err, errRefused) {
			t.Errorf("readAck(%q) = %v, want an error of another kind", bad, err)
		}
	}
}

// BenchmarkAppend appends runs of 1,000 in each form; "ahead" is a chain that asks for every 500th acknowledgement only and
// names no record's message before: the price of what a chain needs beyond positions.
func BenchmarkAppend(b *testing.B) {
	for _, name := range []string{"batch", "chain", "ahead"} {
		b.Run(name, func(b *testing.B) {
			l := newLane(b, startServer(b))
			data := make([]byte, 350)
			msgs := make([]message, maxRun)
			at, id := uint64(0), 0
			for b.Loop() {
				for i := range msgs {
					id++
					msgs[i] = message{Entry: store.Entry{ID: fmt.Sprint(id), Version: "0000090200004CE0000A"}, data: data, origin: OriginSnapshot}
				}
				var err error
				switch name {
				case "batch":
					err = l.send(b.Context(), formBatch, msgs, at)
				case "chain":
					err = l.send(b.Context(), formChain, msgs, at)
				case "ahead":
					err = l.ahead(msgs, at)
				}
				if err != nil {
					b.Fatal(err)
				}
				at += maxRun
			}
			b.ReportMetric(float64(maxRun*b.N)/b.Elapsed().Seconds(), "messages/s")
		})
	}
}

func (l *lane) ahead(msgs []message, at uint64) error {
	m := &nats.Msg{Header: make(nats.Header, 16)}
	for i := range msgs {
		l.codec.encode(m, &msgs[i], stampOf(1, time.Now()))
		m.Header[jetstream.ExpectedLastSeqHeader] = []string{fmt.Sprint(at + uint64(i))}
		if i%500 == 499 {
			m.Reply = l.inbox + ".ahead." + fmt.Sprint(i)
		}
		if err := l.nc.PublishMsg(m); err != nil {
			return err
		}
	}
	for range len(msgs) / 500 {
		if _, err := l.acks.NextMsg(10 * time.Second); err != nil {
			return err
		}
	}
	return nil
}

// TestWithPermission: an answer that does not come is blamed on a permission that was refused, unless that one was for requests
// which others may send here.
func TestWithPermission(t *testing.T) {
	srv, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, NoLog: true, NoSigs: true, Users: []*server.User{{
		Username: "a", Password: "a", Permissions: &server.Permissions{Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX.>"}}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	defer srv.Shutdown()
	for subject, blamed := range map[string]bool{"clockbridge.acme.clockings.repair": false, "$SRV.PING": false, "protime.acme.clockings.1": true} {
		nc, err := nats.Connect(srv.ClientURL(), nats.UserInfo("a", "a"), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := nc.SubscribeSync(subject); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "the refusal", func() bool { return nc.LastError() != nil })
		if got := errors.Is(withPermission(nc, context.DeadlineExceeded), nats.ErrPermissionViolation); got != blamed {
			t.Errorf("%s: blamed %v, want %v (%v)", subject, got, blamed, nc.LastError())
		}
		nc.Close()
	}
}
