package bridge

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestShare: every feed is held, evenly, nothing moves that need not, and whoever reckons again finds nothing to do.
func TestShare(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		var feeds, ids []string
		for i := range rapid.IntRange(0, 20).Draw(r, "feeds") {
			feeds = append(feeds, fmt.Sprintf("acme/f%02d", i))
		}
		for i := range rapid.IntRange(1, 6).Draw(r, "members") {
			ids = append(ids, fmt.Sprintf("m%d", i))
		}
		members := map[string][]string{}
		for _, id := range ids {
			members[id] = feeds
		}
		holders := map[string]string{}
		for _, feed := range feeds {
			holders[feed] = rapid.SampledFrom(append([]string{"", "gone"}, ids...)).Draw(r, feed)
		}
		to := share(members, holders)
		before, load, moved := map[string]int{}, map[string]int{}, 0
		for _, id := range ids {
			before[id], load[id] = 0, 0
		}
		for _, feed := range feeds {
			if to[feed] == "" {
				r.Fatalf("nobody is to hold %s", feed)
			}
			load[to[feed]]++
			if _, member := members[holders[feed]]; member {
				before[holders[feed]]++
				if to[feed] != holders[feed] {
					moved++
				}
			}
		}
		if lo, hi := slices.Min(slices.Collect(maps.Values(load))), slices.Max(slices.Collect(maps.Values(load))); hi > lo+1 {
			r.Fatalf("from %v to %v, not even", holders, load)
		}
		// At least what a member holds above its even share has to move; as many as can be may have the larger share.
		floor, larger, least := len(feeds)/len(ids), len(feeds)%len(ids), 0
		for _, n := range slices.Backward(slices.Sorted(maps.Values(before))) {
			keep := floor
			if n > floor && larger > 0 {
				keep++
				larger--
			}
			least += max(n-keep, 0)
		}
		if moved != least {
			r.Fatalf("from %v to %v: %d feeds moved, %d had to", holders, to, moved, least)
		}
		if again := share(members, to); !maps.Equal(to, again) {
			r.Fatalf("from %v to %v, and then to %v", holders, to, again)
		}
	})
}

// TestShare_ofItsOwn: nobody gets a feed that it is not configured for, however uneven that is.
func TestShare_ofItsOwn(t *testing.T) {
	to := share(map[string][]string{"a": {"x/1", "x/2", "x/3", "y/1"}, "b": {"y/1"}, "c": nil}, map[string]string{"y/1": "a", "z/1": "a"})
	want := map[string]string{"x/1": "a", "x/2": "a", "x/3": "a", "y/1": "b"}
	if !maps.Equal(to, want) {
		t.Errorf("got %v, want %v", to, want)
	}
}
