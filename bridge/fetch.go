package bridge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"clockbridge/protime"
)

// run is a piece of what a cursor brings, small enough for one append.
type run struct {
	changes []protime.Change
	bytes   int
	next    string        // cursor behind the last page that was read whole; "" = none since the run before
	latest  bool          // next is a deltaLink: nothing more is known at the moment
	pages   int           // read whole since the run before
	trail   protime.Trail // of the links up to next
	small   bool          // it takes a tenth of what others do
}

// after is an empty run, to go on behind r with.
func (r *run) after() run { return run{trail: r.trail, small: r.small} }

// full reports whether data, of so many bytes, is to go into the next run.
func (r *run) full(data int) bool {
	part := 1
	if r.small {
		part = smallRun
	}
	return len(r.changes) >= maxRun/part || len(r.changes) > 0 && r.bytes+data > maxRunBytes/part
}

// maxRunBytes bounds the data of one run, but for a single change that is larger, and maxRunPages how many pages it may have:
// empty ones would never fill it. Behind an append that failed runs are a tenth of that, until a Step ends well: through a narrow
// connection a whole one may not get in the time that an append has, however often it is tried.
const (
	maxRunBytes = 4 << 20
	maxRunPages = 100
	smallRun    = 10
)

// cursorError is an error that the API answered for a cursor, or for the start of a delta.
type cursorError struct {
	start bool
	err   error
}

func (e *cursorError) Error() string {
	if e.start {
		return "start delta: " + e.err.Error()
	}
	return "fetch changes: " + e.err.Error()
}

func (e *cursorError) Unwrap() error { return e.err }

// fetch reads a walk from the checkpoint's cursor to its deltaLink, or one page of a delta. While one run is worked on,
// the next is read: ahead of the checkpoint, which is allowed for the nextLinks of a walk, and for them alone. Each delta
// response replaces the last link, so what a delta names is asked for only when the checkpoint holds it.
func (f *Feed) fetch(ctx context.Context) iter.Seq2[run, error] {
	type result struct {
		run run
		err error
	}
	cursor, start, walk := f.at.Cursor, f.at.Cursor == "", f.at.Origin != OriginDelta
	if cursor != f.trod {
		f.trail, f.barren = protime.Trail{}, 0 // another took the feed further, or the checkpoint is an earlier one
	}
	if start {
		cursor = f.cfg.Source.DeltaStart(f.cfg.Collection, f.at.Filter)
	}
	return func(yield func(run, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		results := make(chan result)
		go func() {
			defer close(results)
			err := f.read(ctx, cursor, start, walk, run{trail: f.trail, small: f.careful}, func(r run, wait bool) bool {
				if !wait {
					select {
					case results <- result{run: r}:
						return true
					default:
						return false
					}
				}
				select {
				case results <- result{run: r}:
					return true
				case <-ctx.Done():
					return false
				}
			})
			if err != nil {
				results <- result{err: err} // the loop below takes it in any case
			}
		}()
		defer func() {
			cancel()
			for range results { // until the reader has ended
			}
		}()
		began := time.Now()
		for r := range results {
			f.trace.begin(ctx, began, cursorKind(f.at), f.at.Origin, len(r.run.changes), r.err)
			if !yield(r.run, r.err) || r.err != nil {
				return // with the round's error still to come
			}
			f.trace.end(f.at.Position, nil)
			began = time.Now()
		}
	}
}

// read cuts the page at cursor, and in a walk those behind it, into runs and gives each away. Where a run could grow, it
// asks without waiting, so that small pages go out at once while nobody is busy, and together otherwise.
func (f *Feed) read(ctx context.Context, cursor string, start, walk bool, r run, give func(r run, wait bool) bool) error {
	for {
		err := f.readPage(ctx, cursor, &r, give)
		if err != nil {
			// What was read is true all the same; only the cursor must not move past what was not.
			if (len(r.changes) > 0 || r.next != "") && ctx.Err() == nil {
				give(r, true)
			}
			return &cursorError{start, err}
		}
		start = false
		if r.latest || !walk {
			if !give(r, true) {
				return ctx.Err()
			}
			return nil
		}
		cursor = r.next
		if full := r.pages >= maxRunPages; give(r, full) {
			r = r.after()
		} else if full {
			return ctx.Err()
		}
	}
}

// readPage adds one page to r. When it returns nil the page was read whole and r.next is its successor.
func (f *Feed) readPage(ctx context.Context, cursor string, r *run, give func(run, bool) bool) (err error) {
	if err := f.lease.check(); err != nil {
		return err
	}
	// The way to the API may be long, and by its end another may follow the delta.
	ctx, cancel := f.lease.during(ctx)
	defer func() {
		cancel()
		if lapsed := f.lease.check(); err != nil && lapsed != nil {
			err = lapsed
		}
	}()
	page, err := f.cfg.Source.Fetch(ctx, cursor)
	if err != nil {
		return err
	}
	defer page.Close() //nolint:errcheck // nothing is written
	f.status.fetched()
	for {
		c, err := page.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		c = f.cfg.Privacy.apply(c)
		if r.full(len(c.Data)) {
			if !give(*r, true) {
				return ctx.Err()
			}
			*r = r.after()
		}
		r.changes = append(r.changes, c)
		r.bytes += len(c.Data)
	}
	r.pages++
	if link := page.DeltaLink(); link != "" {
		r.next, r.latest, r.trail = link, true, protime.Trail{}
		return nil
	}
	next := page.NextLink()
	if err := r.trail.Follow(cursor, next); err != nil {
		return err
	}
	r.next = next
	return nil
}

// maxBarren is how many pages in a row may bring nothing that this walk has not shown before. Some are normal: the API may send
// empty pages.
const maxBarren = 1000

// errBarren interrupts a listing that may have no end, so that it is followed at leisure and seen to be.
var errBarren = fmt.Errorf("%d pages in a row bring nothing new: %w", maxBarren, protime.ErrCircle)

// tread remembers how far the feed has followed the present listing, once the checkpoint says so too. The cursor has moved in any
// case: nothing is guessed about a listing that is merely long.
func (f *Feed) tread(r run, news bool) error {
	f.trail, f.trod = r.trail, f.at.Cursor
	before := f.barren
	f.barren += r.pages
	if news || r.latest {
		f.barren = 0
	}
	if f.barren/maxBarren > before/maxBarren {
		return &cursorError{err: errBarren}
	}
	return nil
}

// astray reports whether the feed follows a listing that has brought nothing for long.
func (f *Feed) astray() bool { return f.barren >= maxBarren }
