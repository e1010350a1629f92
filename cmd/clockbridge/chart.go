package main

import (
	"fmt"
	"time"

	"clockbridge/bridge"
)

// chart is the changes of each minute of the last hour, as bars and in words.
type chart struct {
	Empty         bool
	Words         string // the same for whoever does not see it
	Width, Height int
	Bars          []bar
	Most          int // in one minute
}

type bar struct{ X, Y, Width, Height int }

// Measures of a chart, in its own units.
const (
	chartHeight = 48
	barWidth    = 4
	barStep     = 5 // from one bar to the next
)

// newChart draws counts, one for each minute up to now.
func newChart(counts [bridge.RecentMinutes]int, now time.Time) chart {
	c := chart{Width: len(counts) * barStep, Height: chartHeight}
	total, busiest := 0, 0
	for i, n := range counts {
		total += n
		if n > counts[busiest] {
			busiest = i
		}
	}
	c.Most = counts[busiest]
	if total == 0 {
		c.Empty, c.Words = true, "This instance has stored no change in the last hour."
		return c
	}
	for i, n := range counts {
		if n > 0 {
			height := max(n*chartHeight/c.Most, 2) // one that can be seen
			c.Bars = append(c.Bars, bar{i * barStep, chartHeight - height, barWidth, height})
		}
	}
	c.Words = fmt.Sprintf("Changes a minute in the last hour: %s in all, at most %s a minute, at %s UTC; %s in the last minute that is over.",
		number(total), number(c.Most), now.UTC().Add(time.Duration(busiest-len(counts)+1)*time.Minute).Format("15:04"), number(counts[len(counts)-2]))
	return c
}
