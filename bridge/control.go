package bridge

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
	"github.com/nats-io/nuid"
)

// ControlService is the name of the NATS service by which a feed takes requests from outside while it is followed; tools such as
// `nats micro list` show it, one instance for each feed. Its version is that of the requests.
const (
	ControlService = "clockbridge"
	controlVersion = "1.0.0"
)

// ControlSubject is where a feed takes requests of one verb. It lies outside the subjects of every stream that a feed
// writes: a request inside would be stored, and answered by the stream.
func ControlSubject(tenant, collection, verb string) string {
	return ControlService + "." + tenant + "." + collection + "." + verb
}

var (
	// ErrNobody is returned by requests to a feed that no running instance follows.
	ErrNobody = errors.New("no running instance of clockbridge follows this feed")
	// ErrNotPermitted is returned by requests that NATS does not let this user send.
	ErrNotPermitted = errors.New("this NATS user may not ask clockbridge: use the operator's")
)

// Verbs of requests.
const (
	verbForget = "forget"
	verbPause  = "pause"
	verbRepair = "repair"
	verbResume = "resume"
	verbResync = "resync"
	verbStatus = "status"
	verbSync   = "sync-now"
	verbVerify = "verify"
)

type repairRequest struct {
	IDs []string `json:"ids"`
}

type resyncRequest struct {
	TrustAPI bool `json:"trustApi"`
}

type repairReply struct {
	Queued int `json:"queued"` // how many records will be looked at
}

type resumeReply struct {
	Resumed bool `json:"resumed"` // false = it was not paused
}

type pauseReply struct {
	Until time.Time `json:"until,omitzero"` // resumed before, the feed goes on with the same delta; zero = it has none
}

func readRequest[T any](data []byte) (r T, err error) {
	if err := json.Unmarshal(data, &r); err != nil {
		return r, fmt.Errorf("read request: %w", err)
	}
	return r, nil
}

// verbs are the requests that a feed takes while it is followed under l: each reads its JSON and returns what becomes JSON.
func (f *Feed) verbs(l *lease) map[string]func(request []byte) (any, error) {
	awake := func() error {
		if !l.paused().IsZero() {
			return errPaused
		}
		return nil
	}
	return map[string]func([]byte) (any, error){
		verbPause: func([]byte) (any, error) {
			if err := l.pause(time.Now().UTC()); err != nil {
				return nil, err
			}
			f.Sync()
			return pauseReply{f.expires(l)}, nil
		},
		verbResume: func([]byte) (any, error) {
			since := l.paused()
			if err := l.pause(time.Time{}); err != nil {
				return nil, err
			}
			f.Sync()
			return resumeReply{!since.IsZero()}, nil
		},
		verbForget: func(data []byte) (any, error) {
			r, err := readRequest[ForgetRequest](data)
			if err != nil {
				return nil, err
			}
			if err := awake(); err != nil {
				f.forgetting.drop() // it is not to come as a surprise when the feed is resumed
				return nil, err
			}
			return f.Forget(r)
		},
		verbVerify: func([]byte) (any, error) { return struct{}{}, f.askToVerify() },
		verbRepair: func(data []byte) (any, error) {
			r, err := readRequest[repairRequest](data)
			if err != nil {
				return nil, err
			}
			if err := awake(); err != nil {
				return nil, err
			}
			return repairReply{len(r.IDs)}, f.Repair(r.IDs)
		},
		verbResync: func(data []byte) (any, error) {
			r, err := readRequest[resyncRequest](data)
			if err != nil {
				return nil, err
			}
			if err := awake(); err != nil {
				return nil, err
			}
			f.Resync(r.TrustAPI)
			return struct{}{}, nil
		},
		verbSync: func([]byte) (any, error) {
			if err := awake(); err != nil {
				return nil, err
			}
			f.Sync()
			return struct{}{}, nil
		},
		verbStatus: func([]byte) (any, error) { return f.Status(), nil },
	}
}

// serve takes requests until stop is called. A feed that cannot be reached by them does its work all the same.
func (f *Feed) serve() (stop func()) {
	service, err := micro.AddService(f.cfg.NATS, micro.Config{
		Name: ControlService, Version: controlVersion, Description: "follows " + f.name + " into " + f.stream.name,
		Metadata: map[string]string{"tenant": f.cfg.Tenant, "collection": f.cfg.Collection},
	})
	verbs := f.verbs(f.lease)
	for _, verb := range slices.Sorted(maps.Keys(verbs)) {
		if err != nil {
			break
		}
		// There is one holder, so nobody needs to share requests. In a group, half of them would go to a subscription that was ended
		// while the connection was lost: nats.go makes it again with all the others, and forgets it afterwards.
		err = service.AddEndpoint(verb, f.handler(verb, verbs[verb]), micro.WithEndpointQueueGroupDisabled(),
			micro.WithEndpointSubject(ControlSubject(f.cfg.Tenant, f.cfg.Collection, verb)))
	}
	if err != nil {
		f.log.Warn("requests cannot be taken", "error", err.Error())
	}
	return func() {
		if service == nil {
			return
		}
		if err := service.Stop(); err != nil {
			f.log.Debug("requests not ended", "error", err.Error())
		}
	}
}

// Codes of answers that refuse a request.
const (
	codeRefused = "400"
	codeBusy    = "503"
)

// isRequest reports whether somebody sent r and waits for the answer. Whoever may create a consumer of any stream in the account can
// have JetStream deliver messages and heartbeats here: their reply subject is one of JetStream's own, or none.
func isRequest(r micro.Request) bool {
	return r.Reply() != "" && !strings.HasPrefix(r.Reply(), "$JS.")
}

func (f *Feed) handler(verb string, do func([]byte) (any, error)) micro.Handler {
	return micro.HandlerFunc(func(r micro.Request) {
		if !isRequest(r) {
			f.log.Debug("message ignored that is no request", "verb", verb, "subject", r.Subject(), "reply", r.Reply())
			return
		}
		reply, err := do(r.Data())
		switch {
		case errors.Is(err, ErrBusy), errors.Is(err, ErrForgetting):
			err = r.Error(codeBusy, err.Error(), nil)
		case err != nil:
			err = r.Error(codeRefused, err.Error(), nil)
		default:
			err = r.RespondJSON(reply)
		}
		if err != nil {
			f.log.Debug("request not answered", "verb", verb, "error", err.Error())
		}
	})
}

// requestTimeout is how long a request waits for its answer.
const requestTimeout = 5 * time.Second

// RequestRepair asks whichever instance follows a feed to repair records: see Feed.Repair. ErrNobody if there is none.
func RequestRepair(ctx context.Context, nc *nats.Conn, tenant, collection string, ids []string) error {
	for some := range slices.Chunk(ids, MaxRepair) {
		if err := request(ctx, nc, tenant, collection, verbRepair, repairRequest{some}, nil); err != nil {
			return err
		}
	}
	return nil
}

// forgetLook is the pause between two looks at how far a request to forget somebody has come, forgetPatience how long nobody may answer.
const (
	forgetLook     = 200 * time.Millisecond
	forgetPatience = 30 * time.Second
)

// RequestForget asks whichever instance follows a feed to forget a person, or to look what there is, and waits until it has: see
// Feed.Forget. Another instance that takes over meanwhile begins anew. each is told how far it has come. ErrNobody if there is none.
func RequestForget(ctx context.Context, nc *nats.Conn, tenant, collection string, what ForgetRequest, each func(Forgotten)) (Forgotten, error) {
	what.Request = cmp.Or(what.Request, nuid.Next())
	var answered time.Time
	for {
		var r Forgotten
		err := request(ctx, nc, tenant, collection, verbForget, what, &r)
		switch {
		case err == nil && r.Done:
			return r, nil
		case err == nil:
			answered = time.Now()
			each(r)
		case !errors.Is(err, ErrNobody) || time.Since(answered) > forgetPatience:
			return r, err
		}
		if err := sleep(ctx, forgetLook); err != nil {
			return r, err
		}
	}
}

// RequestResync asks whichever instance follows a feed to begin its delta anew: see Feed.Resync. ErrNobody if there is none.
func RequestResync(ctx context.Context, nc *nats.Conn, tenant, collection string, trustAPI bool) error {
	return request(ctx, nc, tenant, collection, verbResync, resyncRequest{trustAPI}, nil)
}

// RequestSync asks whichever instance follows a feed to poll it at once. ErrNobody if there is none.
func RequestSync(ctx context.Context, nc *nats.Conn, tenant, collection string) error {
	return request(ctx, nc, tenant, collection, verbSync, struct{}{}, nil)
}

// RequestPause asks whichever instance follows a feed to neither ask the API for changes nor append any, across restarts and
// takeovers, until it is asked to resume. It returns until when the feed, resumed, goes on with the same delta; the zero time if it has
// none. The status says StatePaused once the append in hand is finished. ErrNobody if there is no such instance.
func RequestPause(ctx context.Context, nc *nats.Conn, tenant, collection string) (until time.Time, err error) {
	var r pauseReply
	err = request(ctx, nc, tenant, collection, verbPause, struct{}{}, &r)
	return r.Until, err
}

// RequestResume asks whichever instance holds a feed to follow it again. It reports whether the feed was paused. ErrNobody if there is
// no such instance.
func RequestResume(ctx context.Context, nc *nats.Conn, tenant, collection string) (resumed bool, err error) {
	var r resumeReply
	err = request(ctx, nc, tenant, collection, verbResume, struct{}{}, &r)
	return r.Resumed, err
}

// RequestVerify asks whichever instance follows a feed to compare its stream with the API at once; the result becomes the
// status's LastVerify. ErrNobody if there is none.
func RequestVerify(ctx context.Context, nc *nats.Conn, tenant, collection string) error {
	return request(ctx, nc, tenant, collection, verbVerify, struct{}{}, nil)
}

// RequestStatus asks whichever instance follows a feed what it is doing. ErrNobody if there is none.
func RequestStatus(ctx context.Context, nc *nats.Conn, tenant, collection string) (Status, error) {
	var s Status
	err := request(ctx, nc, tenant, collection, verbStatus, struct{}{}, &s)
	return s, err
}

func request(ctx context.Context, nc *nats.Conn, tenant, collection, verb string, what, answer any) error {
	data, err := json.Marshal(what)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	reply, err := ask(ctx, nc, ControlSubject(tenant, collection, verb), data)
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		err = ErrNobody
	case errors.Is(err, context.DeadlineExceeded): // somebody who only listens hides that nobody answers
		err = fmt.Errorf("%w, or it does not answer: %w", ErrNobody, withPermission(nc, err))
	case err != nil:
	case reply.Header.Get(micro.ErrorHeader) != "":
		err = errors.New(reply.Header.Get(micro.ErrorHeader))
	case answer != nil:
		err = json.Unmarshal(reply.Data, answer)
	}
	if err != nil {
		return fmt.Errorf("ask for %s of %s/%s: %w", verb, tenant, collection, err)
	}
	return nil
}

// ask sends a request and returns its answer. It is RequestWithContext, but does not wait for an answer to what the server refused.
func ask(ctx context.Context, nc *nats.Conn, subject string, data []byte) (*nats.Msg, error) {
	inbox, err := nc.SubscribeSync(nc.NewInbox())
	if err != nil {
		return nil, err
	}
	defer inbox.Unsubscribe() //nolint:errcheck // of a connection that is closed, nothing is left
	if err := nc.PublishRequest(subject, inbox.Subject, data); err != nil {
		return nil, err
	}
	if err := nc.FlushWithContext(ctx); err != nil { // behind it, a refusal is known
		return nil, err
	}
	if last := nc.LastError(); errors.Is(last, nats.ErrPermissionViolation) && strings.Contains(last.Error(), fmt.Sprintf("Publish to %q", subject)) {
		return nil, ErrNotPermitted
	}
	return inbox.NextMsgWithContext(ctx)
}
