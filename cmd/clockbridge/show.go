package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"clockbridge/bridge"
	"clockbridge/protime/protimetest"
)

// show prints what a plain subscriber sees of the demo's stream, and remembers what it takes to judge it.
type show struct {
	p      *program
	work   *protimetest.Workload
	total  int           // records of the first listing
	listed chan struct{} // closed when they have all landed
	colour bool

	mu      sync.Mutex
	landed  int
	waiting map[string]time.Time // records that were changed, by when, until a message of theirs is seen
	last    map[string]sighting  // of each record
	lags    []time.Duration
	persons map[string]int // whose a record is: a deletion does not say
}

// sighting is what the last message of a record said.
type sighting struct {
	version string
	deleted bool
}

func newShow(p *program, work *protimetest.Workload, total int) *show {
	s := &show{
		p: p, work: work, total: total, listed: make(chan struct{}), colour: p.terminal && os.Getenv("NO_COLOR") == "",
		waiting: map[string]time.Time{}, persons: map[string]int{}, last: map[string]sighting{},
	}
	if total == 0 {
		close(s.listed)
	}
	return s
}

// watch subscribes to the stream as soon as it is there. The channel that it returns is closed when it has ended.
func (s *show) watch(ctx context.Context, js jetstream.JetStream, stream string) (<-chan struct{}, error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := js.Stream(ctx, stream); err == nil {
			break
		} else if !errors.Is(err, jetstream.ErrStreamNotFound) {
			return nil, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	consumer, err := js.OrderedConsumer(ctx, stream, jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverAllPolicy})
	if err != nil {
		return nil, err
	}
	msgs, err := consumer.Messages()
	if err != nil {
		return nil, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer msgs.Stop()
		bar := s.bar()
		for {
			msg, err := msgs.Next(jetstream.NextContext(ctx))
			if err != nil {
				return
			}
			s.see(msg, bar)
		}
	}()
	return done, nil
}

// bar is the progress of the first listing: a bar on a terminal, a line now and then elsewhere.
func (s *show) bar() func(n int) {
	if !s.p.terminal {
		return func(n int) {
			if n%1000 == 0 || n == s.total {
				fmt.Fprintf(s.p.stdout, "first listing: %d of %d\n", n, s.total)
			}
		}
	}
	progress := mpb.New(mpb.WithOutput(s.p.stdout), mpb.WithWidth(50))
	bar := progress.AddBar(int64(s.total),
		mpb.PrependDecorators(decor.Name("first listing  ")),
		mpb.AppendDecorators(decor.CountersNoUnit("%d of %d")))
	return func(n int) {
		bar.SetCurrent(int64(n))
		if n == s.total {
			progress.Wait()
		}
	}
}

func (s *show) see(msg jetstream.Msg, bar func(int)) {
	h := msg.Headers()
	id := h.Get("ce-subject")
	record := readClocking(msg.Data())
	deleted := strings.HasSuffix(h.Get("ce-type"), ".deleted")
	s.mu.Lock()
	s.last[id] = sighting{h.Get("ce-changeversion"), deleted}
	person, _ := strconv.Atoi(record.Person.ID.String())
	if person == 0 {
		person = s.persons[id]
	}
	s.persons[id] = person
	now := time.Now()
	if since, ok := s.waiting[id]; ok {
		s.lags = append(s.lags, now.Sub(since))
		delete(s.waiting, id)
	}
	s.landed++
	landed := s.landed
	s.mu.Unlock()
	if landed <= s.total {
		bar(landed)
		if landed == s.total {
			close(s.listed)
		}
		return
	}
	kind := record.Kind
	if deleted {
		kind = "-"
	}
	fmt.Fprintf(s.p.stdout, "%s  %s  %-6s  %-16s  %s\n", s.dim(now.Format("15:04:05.000")), msg.Subject(), kind,
		s.work.PersonName(person), s.paint(record, deleted))
}

// made notes an action of the company, to see how long its message takes.
func (s *show) made(e protimetest.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.waiting[e.ID]; !ok {
		s.waiting[e.ID] = time.Now()
	}
}

// settle waits until the last state of every record has been seen, for a while at most. One message may stand for several
// changes, and a record may change again before the message of the change before is seen, so only versions tell.
func (s *show) settle(limit time.Duration, sim *protimetest.Server) {
	truth := sim.Truth("clockings")
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(limit)
	for !s.settled(truth) {
		select {
		case <-tick.C:
		case <-deadline:
			return
		}
	}
}

// settled drops from truth what has been seen, and reports whether nothing is left.
func (s *show) settled(truth map[string]protimetest.Record) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, r := range truth {
		last, known := s.last[id]
		if r.Removed && (!known || last.deleted) || !r.Removed && known && !last.deleted && last.version >= r.Version {
			delete(truth, id)
		}
	}
	return len(truth) == 0
}

// happened says in words what a message is about.
func happened(c clocking, deleted bool) string {
	switch {
	case deleted:
		return "removed by recalculation"
	case c.Status == "Deleted":
		return "deleted by hand"
	case c.Original != nil && c.Minutes != nil:
		return fmt.Sprintf("corrected from %s to %s", timeOfDay(c.Original), timeOfDay(c.Minutes))
	case c.Kind == "Reason":
		return "clocked a break at " + timeOfDay(c.Minutes)
	}
	return "clocked at " + timeOfDay(c.Minutes)
}

func (s *show) paint(c clocking, deleted bool) string {
	words := happened(c, deleted)
	switch {
	case !s.colour:
		return words
	case deleted || c.Status == "Deleted":
		return "\x1b[31m" + words + "\x1b[0m"
	case c.Original != nil:
		return "\x1b[33m" + words + "\x1b[0m"
	}
	return "\x1b[32m" + words + "\x1b[0m"
}

func (s *show) dim(text string) string {
	if !s.colour {
		return text
	}
	return "\x1b[2m" + text + "\x1b[0m"
}

func (s *show) subscribeHint(url string) {
	subjects := bridge.SubjectPrefix(demoTenant, "clockings") + ".*"
	fmt.Fprintf(s.p.stdout, `
In another terminal:

  # what happens from now on
  nats --server %[1]s sub '%[2]s'
  # the present state of every clocking
  nats --server %[1]s sub '%[2]s' --stream %[3]s --last-per-subject
  # the whole log
  nats --server %[1]s stream view %[3]s

`, url, subjects, bridge.StreamName(demoTenant, "clockings"))
}

// summary reads the whole stream again and holds it against the simulator's truth. A listing that was not walked to its end
// is no reason to miss what it would have brought.
func (s *show) summary(js jetstream.JetStream, sim *protimetest.Server, walked bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	v, err := judge(ctx, js, bridge.StreamName(demoTenant, "clockings"), sim.Truth("clockings"))
	if err != nil {
		return err
	}
	s.mu.Lock()
	lags := slices.Sorted(slices.Values(s.lags))
	s.mu.Unlock()
	listing, missing := fmt.Sprintf("%d in the first listing, %d since", s.total, v.changes-s.total), fmt.Sprint(v.missing)
	if !walked {
		listing, missing, v.missing = fmt.Sprintf("of %d: interrupted in the first listing", s.total), "not counted", 0
	}
	fmt.Fprintf(s.p.stdout, "\nchanges       %d (%s)\nduplicates    %d\nout of order  %d\nmissing       %s\n",
		v.changes, listing, v.duplicates, v.disorder, missing)
	if len(lags) > 0 {
		fmt.Fprintf(s.p.stdout, "lag           median %s, worst %s, with a poll every 250ms\n",
			lags[len(lags)/2].Round(time.Millisecond), lags[len(lags)-1].Round(time.Millisecond))
	}
	if v.duplicates+v.disorder+v.missing > 0 {
		return errors.New("the stream is not exact")
	}
	return nil
}
