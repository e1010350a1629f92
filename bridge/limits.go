package bridge

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Limits bound what a stream keeps of the past. The zero value keeps everything.
type Limits struct {
	MaxAge        time.Duration // of a message; 0 = for ever, otherwise at least MinAge
	MaxPerSubject int64         // messages of a record; 0 = all of them
}

// MinAge is the shortest MaxAge. A page whose messages were stored may be asked for again as long as its cursor lives, 72 hours
// from the request that came before them, and whoever does so with an empty index knows from the stream alone that it has them. The
// hour beyond is for clocks that differ. (TestRetention_cursorOutlivesTheMessages)
const MinAge = 73 * time.Hour

// Check says why no stream may have these limits.
func (l Limits) Check() error {
	switch {
	case l.MaxAge != 0 && l.MaxAge < MinAge:
		return fmt.Errorf("max age %s: must be at least %s: a delta can be asked again for 72 h, and without the messages of before its changes would be stored twice", l.MaxAge, inHours(MinAge))
	case l.MaxPerSubject < 0:
		return errors.New("max messages per subject: must not be negative")
	}
	return nil
}

// LimitsDifference says that an existing stream keeps more or less than it should. The feed works all the same, so it is reported,
// and the stream is left as it is: it may be somebody else's to change.
type LimitsDifference struct {
	Problems []string // each names the setting, what it is and what it should be
	Command  string   // of the nats CLI, which changes them
}

func (d *LimitsDifference) String() string { return strings.Join(d.Problems, "; ") }

// compare says where a stream differs from limits that somebody has asked for, nil if nowhere. What nobody has asked for may be as it
// is, but for an age at which the feed may store changes twice.
func (l Limits) compare(cfg jetstream.StreamConfig) *LimitsDifference {
	d := &LimitsDifference{Command: "nats stream edit " + cfg.Name}
	differs := func(flag, value, format string, args ...any) {
		d.Problems = append(d.Problems, fmt.Sprintf(format, args...))
		d.Command += " --" + flag + "=" + value
	}
	switch {
	case l.MaxAge != 0 && cfg.MaxAge != l.MaxAge:
		differs("max-age", inHours(l.MaxAge), "max_age is %s, should be %s", inHours(cfg.MaxAge), inHours(l.MaxAge))
	case cfg.MaxAge != 0 && cfg.MaxAge < MinAge:
		differs("max-age", inHours(MinAge), "max_age is %s, should be at least %s", inHours(cfg.MaxAge), inHours(MinAge))
	}
	if has := max(cfg.MaxMsgsPerSubject, 0); l.MaxPerSubject != 0 && has != l.MaxPerSubject {
		differs("max-msgs-per-subject", fmt.Sprint(l.MaxPerSubject), "max_messages_per_subject is %s, should be %d", count(has), l.MaxPerSubject)
	}
	if len(d.Problems) == 0 {
		return nil
	}
	return d
}

// inHours writes an age as people set it, such as 2160h.
func inHours(d time.Duration) string {
	switch {
	case d == 0:
		return "unlimited"
	case d%time.Hour == 0:
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return d.String()
}

func count(n int64) string {
	if n == 0 {
		return "unlimited"
	}
	return fmt.Sprint(n)
}

// limits reports, once, that the stream keeps more or less than it should.
func (f *Feed) limits(d *LimitsDifference) {
	said := ""
	if d != nil {
		said = d.String()
	}
	if said != "" && said != f.unlike {
		f.log.Warn("stream has other limits than configured", "stream", f.stream.name, "difference", said, "do", d.Command)
	}
	f.unlike = said
}
