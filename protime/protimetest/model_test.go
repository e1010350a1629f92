package protimetest

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"testing"
	"time"
)

// reader keeps what a careful client would: of each record the newest version it was told of.
type reader struct {
	*caller
	link    string            // the next request
	version map[string]string // by id
	deleted map[string]bool
}

// read makes one request and takes over what it says. It reports whether the delta is up to date after it.
func (r *reader) read() (done bool) {
	r.t.Helper()
	a := r.page(r.link)
	for _, v := range a.Value {
		data, wrapped := v["data"].(map[string]any)
		if !wrapped {
			data = v
		}
		id, version := fmt.Sprint(data["id"]), fmt.Sprint(data["changeVersion"])
		if version >= r.version[id] {
			r.version[id], r.deleted[id] = version, v["changeType"] == "Delete"
		}
	}
	r.link = a.NextLink
	if a.DeltaLink != "" {
		r.link = a.DeltaLink
	}
	return a.DeltaLink != ""
}

// TestDelta_Model: whatever happens and however often an answer is lost, one delta tells its reader all that is true.
func TestDelta_Model(t *testing.T) {
	options := map[string]Options{
		"Default": {}, "NoRepeat": {NoRepeat: true}, "EmptyPages": {EmptyPages: true}, "DeltaPages": {DeltaPages: true},
		"ShuffleEveryVersion": {ShuffleEveryVersion: true}, "LenientLinks": {LenientLinks: true},
		"All": {NoRepeat: true, EmptyPages: true, DeltaPages: true, ShuffleEveryVersion: true},
	}
	for name, o := range options {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(15) {
				o.PageSize = 3
				live(t, o, seed)
			}
		})
	}
}

func live(t *testing.T, o Options, seed uint64) {
	chance := rand.New(rand.NewPCG(seed, 1))
	c := newCaller(t, o)
	r := &reader{caller: c, link: since + "&delta", version: map[string]string{}, deleted: map[string]bool{}}
	ids := fill(c, chance.IntN(12))
	act := func(tx *Tx) {
		one := func() string { return ids[chance.IntN(len(ids))] }
		switch n := chance.IntN(10); {
		case n < 3 || len(ids) == 0:
			ids = append(ids, tx.Insert("clockings", clocking(1, 510)))
		case n < 7:
			tx.Update("clockings", one(), map[string]any{"timeOfDayInMinutes": chance.IntN(1440)})
		case n < 8:
			tx.SoftDelete("clockings", one())
		default:
			tx.Remove("clockings", one())
		}
	}
	for range 60 {
		switch n := chance.IntN(10); {
		case n < 6:
			c.s.Action(func(tx *Tx) {
				for range 1 + chance.IntN(3) {
					act(tx)
				}
			})
		case n < 7:
			c.later(time.Duration(chance.IntN(10)) * time.Minute)
		case n < 8 && r.link != since+"&delta": // an answer is lost on its way
			if got := c.get(r.link); got.status != http.StatusOK {
				t.Fatalf("seed %d: %d %s", seed, got.status, got.body)
			}
		default:
			r.read()
		}
	}
	for range 2 { // the rest of the listing, and what changed during it
		for !r.read() {
		}
	}
	for id, want := range c.s.Truth("clockings") {
		version, told := r.version[id]
		if !told && want.Removed {
			continue // it came and went before the delta looked
		}
		if version != want.Version || r.deleted[id] != want.Removed {
			t.Fatalf("seed %d, record %s: told %q, deleted %v; true is %q, %v", seed, id, version, r.deleted[id], want.Version, want.Removed)
		}
	}
}
