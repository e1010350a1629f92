package protime

import "errors"

// ErrCircle says that a listing has no end: its links lead back to where they have led before, or it brings one empty page
// after the other.
var ErrCircle = errors.New("the API's pages lead nowhere")

// Trail notices when the links of a listing lead in a circle. It remembers one link, a later one each time that twice as many
// have passed as before (Brent's algorithm), so it takes no more memory in a long listing than in a short one, and lets a circle be
// walked about three times at most. The zero value is that of a listing where nothing was followed yet.
type Trail struct {
	mark         string // the link remembered
	steps, limit uint64 // links since then, and how many there may be before another is remembered
}

// Follow takes the next link of the page at a link. It returns a *PageError of ErrCircle, and stays as it was, if the listing
// was there before.
func (t *Trail) Follow(at, next string) error {
	if next == at || next == t.mark {
		return &PageError{Reason: "nextLink leads back to an earlier page", Err: ErrCircle}
	}
	if t.steps == t.limit {
		t.mark, t.limit, t.steps = next, 2*t.limit+1, 0
	}
	t.steps++
	return nil
}
