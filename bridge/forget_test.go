package bridge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"clockbridge/protime/protimetest"
)

// asked names requests.
var asked atomic.Int64

// ask asks the world's feed for a person to be forgotten, as whoever goes on to ask until it is done.
func (w *world) ask(id string) ForgetRequest {
	w.t.Helper()
	r := ForgetRequest{Request: fmt.Sprint(asked.Add(1)), Person: id}
	if got, err := w.feed.Forget(r); got != (Forgotten{}) || err != nil {
		w.t.Fatalf("asked for the first time: %+v, %v", got, err)
	}
	return r
}

// forget has the world's feed forget a person.
func (w *world) forget(id string) Forgotten {
	w.t.Helper()
	asked := w.ask(id)
	w.settle()
	r, err := w.feed.Forget(asked)
	if !r.Done || err != nil || r.Messages != r.Found || r.Found > 0 && (r.From.IsZero() || r.To.Before(r.From)) {
		w.t.Fatalf("%+v, %v, want it done\n%s", r, err, w.logs)
	}
	r.From, r.To = time.Time{}, time.Time{}
	return r
}

// naming returns the positions of messages that name a person.
func (w *world) naming(id string) (at []uint64) {
	w.t.Helper()
	person := NewPerson("clockings", id, w.cfg.Privacy)
	for _, m := range w.messages() {
		if person.NamedBy(m.data, m.deleted) {
			at = append(at, m.seq)
		}
	}
	return at
}

// onDisk reports whether any file of the server's or of the store's holds a text.
func (w *world) onDisk(text string) bool {
	w.t.Helper()
	found := false
	for _, dir := range []string{w.nats.dir, filepath.Dir(w.path)} {
		files := os.DirFS(dir)
		err := fs.WalkDir(files, ".", func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return nil // a file of the server's may go meanwhile
			}
			data, err := fs.ReadFile(files, path)
			found = found || err == nil && bytes.Contains(data, []byte(text))
			return nil
		})
		if err != nil {
			w.t.Fatal(err)
		}
	}
	return found
}

// TestForget: what names a person is gone, from the disks too, and everything else is as it was and stays so.
func TestForget(t *testing.T) {
	for _, last := range []string{"named", "another", "unreadable"} { // who stands at the end of the stream
		t.Run(last, func(t *testing.T) {
			w := newWorld(t, startServer(t), protimetest.Options{NoRepeat: true, DeleteMoreFields: true})
			w.cfg.KeepData = true
			w.reopen()
			first := w.named(70) // at position 1
			others := w.company(30)
			alive, soft, hard, changed := w.named(70), w.named(70), w.named(70), w.named(70)
			w.settle()
			w.sim.Update("clockings", alive, map[string]any{"timeOfDayInMinutes": 1})
			w.sim.SoftDelete("clockings", soft)
			w.sim.Remove("clockings", hard)
			w.settle()
			other := clocking(8, 1)
			other["remark"] = nil
			w.sim.Update("clockings", changed, other) // somebody else's by now
			w.bustle(others, 1)
			w.settle()
			switch last {
			case "named":
				w.sim.Update("clockings", alive, map[string]any{"timeOfDayInMinutes": 2})
				w.settle()
			case "unreadable":
				page := `{"value":[{"changeType":"Moved","data":{"id":5,"person":{"id":70},"remark":"` + secretName + `"}}],"deltaLink":"` + apiRoot + `delta/clockings?deltaToken=x"}`
				w.sim.Fail(protimetest.Fault{Kind: protimetest.WrongContent, ContentType: "application/json", Body: page, Times: 1})
				w.step()
				w.feed.Resync(false)
				w.settle()
			}
			named, before := w.naming("70"), w.messages()
			if !w.onDisk(secretName) || len(named) < 8 {
				t.Fatalf("the person is named by %v, and found on disk: %v", named, w.onDisk(secretName))
			}

			r := w.forget("70")
			want := Forgotten{Done: true, Position: before[len(before)-1].seq, Found: len(named), Messages: len(named), Records: 4}
			if last == "unreadable" {
				want.Records++
			}
			if r != want {
				t.Errorf("got %+v, want %+v", r, want)
			}
			if left := w.naming("70"); len(left) > 0 || w.onDisk(secretName) {
				t.Errorf("left: positions %v; on disk: %v", left, w.onDisk(secretName))
			}
			w.leaks()
			kept := slices.DeleteFunc(before, func(m stored) bool { return slices.Contains(named, m.seq) })
			same := func(a, b stored) bool { return a.seq == b.seq && a.subject == b.subject && bytes.Equal(a.data, b.data) }
			after := w.messages()
			if !slices.EqualFunc(after[:len(kept)], kept, same) || len(after) != len(kept)+want.Records {
				t.Errorf("of %d other messages and %d deletions the stream holds %d", len(kept), want.Records, len(after))
			}
			for _, m := range after[len(kept):] {
				if m.origin != OriginErasure || !strings.HasSuffix(m.header.Get(headerID), "/erased") || m.id != "" && string(m.data) != `{"id":`+m.id+`}` {
					t.Errorf("in place of what was erased: %s %v %s", m.subject, m.header, m.data)
				}
			}
			for _, id := range []string{first, alive, soft, hard} {
				if m := w.lastOf(id); !m.erased() {
					t.Errorf("the last message of record %s is %s %v", id, m.origin, m.header)
				}
			}
			if m := w.lastOf(changed); m.erased() {
				t.Error("a record that is somebody else's by now was erased")
			}

			w.stays(len(after), first, alive, soft, hard, changed)
			w.reopen()
			w.settle()
			if strings.Contains(w.logs.String(), "purged") {
				t.Errorf("taken for a purge:\n%s", w.logs)
			}
			w.path = filepath.Join(t.TempDir(), "new.db") // the index from the stream alone
			w.reopen()
			w.settle()
			w.stays(len(after), first, alive, soft, hard, changed)
			w.lostNothing()

			w.sim.Update("clockings", alive, map[string]any{"timeOfDayInMinutes": 3})
			w.settle()
			if got := w.naming("70"); len(got) != 1 || w.lastOf(alive).deleted {
				t.Errorf("what changed later is at %v", got)
			}
			w.judge()
			if r := w.forget("70"); r.Messages != 1 || r.Records != 1 {
				t.Errorf("forgotten once more: %+v", r)
			}
			w.judge()
		})
	}
}

// stays fails if anything is appended though all is as it should be.
func (w *world) stays(messages int, ids ...string) {
	w.t.Helper()
	r, found := w.verify()
	if r.Differs() || r.Forgotten != 3 { // the fourth is gone from the API
		w.t.Errorf("verify: %+v %v, want 3 forgotten records", r, found)
	}
	if err := w.feed.Repair(ids); err != nil {
		w.t.Fatal(err)
	}
	w.settle()
	for _, trust := range []bool{false, true} {
		w.feed.Resync(trust)
		w.settle()
	}
	if n := len(w.messages()); n != messages {
		w.t.Errorf("%d messages, want %d as before: repair or resync published what was erased", n, messages)
	}
	w.judge()
}

// Whatever keeps messages from being erased is told to whoever asked, and does not keep the feed from its work.
func TestForget_refused(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.dropStream()
	cfg := streamConfig(w.stream(), SubjectPrefix(w.tenant, "clockings"), 1)
	cfg.DenyDelete = true
	if _, err := w.js.CreateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	w.reopen()
	w.company(20)
	w.settle()
	before := len(w.messages())
	asked := w.ask("7")
	w.settle()
	if r, err := w.feed.Forget(asked); r.Done || err == nil || !strings.Contains(err.Error(), "deny_delete") || len(w.messages()) != before {
		t.Errorf("%+v, %v, want an error that says why, and no message more than %d", r, err, before)
	}
	w.company(1)
	w.settle()
	w.judge()
}

// TestForget_permission: a user who may not erase learns that it is a matter of permissions.
func TestForget_permission(t *testing.T) {
	nc := connectRestricted(t, &server.SubjectPermission{Deny: []string{"$JS.API.STREAM.MSG.DELETE.>"}})
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	s := &stream{nc: nc, js: js, name: "PROTIME_ACME_CLOCKINGS", codec: newCodec("acme", "clockings", "")}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if err := s.erase(ctx, 1); err == nil || !strings.Contains(err.Error(), "Permissions Violation") {
		t.Errorf("got %v", err)
	}
}

// TestForget_request: one at a time, and what became of it is told to whoever asked, as often as they like.
func TestForget_request(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.company(40)
	w.settle()
	ask := func(r ForgetRequest, want Forgotten, wantErr error) {
		t.Helper()
		got, err := w.feed.Forget(r)
		got.From, got.To = time.Time{}, time.Time{}
		if got != want || !errors.Is(err, wantErr) {
			t.Errorf("%+v: %+v, %v, want %+v, %v", r, got, err, want, wantErr)
		}
	}
	look := ForgetRequest{Request: "a", Person: "7", Look: true}
	seven, again, eight := ForgetRequest{"b", "7", false}, ForgetRequest{"c", "7", false}, ForgetRequest{"d", "8", false}
	ask(look, Forgotten{}, nil)
	ask(look, Forgotten{}, nil)
	ask(eight, Forgotten{}, ErrForgetting)
	w.settle()
	for range 2 {
		ask(look, Forgotten{Done: true, Position: 40, Found: 2}, nil)
	}
	ask(seven, Forgotten{}, nil)
	ask(again, Forgotten{}, ErrForgetting)
	w.settle()
	ask(seven, Forgotten{Done: true, Position: 40, Found: 2, Messages: 2, Records: 2}, nil)
	w.sim.Insert("clockings", clocking(7, 1))
	w.settle()
	ask(again, Forgotten{}, nil)
	w.settle()
	ask(again, Forgotten{Done: true, Position: 43, Found: 1, Messages: 1, Records: 1}, nil)
	w.feed.forgetting.drop()
	ask(again, Forgotten{}, nil)
	for _, r := range []ForgetRequest{{"e", "", false}, {"e", "a\x00b", false}, {"e", strings.Repeat("7", 200), false}, {"", "7", false}, {strings.Repeat("7", 65), "7", false}} {
		if _, err := w.feed.Forget(r); err == nil || errors.Is(err, ErrForgetting) {
			t.Errorf("%+v: %v, want it refused", r, err)
		}
	}
}

// TestForget_takeover: whoever takes over is asked anew, and finishes.
func TestForget_takeover(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.company(40)
	a, b := w.pair(beatSoon)
	w.current(a, b)
	if _, err := b.feeds[0].Forget(ForgetRequest{Request: "1", Person: "8"}); err != nil { // none to who does not follow the feed outlives that
		t.Fatal(err)
	}
	a.crash()
	waitFor(t, "b to follow", b.holds)
	r, err := RequestForget(t.Context(), w.nc, w.tenant, "clockings", ForgetRequest{Person: "7"}, func(Forgotten) {})
	if err != nil || r.Messages != 2 || len(w.naming("7")) > 0 {
		t.Errorf("%+v, %v, left: %v", r, err, w.naming("7"))
	}
	w.current(b)
	if left := w.naming("8"); len(left) != 2 {
		t.Errorf("person 8 is named by %v, want two positions as before", left)
	}
	if _, err := RequestForget(t.Context(), w.nc, w.tenant, "people", ForgetRequest{Person: "7"}, func(Forgotten) {}); !errors.Is(err, ErrNobody) {
		t.Errorf("of a feed that nobody follows: %v, want %v", err, ErrNobody)
	}
}

// TestForget_limited: a stream that keeps one message of each record has dropped it by the time that it is to be erased.
func TestForget_limited(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.limited(0, 1)
	w.company(40)
	w.named(70)
	w.settle()
	if r := w.forget("70"); r.Messages != 1 || len(w.naming("70")) > 0 {
		t.Errorf("%+v, left: %v", r, w.naming("70"))
	}
	w.judge()
	w.lostNothing()
}

func TestForget_hashed(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.cfg.Privacy = newPrivacy(t, nil, []string{"person.id"}, hashKey)
	w.reopen()
	w.company(40)
	w.settle()
	if r := w.forget("7"); r.Messages != 2 || len(w.naming("7")) > 0 {
		t.Errorf("%+v, left: %v", r, w.naming("7"))
	}
}

// BenchmarkForget forgets one of 300 people after the other, of a stream that holds 333 messages of each.
func BenchmarkForget(b *testing.B) {
	w := newWorld(b, startServer(b), protimetest.Options{PageSize: 1000})
	for i := range 100_000 {
		w.sim.Insert("clockings", clocking(1+i%300, i%1440))
	}
	w.settle()
	person, erased := 0, 0
	for b.Loop() {
		person++
		asked := w.ask(fmt.Sprint(person))
		w.step()
		r, err := w.feed.Forget(asked)
		if err != nil || !r.Done {
			b.Fatal(r, err)
		}
		erased += r.Messages
	}
	b.ReportMetric(float64(erased)/float64(b.N), "messages/op")
}

// TestForget_waits: whoever asks a feed that a person must help first is told so, and a pause gives the request up.
func TestForget_waits(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.company(20)
	a, _ := w.pair(beatSlow)
	w.current(a)
	w.pauseFeed(a)
	ask := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		_, err := RequestForget(ctx, w.nc, w.tenant, "clockings", ForgetRequest{Person: "7"}, func(Forgotten) {})
		return err
	}
	if _, err := a.feeds[0].Forget(ForgetRequest{Request: "before", Person: "7"}); err != nil {
		t.Fatal(err)
	}
	if err := ask(); err == nil || !strings.Contains(err.Error(), "resume it first") {
		t.Errorf("of a paused feed: %v", err)
	}
	w.resumeFeed()
	waitFor(t, "the feed to go on", a.holds)
	if len(w.naming("7")) != 1 {
		t.Error("erased behind the back of whoever was refused")
	}
	if _, err := w.js.Publish(t.Context(), SubjectPrefix(w.tenant, "clockings")+".77", []byte("{}")); err != nil {
		t.Fatal(err)
	}
	if err := ask(); err == nil || !strings.Contains(err.Error(), "foreign message") {
		t.Errorf("of a feed in conflict: %v", err)
	}
}

// TestForget_deleted: a record that is gone already is announced once more, for whoever keeps what it was.
func TestForget_deleted(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	w.company(5)
	id := w.named(70)
	w.settle()
	w.sim.Update("clockings", id, map[string]any{"timeOfDayInMinutes": 1})
	w.settle()
	w.sim.Remove("clockings", id)
	w.settle()
	if r := w.forget("70"); r.Messages != 2 || r.Records != 1 || !w.lastOf(id).erased() {
		t.Errorf("%+v, last: %+v", r, w.lastOf(id))
	}
	w.noAlarm()
	if r := w.forget("70"); r != (Forgotten{Done: true, Position: 9}) {
		t.Errorf("once more: %+v", r)
	}
}
