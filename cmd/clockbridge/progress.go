package main

import (
	"fmt"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"clockbridge/bridge"
)

// progress shows on stderr how far a verification has come: a bar on a terminal, a line now and then elsewhere.
type progress struct {
	p    *program
	feed string
	now  bridge.VerifyProgress
	said time.Time // when the last line was printed
	bars *mpb.Progress
	bar  *mpb.Bar
}

// progressLine is the pause between two lines of one phase.
const progressLine = 10 * time.Second

func newProgress(p *program, feed string) *progress {
	g := &progress{p: p, feed: feed}
	if p.errTerminal {
		g.bars = mpb.New(mpb.WithOutput(p.stderr), mpb.WithWidth(50))
	}
	return g
}

// at is told how far it is.
func (g *progress) at(now bridge.VerifyProgress) {
	if now.Phase != g.now.Phase {
		g.close()
		g.said = time.Now()
		if g.bars != nil {
			g.bar = g.bars.AddBar(int64(now.Total),
				mpb.PrependDecorators(decor.Name(fmt.Sprintf("%s, %-18s ", g.feed, now.Phase))),
				mpb.AppendDecorators(decor.CountersNoUnit("%d of %d")))
		}
	}
	g.now = now
	switch {
	case g.bar != nil:
		g.bar.SetTotal(int64(now.Total), false)
		g.bar.SetCurrent(int64(now.Done))
	case time.Since(g.said) >= progressLine:
		g.line(fmt.Sprintf("%d of %d", now.Done, now.Total))
	}
}

// close ends a phase.
func (g *progress) close() {
	switch {
	case g.now.Phase == "":
	case g.bar != nil:
		g.bar.SetTotal(int64(g.now.Done), true)
		g.bar = nil
	default:
		g.line(fmt.Sprint(g.now.Done))
	}
}

func (g *progress) line(how string) {
	g.said = time.Now()
	fmt.Fprintf(g.p.stderr, "%s: %s: %s\n", g.feed, g.now.Phase, how)
}

// end leaves what was shown as it is.
func (g *progress) end() {
	g.close()
	if g.bars != nil {
		g.bars.Wait()
	}
}
