package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// streamState is what a feed must know of its stream to judge whether it is still the log that the feed wrote.
type streamState struct {
	Created    time.Time
	First      uint64
	Last       uint64
	Messages   uint64
	Limited    bool // old messages may go by age, count or size
	PerSubject bool // a message may be replaced by a later one on its subject
	DenyDelete bool // no message can be erased
	Unlike     *LimitsDifference
}

// stream reads a feed's stream. Everything here is answered by the stream's leader: a replica may be behind.
type stream struct {
	nc       *nats.Conn
	js       jetstream.JetStream
	name     string
	codec    codec
	replicas int
	limits   Limits // of a stream that is created
}

// ErrNoStream is returned by CheckStream for a stream that does not exist yet; a feed creates it.
var ErrNoStream = errors.New("stream does not exist yet")

// StreamError says why an existing stream cannot be a feed's log. The feed never changes a stream that it finds.
type StreamError struct {
	Stream   string
	Problems []string // each names the setting, what it is and what it must be
}

func (e *StreamError) Error() string {
	return fmt.Sprintf("stream %s is not fit for a feed: %s", e.Stream, strings.Join(e.Problems, "; "))
}

// CheckStream looks at the stream of a feed without creating or changing it: nil if it is fit, ErrNoStream, a
// *StreamError, or what JetStream answered. Of a fit one it says where it differs from the limits, nil if nowhere.
func CheckStream(ctx context.Context, js jetstream.JetStream, tenant, collection string, limits Limits) (*LimitsDifference, error) {
	s, err := js.Stream(ctx, StreamName(tenant, collection))
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, ErrNoStream
	}
	if err != nil {
		return nil, fmt.Errorf("look up stream: %w", err)
	}
	cfg := s.CachedInfo().Config
	if err := checkConfig(cfg, SubjectPrefix(tenant, collection)); err != nil {
		return nil, err
	}
	return limits.compare(cfg), nil
}

// open creates the stream if it is missing, checks it if it is there, and says what it holds. Whether the server
// takes batches is told by the configuration that comes back: older servers drop the wish without a word.
func (s *stream) open(ctx context.Context) (streamState, bool, error) {
	found, err := s.js.Stream(ctx, s.name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		found, err = s.js.CreateStream(ctx, s.config())
	}
	if err != nil {
		return streamState{}, false, fmt.Errorf("open stream %s: %w", s.name, withPermission(s.nc, err))
	}
	return s.state(found.CachedInfo())
}

// look says what an existing stream holds: ErrNoStream if there is none.
func (s *stream) look(ctx context.Context) (streamState, error) {
	found, err := s.js.Stream(ctx, s.name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return streamState{}, fmt.Errorf("stream %s: %w", s.name, ErrNoStream)
	}
	if err != nil {
		return streamState{}, fmt.Errorf("look up stream %s: %w", s.name, withPermission(s.nc, err))
	}
	state, _, err := s.state(found.CachedInfo())
	return state, err
}

func (s *stream) state(info *jetstream.StreamInfo) (streamState, bool, error) {
	cfg := info.Config
	if err := checkConfig(cfg, s.codec.prefix); err != nil {
		return streamState{}, false, err
	}
	return streamState{
		Created:    info.Created.UTC(),
		First:      info.State.FirstSeq,
		Last:       info.State.LastSeq,
		Messages:   info.State.Msgs,
		Limited:    cfg.MaxAge > 0 || cfg.MaxMsgs > 0 || cfg.MaxBytes > 0,
		PerSubject: cfg.MaxMsgsPerSubject > 0,
		DenyDelete: cfg.DenyDelete,
		Unlike:     s.limits.compare(cfg),
	}, cfg.AllowAtomicPublish, nil
}

// config is that of a stream that is created.
func (s *stream) config() jetstream.StreamConfig {
	cfg := streamConfig(s.name, s.codec.prefix, s.replicas)
	cfg.MaxAge = s.limits.MaxAge
	if s.limits.MaxPerSubject > 0 {
		cfg.MaxMsgsPerSubject = s.limits.MaxPerSubject
	}
	return cfg
}

func streamConfig(name, prefix string, replicas int) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:               name,
		Description:        "change log written by clockbridge, its only writer",
		Subjects:           []string{prefix + ".*"},
		Storage:            jetstream.FileStorage,
		Retention:          jetstream.LimitsPolicy,
		Replicas:           max(replicas, 1),
		AllowDirect:        true, // for subscribers; the feed itself reads from the leader
		AllowAtomicPublish: true,
	}
}

// checkConfig refuses settings under which the stream would not be a complete log with one writer.
func checkConfig(cfg jetstream.StreamConfig, prefix string) error {
	var problems []string
	must := func(ok bool, format string, args ...any) {
		if !ok {
			problems = append(problems, fmt.Sprintf(format, args...))
		}
	}
	must(slices.Equal(cfg.Subjects, []string{prefix + ".*"}), "subjects are %q, must be %q alone", cfg.Subjects, prefix+".*")
	must(cfg.Storage == jetstream.FileStorage, "storage is %s, must be file", cfg.Storage)
	must(cfg.Retention == jetstream.LimitsPolicy, "retention is %s, must be limits", cfg.Retention)
	must(!cfg.NoAck, "no_ack is on, must be off: an unacknowledged log proves nothing")
	must(!cfg.Sealed, "it is sealed, must be open")
	must(cfg.Mirror == nil && len(cfg.Sources) == 0, "it mirrors or sources another stream, must be written by the feed alone")
	must(cfg.SubjectTransform == nil, "subject_transform is set, must be absent")
	must(cfg.SubjectDeleteMarkerTTL == 0, "subject_delete_marker_ttl is set, must be absent: markers take positions")
	must(!cfg.AllowMsgSchedules, "allow_msg_schedules is on, must be off: schedules take positions")
	must(!cfg.AllowMsgCounter, "allow_msg_counter is on, must be off")
	must(cfg.PersistMode != jetstream.AsyncPersistMode, "persist_mode is async, must be default: it loses acknowledged messages")
	if len(problems) > 0 {
		return &StreamError{Stream: cfg.Name, Problems: problems}
	}
	return nil
}

// get returns the first message at or above position, or nil if there is none.
func (s *stream) get(ctx context.Context, position uint64) (*message, error) {
	m, err := s.ask(ctx, `{"seq":`+strconv.FormatUint(position, 10)+`,"next_by_subj":">"}`)
	if err != nil && !errors.Is(err, errForeign) {
		return nil, fmt.Errorf("get message %d: %w", position, err)
	}
	return m, err
}

// last returns the last message of a record, or nil if there is none.
func (s *stream) last(ctx context.Context, id string) (*message, error) {
	subject := s.codec.prefix + "." + token(id)
	m, err := s.ask(ctx, `{"last_by_subj":"`+subject+`"}`)
	if err != nil && !errors.Is(err, errForeign) {
		return nil, fmt.Errorf("get last message of %s: %w", subject, err)
	}
	return m, err
}

// ask gets the message that the request names from the stream's leader, or nil if there is none.
func (s *stream) ask(ctx context.Context, request string) (*message, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	raw, err := askLeader(ctx, s.nc, s.name, request)
	if raw == nil {
		return nil, withPermission(s.nc, err)
	}
	return s.codec.decodeRaw(raw)
}

// askLeader gets a message from the leader of a stream, or nil if there is none: a replica may be behind.
func askLeader(ctx context.Context, nc *nats.Conn, stream, request string) (*rawMessage, error) {
	reply, err := nc.RequestWithContext(ctx, "$JS.API.STREAM.MSG.GET."+stream, []byte(request))
	if err != nil {
		return nil, err
	}
	return readAnswer(reply.Data)
}

// rawMessage is a message as the leader of a stream tells it.
type rawMessage struct {
	Subject string
	Seq     uint64
	Hdrs    []byte
	Data    []byte
}

// readAnswer reads what the leader answers: nil if there is no such message.
func readAnswer(data []byte) (*rawMessage, error) {
	var answer struct {
		Error   *jetstream.APIError
		Message rawMessage
	}
	if err := json.Unmarshal(data, &answer); err != nil {
		return nil, err
	}
	switch {
	case answer.Error != nil && answer.Error.ErrorCode == jetstream.JSErrCodeMessageNotFound:
		return nil, nil
	case answer.Error != nil:
		return nil, answer.Error
	case answer.Message.Seq == 0:
		return nil, errors.New("the answer holds no message")
	}
	return &answer.Message, nil
}

// decodeRaw is decode, of a message as the leader tells it.
func (c *codec) decodeRaw(raw *rawMessage) (_ *message, err error) {
	var h nats.Header
	if len(raw.Hdrs) > 0 {
		if h, err = nats.DecodeHeadersMsg(raw.Hdrs); err != nil {
			return nil, err
		}
	}
	m, err := c.decode(raw.Subject, h, raw.Data, raw.Seq)
	return &m, err
}

// before returns the position of the last message below position, or 0. Old messages may be missing anywhere, so
// whether one lies between two positions is the only question that can be asked, and is asked by halves.
func (s *stream) before(ctx context.Context, position uint64) (uint64, error) {
	lo, hi := uint64(0), position // the answer is in [lo, hi); nothing lies in [hi, position)
	for lo+1 < hi {
		mid := lo + (hi-lo)/2
		m, err := s.get(ctx, mid)
		if err != nil {
			return 0, err
		}
		if m != nil && m.Position < position {
			lo = m.Position
		} else {
			hi = mid
		}
	}
	return lo, nil
}

// maxDeleted is how many positions without a message the server is asked to name: all of them go into one answer.
const maxDeleted = 50_000

// hole reports whether the server itself says that no message is left at the positions first to last. Of a stream with
// too many holes to name, it is believed where there are as many as that at all.
func (s *stream) hole(ctx context.Context, first, last uint64) (bool, error) {
	found, err := s.js.Stream(ctx, s.name)
	if err != nil {
		return false, fmt.Errorf("look up stream %s: %w", s.name, withPermission(s.nc, err))
	}
	state, want := found.CachedInfo().State, int(last-first+1) //nolint:gosec // positions
	if state.FirstSeq > first {
		want -= int(min(state.FirstSeq-1, last) - first + 1) //nolint:gosec // positions
	}
	if state.LastSeq < last || state.NumDeleted < want {
		return false, nil
	}
	if want == 0 || state.NumDeleted > maxDeleted {
		return true, nil
	}
	info, err := found.Info(ctx, jetstream.WithDeletedDetails(true))
	if err != nil {
		return false, fmt.Errorf("look up stream %s: %w", s.name, withPermission(s.nc, err))
	}
	for _, position := range info.State.Deleted {
		if first <= position && position <= last {
			want--
		}
	}
	return want <= 0, nil
}

// How long a read waits for an answer, and for the next message of a consumer; and after how many consumers in a row that
// show none it is given up.
const (
	readTimeout = 5 * time.Second
	readStall   = time.Second
	readStalls  = 5
)

// errStalled means that a consumer did not show the next message in time.
var errStalled = errors.New("no message came")

// read calls each with every message from position `from` to the end, in order.
func (s *stream) read(ctx context.Context, from uint64, each func(message) error) error {
	return s.readStored(ctx, from, func(m message, _ time.Time) error { return each(m) })
}

// readStored is read, and tells when each message was stored.
func (s *stream) readStored(ctx context.Context, from uint64, each func(message, time.Time) error) error {
	for stalls := 0; ; {
		// The consumer may be served by a replica that is behind, so only the leader says that nothing is left.
		next, err := s.get(ctx, from)
		if err != nil || next == nil {
			return err
		}
		last, err := s.readAvailable(ctx, next.Position, each)
		if last != 0 {
			from, stalls = last+1, 0
		}
		// One that was made where the message had not arrived yet may never show it. Another one does.
		if stalls++; err != nil && (!errors.Is(err, errStalled) || stalls == readStalls) {
			return fmt.Errorf("read stream %s from %d: %w", s.name, from, err)
		}
	}
}

func (s *stream) readAvailable(ctx context.Context, from uint64, each func(message, time.Time) error) (last uint64, err error) {
	return s.consume(ctx, jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: from}, readStall,
		func(msg jetstream.Msg, meta *jetstream.MsgMetadata) error {
			m, err := s.codec.decode(msg.Subject(), msg.Headers(), msg.Data(), meta.Sequence.Stream)
			if err != nil {
				return err
			}
			return each(m, meta.Timestamp)
		})
}

// consume calls each with the messages that cfg selects, in order, until nothing is pending, and returns the position of
// the last one that each took; errStalled if the next one does not come in time.
func (s *stream) consume(ctx context.Context, cfg jetstream.OrderedConsumerConfig, stall time.Duration, each func(jetstream.Msg, *jetstream.MsgMetadata) error) (last uint64, err error) {
	consumer, err := s.js.OrderedConsumer(ctx, s.name, cfg)
	if err != nil {
		return 0, err
	}
	// In a cluster the first request can be lost on its way to a consumer that was just created, and only its missing
	// heartbeat tells.
	msgs, err := consumer.Messages(jetstream.PullMaxMessages(1000), jetstream.PullHeartbeat(500*time.Millisecond))
	if err != nil {
		return 0, err
	}
	defer msgs.Stop()
	for {
		msg, err := next(ctx, msgs, stall)
		if err != nil {
			return last, err
		}
		meta, err := msg.Metadata()
		if err != nil {
			return last, err
		}
		if err := each(msg, meta); err != nil {
			return last, err
		}
		last = meta.Sequence.Stream
		if meta.NumPending == 0 {
			return last, nil
		}
	}
}

func next(ctx context.Context, msgs jetstream.MessagesContext, stall time.Duration) (jetstream.Msg, error) {
	waiting, cancel := context.WithTimeout(ctx, stall)
	defer cancel()
	msg, err := msgs.Next(jetstream.NextContext(waiting))
	if err != nil && errors.Is(err, waiting.Err()) && ctx.Err() == nil {
		err = fmt.Errorf("%w for %s: %w", errStalled, stall, err)
	}
	return msg, err
}
