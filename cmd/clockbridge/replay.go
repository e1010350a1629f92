package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"clockbridge/bridge"
	"clockbridge/bridge/subscribe"
)

type replayCmd struct {
	subscriber
	selection
	form
	From      string `placeholder:"POINT" help:"Begin here: a position, a time such as 2026-01-31 or 2026-01-31T08:00:00Z, or how long ago, such as 90m or 7d. Default: the first message."`
	To        string `placeholder:"POINT" help:"End here, a position included, a time not. Default: the last message that there is at the start."`
	Speed     string `default:"max" placeholder:"10x" help:"max, or how many times faster than it happened, by the time at which each change was read: 1x is as it was."`
	ToSubject string `placeholder:"SUBJECT" help:"Publish there instead of printing. A last token * stands for the record's. Each message has the header clockbridge-replay: <stream>/<position>, and those of the original."`
	Resume    string `placeholder:"FILE" help:"With --to-subject: keep in this file how far it is, and go on from there when it is started again."`
}

// pace holds a replay back to the speed at which it is wanted.
type pace struct {
	speed float64 // 0 = as fast as it goes
	began time.Time
	first time.Time // time of the first message
}

var speedRE = regexp.MustCompile(`^[0-9]{1,6}(\.[0-9]{1,3})?x?$`)

func parseSpeed(s string) (float64, error) {
	if s == "max" {
		return 0, nil
	}
	speed, err := strconv.ParseFloat(strings.TrimSuffix(s, "x"), 64)
	if err != nil || !speedRE.MatchString(s) || speed == 0 {
		return 0, usagef("speed: %q: must be max, or a number such as 10x or 0.5x", s)
	}
	return speed, nil
}

// due returns how long it is until a message that was read at t. One that was read before the one before it, by another instance's
// clock say, is due at once.
func (a *pace) due(t, now time.Time) time.Duration {
	if a.speed == 0 || t.IsZero() {
		return 0
	}
	if a.first.IsZero() {
		a.began, a.first = now, t
	}
	return time.Duration(float64(t.Sub(a.first))/a.speed) - now.Sub(a.began)
}

// target is where a replay goes.
type target interface {
	write(m *subscribe.Message) error
	flush() error         // hands over what write has kept back
	idle(at uint64) error // nothing was chosen up to a position
}

// Run reads a part of the stream again.
func (c *replayCmd) Run(ctx context.Context, p *program) error {
	speed, err := parseSpeed(c.Speed)
	if err == nil {
		err = c.check()
	}
	var from, to point
	now := time.Now()
	if err == nil && c.From != "" {
		from, err = parsePoint(c.From, now)
	}
	if err == nil && c.To != "" {
		to, err = parsePoint(c.To, now)
	}
	switch {
	case err != nil:
		return err
	case c.To != "" && to.time.IsZero() && to.position == 0:
		return usagef("to: positions begin at 1")
	case c.Resume != "" && c.ToSubject == "":
		return usagef("resume: needs --to-subject")
	case c.Format != "" && c.ToSubject != "":
		return usagef("format: nothing is printed with --to-subject")
	}
	s, err := c.open(ctx, p)
	if err != nil {
		return err
	}
	defer s.close()
	r := subscribe.Range{To: s.state.Last, Record: c.ID}
	if r.From, err = from.first(ctx, s); err != nil {
		return ended(ctx, err)
	}
	if c.To != "" {
		last, err := to.last(ctx, s)
		if err != nil {
			return ended(ctx, err)
		}
		r.To = min(r.To, last)
	}
	var out target
	if c.ToSubject == "" {
		out = &printed{lines: c.lines(p)}
	} else {
		pub, err := newPublisher(ctx, s, c)
		if err != nil {
			return err
		}
		if pub.resumed > 0 {
			fmt.Fprintf(p.stderr, "clockbridge: going on behind position %d\n", pub.resumed)
			r.From = max(r.From, pub.resumed+1)
		}
		out = pub
	}
	if c.From != "" {
		begins(p, s, r.From)
	}
	count := 0
	if r.From <= r.To && r.To > 0 {
		bar := newReplayBar(p, s, max(r.From, s.state.First), r.To, c.ToSubject == "")
		count, err = c.replay(ctx, s, r, &pace{speed: speed}, out, bar)
		bar.end()
	}
	if err != nil {
		return ended(ctx, err)
	}
	fmt.Fprintf(p.stderr, "clockbridge: %d messages replayed\n", count)
	return nil
}

// replay hands what is chosen of a range to out, and returns how much that was.
func (c *replayCmd) replay(ctx context.Context, s *reading, r subscribe.Range, pace *pace, out target, bar *replayBar) (count int, err error) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	err = s.Read(ctx, r, func(m subscribe.Message) error {
		if m.Position%256 == 0 {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			bar.at(m.Position)
		}
		if !c.match(&m) {
			return out.idle(m.Position)
		}
		if wait := pace.due(parseTimeIf(pace.speed > 0, &m), time.Now()); wait > 0 {
			if err := out.flush(); err != nil {
				return err
			}
			bar.at(m.Position)
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		count++
		return out.write(&m)
	})
	if err == nil {
		err = out.idle(r.To)
	}
	bar.at(r.To)
	return count, errors.Join(err, out.flush())
}

func parseTimeIf(wanted bool, m *subscribe.Message) time.Time {
	if !wanted {
		return time.Time{}
	}
	return parseTime(m)
}

// printed is the terminal, or a pipe.
type printed struct {
	*lines
	headed bool
}

func (o *printed) write(m *subscribe.Message) error {
	if !o.headed && !o.ndjson {
		fmt.Fprint(o.w, tableHead)
	}
	o.headed = true
	return o.lines.write(m)
}

func (o *printed) flush() error      { return o.w.Flush() }
func (o *printed) idle(uint64) error { return nil }

// replayBar shows how far a replay is, on stderr, unless that is where messages are shown too.
type replayBar struct {
	progress *progress
	first    uint64
	total    int
	shown    time.Time
}

func newReplayBar(p *program, s *reading, first, last uint64, prints bool) *replayBar {
	b := &replayBar{first: first, total: int(last - first + 1)} //nolint:gosec // positions
	if !prints || !p.terminal && p.errTerminal {
		b.progress = newProgress(p, s.Tenant+"/"+s.Collection)
		b.at(first)
	}
	return b
}

// barPause is how often a bar is drawn at most.
const barPause = 100 * time.Millisecond

func (b *replayBar) at(position uint64) {
	if b.progress == nil {
		return
	}
	now := time.Now()
	done := min(int(position+1-b.first), b.total) //nolint:gosec // positions
	if done == b.total || now.Sub(b.shown) >= barPause {
		b.shown = now
		b.progress.at(bridge.VerifyProgress{Phase: "replaying", Done: done, Total: b.total})
	}
}

func (b *replayBar) end() {
	if b.progress != nil {
		b.progress.end()
	}
}
