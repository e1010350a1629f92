package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
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

	mu     sync.Mutex
	landed int
	lags   *lags
	diary  *diary
	last   map[string]sighting // of each record
}

// sighting is what the last message of a record said.
type sighting struct {
	version string
	deleted bool
}

func newShow(p *program, work *protimetest.Workload, total int) *show {
	s := &show{
		p: p, work: work, total: total, listed: make(chan struct{}), colour: p.terminal && os.Getenv("NO_COLOR") == "",
		lags: newLags(), diary: newDiary(), last: map[string]sighting{},
	}
	if total == 0 {
		close(s.listed)
	}
	return s
}

// watch subscribes to the stream as soon as it is there, unless ctx ends before. It shows what comes until following ends; then
// the channel that it returns is closed.
func (s *show) watch(ctx, following context.Context, js jetstream.JetStream, stream string) (<-chan struct{}, error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := js.Stream(ctx, stream)
		if err == nil {
			break
		}
		if !errors.Is(err, jetstream.ErrStreamNotFound) {
			return nil, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	consumer, err := js.OrderedConsumer(following, stream, jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverAllPolicy})
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
		bar, end := s.bar()
		defer end()
		for {
			msg, err := msgs.Next(jetstream.NextContext(following))
			if err != nil {
				return
			}
			s.see(msg, bar)
		}
	}()
	return done, nil
}

// bar is the progress of the first listing: a bar on a terminal, a line now and then elsewhere. end leaves it as it is.
func (s *show) bar() (at func(n int), end func()) {
	if !s.p.terminal {
		return func(n int) {
			if n%1000 == 0 || n == s.total {
				fmt.Fprintf(s.p.stdout, "first listing: %d of %d\n", n, s.total)
			}
		}, func() {}
	}
	progress := mpb.New(mpb.WithOutput(s.p.stdout), mpb.WithWidth(50))
	bar := progress.AddBar(int64(s.total),
		mpb.PrependDecorators(decor.Name("first listing  ")),
		mpb.AppendDecorators(decor.CountersNoUnit("%d of %d")))
	end = func() {
		bar.Abort(false) // nothing, once it is complete
		progress.Wait()
	}
	return func(n int) {
		bar.SetCurrent(int64(n))
		if n == s.total {
			progress.Wait()
		}
	}, end
}

func (s *show) see(msg jetstream.Msg, bar func(int)) {
	m, now := read(msg), time.Now()
	s.mu.Lock()
	s.last[m.id] = sighting{m.version, m.deleted}
	s.lags.seen(m.id, now)
	s.landed++
	landed := s.landed
	s.mu.Unlock()
	record := readClocking(m.data)
	person, kind, words := s.diary.tell(m.id, record, m.deleted)
	if landed <= s.total {
		bar(landed)
		if landed == s.total {
			close(s.listed)
		}
		return
	}
	fmt.Fprintf(s.p.stdout, "%s  %s  %-11s  %-16s  %s\n", s.dim(now.Format("15:04:05.000")), msg.Subject(), kind,
		s.work.PersonName(person), s.paint(words, record, m.deleted))
}

// step lets the company act once, and notes when, so that it is known before the message can be seen.
func (s *show) step() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.lags.made(s.work.Step().ID, now)
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

func (s *show) paint(words string, c clocking, deleted bool) string {
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

// summary reads the whole stream again and holds it against the simulator's truth. Of a first listing that was interrupted
// nothing is missing: the next start would go on.
func (s *show) summary(js jetstream.JetStream, sim *protimetest.Server, walked bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	v, err := judge(ctx, js, bridge.StreamName(demoTenant, "clockings"), sim.Truth("clockings"))
	if err != nil {
		return err
	}
	split, missing := fmt.Sprintf("%d in the first listing, %d since", s.total, v.changes-s.total), strconv.Itoa(v.missing)
	if !walked {
		split, missing, v.missing = fmt.Sprintf("interrupted in the first listing of %d", s.total), "not counted", 0
	}
	fmt.Fprintf(s.p.stdout, "\nchanges       %d (%s)\nduplicates    %d\nout of order  %d\nmissing       %s\n",
		v.changes, split, v.duplicates, v.disorder, missing)
	s.mu.Lock()
	median, worst, measured := s.lags.median()
	s.mu.Unlock()
	if measured {
		fmt.Fprintf(s.p.stdout, "lag           median %s, worst %s, with a poll every %s\n",
			median.Round(time.Millisecond), worst.Round(time.Millisecond), demoPoll)
	}
	if !v.exact() {
		return errors.New("the stream is not exact")
	}
	return nil
}
