package bridge

import (
	"cmp"
	"maps"
	"slices"
)

// share says which member is to hold each feed, such that every member holds as many as the others, give or take one, and
// as few feeds as possible change hands. Every member reckons it for itself: from the same view comes the same answer. A
// feed that no member may follow is left out.
//
// members names the feeds that each member may follow; holders names the member that holds a feed, and may name one that
// is none any more.
func share(members map[string][]string, holders map[string]string) map[string]string {
	may := map[string][]string{} // feed to members
	for id, feeds := range members {
		for _, feed := range feeds {
			may[feed] = append(may[feed], id)
		}
	}
	feeds := slices.Sorted(maps.Keys(may))
	load := map[string]int{}
	to := map[string]string{}
	for _, feed := range feeds {
		if id := holders[feed]; slices.Contains(may[feed], id) {
			to[feed] = id
			load[id]++
		}
	}
	lightest := func(feed string) string {
		return slices.MinFunc(may[feed], func(a, b string) int { return cmp.Or(cmp.Compare(load[a], load[b]), cmp.Compare(a, b)) })
	}
	for _, feed := range feeds {
		if to[feed] == "" {
			to[feed] = lightest(feed)
			load[to[feed]]++
		}
	}
	if len(feeds) == 0 {
		return to
	}
	gap := func(feed string) int { return load[to[feed]] - load[lightest(feed)] }
	for {
		// The widest gap is closed first, so that nothing moves twice.
		widest := slices.MaxFunc(feeds, func(a, b string) int { return cmp.Compare(gap(a), gap(b)) })
		if gap(widest) < 2 {
			return to
		}
		load[to[widest]]--
		to[widest] = lightest(widest)
		load[to[widest]]++
	}
}
