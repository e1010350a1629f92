package protime

import (
	"errors"
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

// A circle of any length is noticed, however long the way to it, within three rounds; and stays noticed.
func TestTrail_Follow(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		way, circle := rapid.IntRange(0, 300).Draw(r, "way"), rapid.IntRange(1, 300).Draw(r, "circle")
		link := func(n int) string {
			if n >= way {
				n = way + (n-way)%circle
			}
			return fmt.Sprint("link ", n)
		}
		var trail Trail
		n := 0
		for ; trail.Follow(link(n), link(n+1)) == nil; n++ {
			if n > 3*(way+circle) {
				r.Fatalf("still followed after %d links", n)
			}
		}
		if n+1 < way+circle {
			r.Fatalf("circle seen at link %d, it closes at %d", n+1, way+circle)
		}
		if err := trail.Follow(link(n), link(n+1)); !errors.Is(err, ErrCircle) {
			r.Errorf("followed again: %v, want %v", err, ErrCircle)
		}
	})
	var trail Trail
	for n := range 100_000 {
		if err := trail.Follow(fmt.Sprint(n), fmt.Sprint(n+1)); err != nil {
			t.Fatalf("link %d: %v, want none on a straight way", n, err)
		}
	}
}
