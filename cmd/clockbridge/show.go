package main

import (
	"context"
	"errors"
	"fmt"
	"os"
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

// show prints what a plain subscriber sees of the demo's streams, and remembers what it takes to judge it.
type show struct {
	p      *program
	work   *protimetest.Workload
	sim    *protimetest.Server
	totals map[string]int // records of the first listing, by collection
	total  int            // of all of them
	listed chan struct{}  // closed when they have all landed
	colour bool

	mu     sync.Mutex
	landed int
	lags   *lags
	diary  *diary
	office *office
	last   map[recordKey]sighting
}

// recordKey names a record of any collection.
type recordKey struct{ collection, id string }

// sighting is what the last message of a record said.
type sighting struct {
	version string
	deleted bool
}

func newShow(p *program, work *protimetest.Workload, sim *protimetest.Server) *show {
	s := &show{
		p: p, work: work, sim: sim, totals: map[string]int{}, listed: make(chan struct{}), colour: p.terminal && os.Getenv("NO_COLOR") == "",
		lags: newLags(), diary: newDiary(), office: newOffice(), last: map[recordKey]sighting{},
	}
	for _, collection := range demoCollections {
		for _, r := range sim.Truth(collection) {
			if !r.Removed {
				s.totals[collection]++
				s.total++
			}
		}
	}
	if s.total == 0 {
		close(s.listed)
	}
	return s
}

// watch subscribes to the streams as soon as they are there, unless ctx ends before. It shows what comes until following ends;
// then the channel that it returns is closed.
func (s *show) watch(ctx, following context.Context, js jetstream.JetStream) (<-chan struct{}, error) {
	var all []jetstream.MessagesContext
	for _, collection := range demoCollections {
		msgs, err := s.subscribe(ctx, following, js, bridge.StreamName(demoTenant, collection))
		if err != nil {
			for _, msgs := range all {
				msgs.Stop()
			}
			return nil, err
		}
		all = append(all, msgs)
	}
	bar, end := s.bar()
	var reading sync.WaitGroup
	for i, collection := range demoCollections {
		reading.Go(func() {
			defer all[i].Stop()
			for {
				msg, err := all[i].Next(jetstream.NextContext(following))
				if err != nil {
					return
				}
				s.see(collection, msg, bar)
			}
		})
	}
	done := make(chan struct{})
	go func() {
		reading.Wait()
		end()
		close(done)
	}()
	return done, nil
}

func (s *show) subscribe(ctx, following context.Context, js jetstream.JetStream, stream string) (jetstream.MessagesContext, error) {
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
	return consumer.Messages()
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

// see takes one message at a time, whichever stream it comes from: a line says what its reader knows until then.
func (s *show) see(collection string, msg jetstream.Msg, bar func(int)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, now := read(msg), time.Now()
	s.last[recordKey{collection, m.id}] = sighting{m.version, m.deleted}
	s.lags.seen(collection+"/"+m.id, now)
	s.landed++
	line := s.tell(collection, m)
	if s.landed <= s.total {
		bar(s.landed)
		if s.landed == s.total {
			close(s.listed)
		}
		return
	}
	fmt.Fprintf(s.p.stdout, "%s  %-28s  %-11s  %-16s  %s\n", s.dim(now.Format("15:04:05.000")), msg.Subject(), line.kind, line.person, s.paint(line))
}

// line is what is shown of a message.
type line struct {
	kind, person, words string
	gone, changed       bool
}

func (s *show) tell(collection string, m published) line {
	if collection != "clockings" {
		return s.office.tell(collection, m)
	}
	record := readClocking(m.data)
	person, kind, words := s.diary.tell(m.id, record, m.deleted)
	return line{kind, s.work.PersonName(person), words, m.deleted || record.Status == "Deleted", record.Original != nil}
}

// step lets the company act once, and notes when, so that it is known before the message can be seen.
func (s *show) step() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	e := s.work.Step()
	s.lags.made(e.Collection+"/"+e.ID, now)
}

// settle waits until the last state of every record has been seen, for a while at most. One message may stand for several
// changes, and a record may change again before the message of the change before is seen, so only versions tell.
func (s *show) settle(limit time.Duration) {
	truth := map[recordKey]protimetest.Record{}
	for _, collection := range demoCollections {
		for id, r := range s.sim.Truth(collection) {
			truth[recordKey{collection, id}] = r
		}
	}
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
func (s *show) settled(truth map[recordKey]protimetest.Record) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, r := range truth {
		last, known := s.last[key]
		if r.Removed && (!known || last.deleted) || !r.Removed && known && !last.deleted && last.version >= r.Version {
			delete(truth, key)
		}
	}
	return len(truth) == 0
}

func (s *show) paint(l line) string {
	switch {
	case !s.colour:
		return l.words
	case l.gone:
		return "\x1b[31m" + l.words + "\x1b[0m"
	case l.changed:
		return "\x1b[33m" + l.words + "\x1b[0m"
	}
	return "\x1b[32m" + l.words + "\x1b[0m"
}

func (s *show) dim(text string) string {
	if !s.colour {
		return text
	}
	return "\x1b[2m" + text + "\x1b[0m"
}

func (s *show) subscribeHint(url string) {
	fmt.Fprintf(s.p.stdout, `
In another terminal:

  # what happens from now on
  nats --server %[1]s sub 'protime.%[2]s.>'
  # the present state of every clocking
  nats --server %[1]s sub '%[3]s.*' --stream %[4]s --last-per-subject
  # the whole log of the people
  nats --server %[1]s stream view %[5]s

`, url, demoTenant, bridge.SubjectPrefix(demoTenant, "clockings"), bridge.StreamName(demoTenant, "clockings"), bridge.StreamName(demoTenant, "people"))
}

// summary reads the whole streams again and holds them against the simulator's truth. Of a first listing that was interrupted
// nothing is missing: the next start would go on.
func (s *show) summary(js jetstream.JetStream, walked bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var v verdict
	var each []string
	for _, collection := range demoCollections {
		one, err := judge(ctx, js, bridge.StreamName(demoTenant, collection), s.sim.Truth(collection))
		if err != nil {
			return err
		}
		v = v.with(one)
		each = append(each, fmt.Sprintf("%s %d", collection, one.changes))
	}
	split, missing := fmt.Sprintf("%d in the first listing, %d since", s.total, v.changes-s.total), strconv.Itoa(v.missing)
	if !walked {
		split, missing, v.missing = fmt.Sprintf("interrupted in the first listing of %d", s.total), "not counted", 0
	}
	fmt.Fprintf(s.p.stdout, "\nchanges       %d (%s)\nof            %s\nduplicates    %d\nout of order  %d\nmissing       %s\n",
		v.changes, split, strings.Join(each, ", "), v.duplicates, v.disorder, missing)
	s.mu.Lock()
	median, worst, measured := s.lags.median()
	s.mu.Unlock()
	if measured {
		fmt.Fprintf(s.p.stdout, "lag           median %s, worst %s, with a poll every %s\n",
			median.Round(time.Millisecond), worst.Round(time.Millisecond), demoPoll)
	}
	if !v.exact() {
		return errors.New("the streams are not exact")
	}
	return nil
}
