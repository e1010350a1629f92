package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"clockbridge/bridge/subscribe"
)

type tailCmd struct {
	subscriber
	selection
	form
	From string `default:"now" placeholder:"POINT" help:"Begin here: now, a position, a time such as 2026-01-31 or 2026-01-31T08:00:00Z, or how long ago, such as 90m or 7d."`
}

// Run shows changes as they land, until it is interrupted.
func (c *tailCmd) Run(ctx context.Context, p *program) error {
	if err := c.check(); err != nil {
		return err
	}
	var from point
	var err error
	if c.From != "now" {
		if from, err = parsePoint(c.From, time.Now()); err != nil {
			return err
		}
	}
	s, err := c.open(ctx, p)
	if err != nil {
		return err
	}
	defer s.close()
	first := s.state.Last + 1
	if c.From != "now" {
		if first, err = from.first(ctx, s); err != nil {
			return ended(ctx, err)
		}
		begins(p, s, first)
	}
	out := c.lines(p)
	if !out.ndjson {
		fmt.Fprint(out.w, tableHead)
	}
	if err := out.w.Flush(); err != nil {
		return ended(ctx, err)
	}
	err = s.Read(ctx, subscribe.Range{From: first, Record: c.ID}, func(m subscribe.Message) error {
		if !c.match(&m) {
			return nil
		}
		return errors.Join(out.write(&m), out.w.Flush())
	})
	if ctx.Err() != nil {
		return nil // that is how it ends
	}
	return ended(ctx, err)
}

// begins says that a stream does not reach back to where somebody wants to begin.
func begins(p *program, s *reading, first uint64) {
	if max(first, 1) < s.state.First {
		fmt.Fprintf(p.stderr, "clockbridge: %s begins at position %d: what was before has been dropped\n", s.Name, s.state.First)
	}
}
