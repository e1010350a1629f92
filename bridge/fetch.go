package bridge

import (
	"context"
	"errors"
	"io"
	"iter"

	"clockbridge/protime"
)

// run is a piece of what a cursor brings, small enough for one append.
type run struct {
	changes []protime.Change
	bytes   int
	next    string // cursor behind the last page that was read whole; "" = none since the run before
	walked  bool   // next is a deltaLink: what follows it is asked for only when it is committed
}

// maxRunBytes bounds the data of one run, but for a single change that is larger.
const maxRunBytes = 4 << 20

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

// fetch reads from the checkpoint's cursor to the next deltaLink. While one run is worked on, the next is read: ahead
// of the checkpoint, which is allowed for the nextLinks of a walk; a deltaLink ends the sequence.
func (f *Feed) fetch(ctx context.Context) iter.Seq2[run, error] {
	type result struct {
		run run
		err error
	}
	cursor, start := f.at.Cursor, f.at.Cursor == ""
	if start {
		cursor = f.cfg.Source.DeltaStart(f.cfg.Collection, f.at.Filter)
	}
	return func(yield func(run, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		results := make(chan result)
		go func() {
			defer close(results)
			err := f.read(ctx, cursor, func(r run, wait bool) bool {
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
				results <- result{err: &cursorError{start, err}} // the loop below takes it in any case
			}
		}()
		defer func() {
			cancel()
			for range results { // until the reader has ended
			}
		}()
		for r := range results {
			if !yield(r.run, r.err) || r.err != nil {
				return
			}
		}
	}
}

// read cuts the pages from cursor to the next deltaLink into runs and gives each away. Where a run could grow, it asks
// without waiting, so that small pages go out at once while nobody is busy, and together otherwise.
func (f *Feed) read(ctx context.Context, cursor string, give func(r run, wait bool) bool) error {
	var r run
	for {
		err := f.readPage(ctx, cursor, &r, give)
		if err != nil {
			// What was read is true all the same; only the cursor must not move past what was not.
			if len(r.changes) > 0 && ctx.Err() == nil {
				give(r, true)
			}
			return err
		}
		if r.walked {
			if !give(r, true) {
				return ctx.Err()
			}
			return nil
		}
		cursor = r.next
		if give(r, false) {
			r = run{}
		}
	}
}

// readPage adds one page to r. When it returns nil the page was read whole and r.next is its successor.
func (f *Feed) readPage(ctx context.Context, cursor string, r *run, give func(run, bool) bool) error {
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
		if len(r.changes) == maxRun || len(r.changes) > 0 && r.bytes+len(c.Data) > maxRunBytes {
			if !give(*r, true) {
				return ctx.Err()
			}
			*r = run{}
		}
		r.changes = append(r.changes, c)
		r.bytes += len(c.Data)
	}
	if link := page.DeltaLink(); link != "" {
		r.next, r.walked = link, true
	} else {
		r.next = page.NextLink()
	}
	return nil
}
