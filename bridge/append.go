package bridge

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nats.go/micro"
	"github.com/nats-io/nuid"
)

// maxRun is the largest number of messages in one append: what an atomic batch may hold.
const maxRun = 1000

// appendTimeout bounds one append from the first message to the last acknowledgement. It fits into the time that a
// graceful stop may take.
const appendTimeout = 5 * time.Second

// errRefused is returned by Append when the stream does not end where the feed believes it does.
var errRefused = errors.New("append refused: the stream does not end where this feed left it")

// A form is a way to put a positional append on the wire. All keep one contract: a message is stored at the position
// that the feed gave it and nowhere else, and an append is acknowledged only if every one of its messages was.
type form int

const (
	formBatch  form = iota // one atomic batch: all or nothing
	formChain              // pipelined single messages, each with the position it must get
	formSingle             // single messages, each sent when the one before is acknowledged
)

func (f form) String() string { return [...]string{"batch", "chain", "single"}[f] }

// appender writes a feed's stream.
//
// The form is chosen by what the server offers and by what was measured: a chain is the faster one unless the server
// syncs every write, which no client can see. So the first large appends are sent in either form and timed.
//
// The position alone does not keep a late message of an older attempt out: message 301 of a stalled connection fits
// whenever the stream happens to hold 300, in a chain soon, otherwise where the stream was lost and written anew. So each
// one also names the position of its record's message before it, which makes it fit only where it would be new and in
// order. In a chain each one is acknowledged as well, so that a refused one cannot hide behind an accepted one.
type appender struct {
	nc    *nats.Conn
	codec codec

	batches bool // the stream takes atomic batches
	limited bool // the stream drops old messages, so that a record's message before may be gone
	failed  int  // appends in a row

	inbox   string
	acks    *nats.Subscription
	attempt uint64
	pace    [2]pace // of batch and chain
}

// pace is the best time per message seen for a form.
type pace struct {
	tries int
	best  time.Duration
}

const (
	paceTries = 2   // appends to time in each form before choosing
	paceRun   = 100 // messages in an append that is worth timing
)

// reset is called with what open has found, before the first append and whenever the stream was looked at again.
func (a *appender) reset(batches, limited bool) error {
	a.batches, a.limited, a.pace = batches, limited, [2]pace{}
	if a.acks != nil && a.acks.IsValid() && a.failed == 0 {
		return nil
	}
	// Behind an append that failed, up to maxRun answers may be waiting. Those that say that nobody was there come out as errors, which
	// do not tell to which attempt they belong.
	a.close()
	a.inbox = a.nc.NewRespInbox()
	acks, err := a.nc.SubscribeSync(a.inbox + ".>")
	if err != nil {
		return fmt.Errorf("subscribe to acknowledgements: %w", err)
	}
	if err := acks.SetPendingLimits(-1, -1); err != nil { // at most maxRun are outstanding
		return fmt.Errorf("subscribe to acknowledgements: %w", err)
	}
	a.acks = acks
	return nil
}

func (a *appender) close() {
	if a.acks != nil {
		a.acks.Unsubscribe() //nolint:errcheck // the connection is going away, or the subscription already has
	}
}

// Append stores msgs behind position `at` and returns the position of the last one; their positions are at+1, at+2 and
// so on. On any error some, all or none of them may be stored, but of no record a later one without the earlier; the
// stream itself has to be asked before anything is sent again.
func (a *appender) Append(ctx context.Context, msgs []message, at uint64) (uint64, error) {
	if len(msgs) == 0 {
		return at, nil
	}
	ctx, cancel := context.WithTimeout(ctx, appendTimeout)
	defer cancel()
	form, began := a.choose(msgs, at), time.Now()
	err := a.send(ctx, form, msgs, at)
	if err != nil {
		a.failed++
		return 0, fmt.Errorf("%s of %d at %d: %w", form, len(msgs), at, err)
	}
	a.failed = 0
	if form != formSingle && len(msgs) >= paceRun {
		took := time.Since(began) / time.Duration(len(msgs))
		if p := &a.pace[form]; p.tries == 0 || took < p.best {
			p.best = took
		}
		a.pace[form].tries++
	}
	return at + uint64(len(msgs)), nil
}

func (a *appender) choose(msgs []message, at uint64) form {
	safe := formSingle
	if a.batches {
		safe = formBatch
	}
	if a.failed > 0 || !a.chainable(msgs, at) {
		return safe
	}
	if !a.batches {
		return formChain
	}
	batch, chain := a.pace[formBatch], a.pace[formChain]
	switch {
	case len(msgs) < paceRun:
		return formBatch
	case batch.tries < paceTries || chain.tries < paceTries:
		if chain.tries < batch.tries {
			return formChain
		}
		return formBatch
	case chain.best < batch.best:
		return formChain
	}
	return formBatch
}

// chainable reports whether every message can say which one of its record comes before it, as each of a chain must.
func (a *appender) chainable(msgs []message, at uint64) bool {
	for i := range msgs {
		if !a.certain(&msgs[i], at) {
			return false
		}
	}
	return true
}

// certain reports whether the position of the record's message before m is known and lies behind: one that the same append is to
// fill may hold another message of that record by the time that a late one arrives.
func (a *appender) certain(m *message, at uint64) bool {
	return m.prev != prevUnknown && m.prev <= at && (m.prev == 0 || !a.limited)
}

// maxCertain is how often in a row an append may fail until the messages name their positions alone: somebody may have removed a
// record's message before by hand.
const maxCertain = 2

func (a *appender) send(ctx context.Context, form form, msgs []message, at uint64) error {
	a.attempt++
	replies := a.inbox + "." + strconv.FormatUint(a.attempt, 10) + "."
	same := stampOf(msgs[0].Walk, time.Now())
	same.parent = traceParent(ctx)
	m := &nats.Msg{Header: make(nats.Header, 16)}
	batch := nuid.Next() // a fresh id for every attempt: a half-sent batch lingers on the server
	for i := range msgs {
		a.codec.encode(m, &msgs[i], same)
		set := func(k, v string) { m.Header[k] = []string{v} }
		if form != formBatch || i == 0 {
			set(jetstream.ExpectedLastSeqHeader, strconv.FormatUint(at+uint64(i), 10))
		}
		if form == formChain || a.failed < maxCertain && a.certain(&msgs[i], at) {
			set(jetstream.ExpectedLastSubjSeqHeader, strconv.FormatUint(msgs[i].prev, 10))
		}
		switch form {
		case formBatch:
			set("Nats-Batch-Id", batch)
			set("Nats-Batch-Sequence", strconv.Itoa(i+1))
			if i == len(msgs)-1 {
				set("Nats-Batch-Commit", "1")
				m.Reply = replies + "0"
			}
		case formChain, formSingle:
			m.Reply = replies + strconv.Itoa(i)
		}
		if err := ctx.Err(); err != nil {
			return err // after a pause of the whole process, say: by now another may be the writer
		}
		if err := a.nc.PublishMsg(m); err != nil {
			return err
		}
		if form == formSingle {
			want := at + uint64(i) + 1
			if err := a.await(ctx, replies, 1, func(int) uint64 { return want }); err != nil {
				return err
			}
		}
	}
	switch form {
	case formBatch:
		return a.await(ctx, replies, 1, func(int) uint64 { return at + uint64(len(msgs)) })
	case formChain:
		return a.await(ctx, replies, len(msgs), func(i int) uint64 { return at + uint64(i) + 1 }) //nolint:gosec // an index of msgs
	}
	return nil
}

// await takes n acknowledgements of the present attempt; each must name the position that want gives for it.
func (a *appender) await(ctx context.Context, replies string, n int, want func(i int) uint64) error {
	for n > 0 {
		reply, err := a.acks.NextMsgWithContext(ctx)
		if err != nil {
			return fmt.Errorf("wait for acknowledgement: %w", withPermission(a.nc, err))
		}
		index, ok := strings.CutPrefix(reply.Subject, replies)
		if !ok {
			continue // an answer to an earlier attempt, which was given up
		}
		i, err := strconv.Atoi(index)
		if err != nil {
			return fmt.Errorf("acknowledgement on subject %q: %w", reply.Subject, err)
		}
		if err := readAck(reply, want(i)); err != nil {
			return err
		}
		n--
	}
	return nil
}

// withPermission adds to an answer that did not come what the server said of permissions, which it says of no request. What
// it said of requests that others may send here has nothing to do with it.
func withPermission(nc *nats.Conn, err error) error {
	last := nc.LastError()
	if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(last, nats.ErrPermissionViolation) {
		return err
	}
	if text := last.Error(); strings.Contains(text, `"`+ControlService+".") || strings.Contains(text, `"`+micro.APIPrefix+".") {
		return err
	}
	return fmt.Errorf("%w: %w", err, last)
}

func readAck(reply *nats.Msg, want uint64) error {
	if reply.Header.Get("Status") == "503" {
		return fmt.Errorf("wait for acknowledgement: %w", nats.ErrNoResponders)
	}
	var ack struct {
		Seq   uint64
		Error *jetstream.APIError
	}
	var plain bool
	if ack.Seq, plain = plainAck(reply.Data); !plain {
		if err := json.Unmarshal(bytes.TrimSpace(reply.Data), &ack); err != nil {
			return fmt.Errorf("read acknowledgement: %w", err)
		}
	}
	switch {
	case ack.Error == nil && ack.Seq == want:
		return nil
	case ack.Error == nil:
		return fmt.Errorf("%w: stored at %d instead of %d", errRefused, ack.Seq, want)
	case ack.Error.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence, ack.Error.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant:
		return fmt.Errorf("%w (%s)", errRefused, ack.Error.Description)
	}
	return ack.Error
}

// plainAck reads the answer that JetStream gives for nearly every message that it stored, {"stream":"NAME","seq":7}, with a domain where
// the server has one. There is one for each message of a chain, and reading them as any JSON was a fifteenth of what a listing costs.
func plainAck(data []byte) (seq uint64, ok bool) {
	if data, ok = skipMember(data, `{"stream":"`); !ok {
		return 0, false
	}
	if rest, ok := skipMember(data, `,"domain":"`); ok {
		data = rest
	}
	data, begun := bytes.CutPrefix(data, []byte(`,"seq":`))
	data, ended := bytes.CutSuffix(data, []byte(`}`))
	if !begun || !ended || len(data) == 0 || data[0] < '1' || data[0] > '9' { // ParseUint takes a sign or zeros in front, JSON does not
		return 0, false
	}
	seq, err := strconv.ParseUint(string(data), 10, 64)
	return seq, err == nil
}

// skipMember returns what stands behind a member of an object that begins so, if its value is a string without escapes.
func skipMember(data []byte, begin string) (rest []byte, ok bool) {
	rest, ok = bytes.CutPrefix(data, []byte(begin))
	value, rest, closed := bytes.Cut(rest, []byte(`"`))
	escaped := bytes.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == '\\' })
	return rest, ok && closed && !escaped
}
