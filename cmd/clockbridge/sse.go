package main

import (
	"bytes"
	"fmt"
	"net/http"
	"sync"
	"time"
)

// Bounds of the live page.
const (
	liveEvery   = time.Second      // between two looks at the engine, while somebody watches
	liveViewers = 64               // at once; a page without a stream goes on trying
	liveWrite   = 10 * time.Second // for one event; whoever does not take it is dropped
	liveQuiet   = 15 * time.Second // after which a comment shows that the stream is there
	liveRetry   = 2 * time.Second  // after which a browser connects again
)

// live streams the parts of the status page that change, as server-sent events. The engine is asked, and never waits: one goroutine looks
// at it for all viewers, and a viewer that is slow misses what was true in between.
type live struct {
	version string
	watched watched

	mu      sync.Mutex
	parts   []livePart
	changed chan struct{} // closed when parts change
	viewers int

	quit, done chan struct{}
}

// livePart is an element of the page: its HTML and how often it has changed.
type livePart struct {
	html    []byte
	version int
}

func newLive(version string, w watched) *live {
	l := &live{
		version: version, watched: w, parts: make([]livePart, len(pageParts)),
		changed: make(chan struct{}), quit: make(chan struct{}), done: make(chan struct{}),
	}
	go l.run()
	return l
}

// stop ends every stream.
func (l *live) stop() {
	close(l.quit)
	<-l.done
}

func (l *live) run() {
	defer close(l.done)
	tick := time.NewTicker(liveEvery)
	defer tick.Stop()
	for {
		select {
		case <-l.quit:
			return
		case <-tick.C:
		}
		l.mu.Lock()
		watched := l.viewers > 0
		l.mu.Unlock()
		if watched {
			l.look()
		}
	}
}

// look renders the page anew and wakes the viewers of what has changed.
func (l *live) look() {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := newPage(l.version, l.watched.state(), time.Now(), false)
	news := false
	for i, name := range pageParts {
		var b bytes.Buffer
		render(&b, name, p)
		if part := &l.parts[i]; !bytes.Equal(part.html, b.Bytes()) {
			part.html = b.Bytes()
			part.version++
			news = true
		}
	}
	if news {
		close(l.changed)
		l.changed = make(chan struct{})
	}
}

// since returns the parts that are newer than those seen, which it brings up to date, and what is closed when there are more.
func (l *live) since(seen []int) (parts [][]byte, more <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, part := range l.parts {
		if part.version > seen[i] {
			seen[i] = part.version
			parts = append(parts, part.html)
		}
	}
	return parts, l.changed
}

// enter takes a place among the viewers, if there is one.
func (l *live) enter() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.viewers == liveViewers {
		return false
	}
	l.viewers++
	return true
}

func (l *live) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.viewers--
}

// ServeHTTP sends every part once, and then those that change, until the viewer goes or is too slow, or stop is called. A browser
// connects again by itself.
func (l *live) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !l.enter() {
		w.Header().Set("Retry-After", "30")
		plain(w, http.StatusServiceUnavailable, fmt.Sprintf("%d viewers already\n", liveViewers))
		return
	}
	defer l.leave()
	c := http.NewResponseController(w)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // of a proxy in between
	var b bytes.Buffer
	fmt.Fprintf(&b, "retry: %d\nevent: build\ndata: %s\n\n", liveRetry.Milliseconds(), pageBuild)
	l.look()
	seen := make([]int, len(pageParts))
	quiet := time.NewTimer(liveQuiet)
	defer quiet.Stop()
	for {
		parts, more := l.since(seen)
		for _, html := range parts {
			event(&b, "part", html)
		}
		if b.Len() == 0 {
			b.WriteString(": nothing new\n\n")
		}
		// The server's own deadline is for a whole answer.
		if c.SetWriteDeadline(time.Now().Add(liveWrite)) != nil {
			return
		}
		if _, err := w.Write(b.Bytes()); err != nil || c.Flush() != nil {
			return
		}
		b.Reset()
		quiet.Reset(liveQuiet)
		select {
		case <-more:
		case <-quiet.C:
		case <-r.Context().Done():
			return
		case <-l.quit:
			return
		}
	}
}

// event writes an event whose data is HTML of several lines. A carriage return would end a line as well, and let what stands behind it
// be taken for an event.
func event(b *bytes.Buffer, name string, html []byte) {
	fmt.Fprintf(b, "event: %s\n", name)
	for line := range bytes.Lines(bytes.ReplaceAll(html, []byte("\r"), []byte("&#13;"))) {
		fmt.Fprintf(b, "data: %s\n", bytes.TrimSuffix(line, []byte("\n")))
	}
	b.WriteString("\n")
}
