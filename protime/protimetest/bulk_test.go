package protimetest

import (
	"encoding/json"
	"io"
	"net/http"
	"runtime"
	"testing"
	"time"
)

func TestFill(t *testing.T) {
	c := newCaller(t, Options{PageSize: 500})
	c.s.Fill("clockings", 2000, 350)
	mine := c.s.Insert("clockings", clocking(1, 510))
	ids, _ := c.walk(since)
	if len(ids) != 2001 || ids[0] != "19250" || ids[2000] != mine {
		t.Fatalf("%d records, from %s to %s", len(ids), ids[0], ids[len(ids)-1])
	}
	for id, r := range c.s.Truth("clockings") {
		if !json.Valid(r.Data) || id != mine && len(r.Data) > 360 {
			t.Fatalf("record %s: %s", id, r.Data)
		}
		if got := c.get("clockings/" + id).body; id == "20000" && got != string(r.Data) {
			t.Errorf("got %s, want %s", got, r.Data)
		}
	}
	got, link := follow(c, c.start())
	c.same("first changes", got, []string{"U " + mine}) // those of Fill are old
	c.s.Remove("clockings", "19252")
	c.s.Touch("clockings", 5, 350)
	got, _ = follow(c, link)
	c.same("after Touch", got, []string{"D 19252", "U 19250", "U 19251", "U 19253", "U 19254"})
	if n := len(c.s.Versions("clockings")["19252"]); n != 2 {
		t.Errorf("%d versions of a removed record, want 2", n)
	}
}

// BenchmarkFill reports what a million records cost, and how fast they are served.
func BenchmarkFill(b *testing.B) {
	for b.Loop() {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		s := New(Options{Now: today, PageSize: 1000})
		began := time.Now()
		s.Fill("clockings", 1_000_000, 350)
		b.ReportMetric(time.Since(began).Seconds(), "fill-s")
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapInuse-before.HeapInuse)/1e6, "MB")
		runtime.KeepAlive(s)
	}
}

func BenchmarkDelta(b *testing.B) {
	s := New(Options{Now: today})
	s.Fill("clockings", 1_000_000, 350)
	g := &grant{tenant: "acme", client: "demo"}
	s.mu.Lock()
	c := s.collection(s.tenant("acme"), "clockings")
	s.mu.Unlock()
	k, _ := New(Options{}).kindOf("clockings")
	b.ReportAllocs()
	for b.Loop() {
		c.deltas[""] = &delta{id: 1, touched: today()}
		token := deltaToken{DeltaID: 1, Serial: 1}
		r, err := http.NewRequest("GET", "http://api.test"+wire(deltaLink(c, &token)), nil)
		if err != nil {
			b.Fatal(err)
		}
		p, fail := s.followDelta(r, g, k)
		if fail != nil {
			b.Fatal(fail)
		}
		w := &counting{}
		p.write(w, "")
		b.SetBytes(w.n)
	}
}

type counting struct{ n int64 }

func (c *counting) Header() http.Header { return http.Header{} }
func (c *counting) WriteHeader(int)     {}
func (c *counting) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return io.Discard.Write(p)
}
