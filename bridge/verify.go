package bridge

import (
	"context"
	"fmt"
	"iter"
	"time"

	"github.com/nats-io/nats.go"

	"clockbridge/protime"
	"clockbridge/store"
)

// Lister is the part of the API that knows no delta; *protime.Client is one.
type Lister interface {
	// List walks a plain listing, and ends after the first error. Get asks for one record, and
	// errors.Is(err, protime.ErrNotFound) says that there is none.
	List(ctx context.Context, collection, filter string) iter.Seq2[protime.Change, error]
	Get(ctx context.Context, collection, id string) (protime.Change, error)
}

// VerifyConfig says which feed to verify.
type VerifyConfig struct {
	Tenant     string
	Collection string
	Filter     string // of a delta that would start now; "" = none
	Source     Lister
	NATS       *nats.Conn
	Privacy    *Privacy      // that of the feed
	Patience   time.Duration // for how long a difference must last to be reported; 0 = 1 min
	Dir        string        // for a temporary file of about the size of the feed's index; "" = the system's directory for such files
	Limit      int           // differences that are asked again and reported one by one; 0 = 10,000

	Each     func(Difference)     // is told each difference as soon as it is certain; nil = nobody
	Progress func(VerifyProgress) // is told now and then how far it has come; nil = nobody
}

// DefaultPatience is for how long a difference must last to be reported, DefaultVerifyLimit how many are looked at again.
const (
	DefaultPatience    = time.Minute
	DefaultVerifyLimit = 10_000
)

// VerifyProgress is how far a verification has come.
type VerifyProgress struct {
	Phase VerifyPhase
	Done  int // records
	Total int // likewise; of a listing an estimate, since the API does not tell
}

// VerifyPhase is a part of a verification.
type VerifyPhase string

// The phases of a verification, in order.
const (
	PhaseStream VerifyPhase = "reading the stream"
	PhaseList   VerifyPhase = "listing the API"
	PhaseAgain  VerifyPhase = "asking again"
)

// Kind says how stream and API differ about a record.
type Kind string

// The kinds of differences. All but KindAhead can be repaired.
const (
	KindMissing Kind = "missing" // the API has it; the stream has no message of it, or says that it was deleted
	KindStale   Kind = "stale"   // the stream has an older version, or other data than the API under the same version
	KindPhantom Kind = "phantom" // the stream has it; the API says that it is gone
	KindAhead   Kind = "ahead"   // the stream has a later version than the API, as after the vendor restored a database
)

// Kinds lists all kinds, for metrics and documentation.
var Kinds = []Kind{KindMissing, KindStale, KindPhantom, KindAhead}

// Difference is what API and stream say differently about one record. Equal ones are the same difference.
type Difference struct {
	Kind    Kind // "" = there is none
	ID      string
	Subject string
	API     string // what it has, in words
	Stream  string
}

// VerifyReport is what a verification found.
type VerifyReport struct {
	At         time.Time     `json:"at"` // when it ended
	Took       time.Duration `json:"-"`
	Records    int           `json:"records"`              // that the API listed
	Subjects   int           `json:"subjects"`             // records that the stream has a message of, deleted ones included
	Missing    int           `json:"missing"`              // these four: differences that lasted
	Stale      int           `json:"stale"`                //
	Phantom    int           `json:"phantom"`              //
	Ahead      int           `json:"ahead"`                //
	Unchecked  int           `json:"unchecked,omitempty"`  // differences beyond the limit: seen once, not asked again
	Unsettled  int           `json:"unsettled,omitempty"`  // records that were different in another way at every look
	Dropped    int           `json:"dropped,omitempty"`    // records without a message in a stream that drops old ones: nothing can be said of them
	Forgotten  int           `json:"forgotten,omitempty"`  // listed records that were erased from the stream, to forget a person, at the version that the API has
	Unreadable int           `json:"unreadable,omitempty"` // listed records that no feed can publish under a subject
	Error      string        `json:"error,omitempty"`      // why it did not come to an end; then nothing above is true
}

// Count returns how many differences of a kind there are.
func (r VerifyReport) Count(k Kind) int { return *r.count(k) }

func (r *VerifyReport) count(k Kind) *int {
	return map[Kind]*int{KindMissing: &r.Missing, KindStale: &r.Stale, KindPhantom: &r.Phantom, KindAhead: &r.Ahead}[k]
}

// Differs reports whether stream and API differ.
func (r VerifyReport) Differs() bool {
	return r.Missing+r.Stale+r.Phantom+r.Ahead+r.Unchecked > 0
}

// Verify compares what the API lists now with the last message of each record in the feed's stream. It changes
// neither and needs no running feed; if there is one it goes on meanwhile, and so does the API. So a difference counts
// only if it is found again, in all its particulars, when the patience is over: by asking the API for that one record, and the
// stream's leader for its last message.
//
// What both must agree on: which records there are inside the filter, their changeVersions, and every member of their
// data that both have. One side may have members that the other lacks: the API documents that its lists and
// its deltas differ in them. Records outside the filter's dates are not looked at.
//
// Memory does not grow with the size of the feed: what the stream says is put into a temporary file.
func Verify(ctx context.Context, cfg VerifyConfig) (VerifyReport, error) {
	v, err := newVerifier(cfg)
	if err != nil {
		return VerifyReport{}, err
	}
	began := time.Now()
	if v.index, err = store.Temporary(v.cfg.Dir); err != nil {
		return VerifyReport{}, err
	}
	defer v.index.Close() //nolint:errcheck // it is of no use any more
	for _, phase := range []func(context.Context) error{v.readStream, v.list, v.findPhantoms, v.settle} {
		if err := phase(ctx); err != nil {
			return VerifyReport{}, fmt.Errorf("verify %s: %w", v.feed, err)
		}
	}
	v.report.At, v.report.Took = time.Now().UTC(), time.Since(began)
	return v.report, nil
}

// Recheck looks at one record again, as it is at this moment: Kind is "" if stream and API agree about it now.
func Recheck(ctx context.Context, cfg VerifyConfig, was Difference) (Difference, error) {
	v, err := newVerifier(cfg)
	if err != nil {
		return Difference{}, err
	}
	if v.state, err = v.stream.look(ctx); err != nil {
		return Difference{}, err
	}
	return v.look(ctx, was.ID, was.Kind != KindPhantom)
}
