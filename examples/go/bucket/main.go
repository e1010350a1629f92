// Bucket: a key-value bucket of the clockings that there are now, by id. Stop and start it at will.
//
//	go run ./cmd/clockbridge demo           # in one terminal, from the top of the repository
//	cd examples/go && go run ./bucket       # in another
//	nats kv ls CLOCKINGS; nats kv watch CLOCKINGS
//
// Each value bears the position of its message, so the newest value tells where to go on, and none goes backwards. A clocking that was
// deleted by hand is deleted here, too.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	stream = "PROTIME_DEMO_CLOCKINGS"
	bucket = "CLOCKINGS"

	// Headers of each value.
	headerPosition = "position"
	headerCreated  = "stream-created"
)

func main() { log.Fatal(run(context.Background())) }

func run(ctx context.Context) error {
	nc, err := nats.Connect(cmp.Or(os.Getenv("NATS_URL"), nats.DefaultURL), nats.MaxReconnects(-1))
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	feed, err := js.Stream(ctx, stream)
	if err != nil {
		return err
	}
	created := feed.CachedInfo().Created.UTC().Format(time.RFC3339Nano)
	if _, err := js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: bucket}); err != nil {
		return err
	}
	values, err := js.Stream(ctx, "KV_"+bucket) // a bucket is a stream, whose messages may have headers
	if err != nil {
		return err
	}
	var position, revision uint64 // of the newest value: in the feed's stream, and in the bucket
	switch last, err := values.GetLastMsgForSubject(ctx, "$KV."+bucket+".>"); {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		revision = values.CachedInfo().State.LastSeq
	case err != nil:
		return err
	case last.Header.Get(headerCreated) != created:
		return fmt.Errorf("stream %s was created at %s, the bucket is of one created at %q: delete bucket %s, and start again",
			stream, created, last.Header.Get(headerCreated), bucket)
	default:
		revision = last.Sequence
		if position, err = strconv.ParseUint(last.Header.Get(headerPosition), 10, 64); err != nil {
			return err
		}
	}
	consumer, err := js.OrderedConsumer(ctx, stream, jetstream.OrderedConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: position + 1,
	})
	if err != nil {
		return err
	}
	msgs, err := consumer.Messages()
	if err != nil {
		return err
	}
	defer msgs.Stop()
	for {
		msg, err := msgs.Next()
		if err != nil {
			return err
		}
		meta, err := msg.Metadata()
		if err != nil {
			return err
		}
		value := change(msg)
		if meta.Sequence.Stream <= position || value == nil {
			continue
		}
		position = meta.Sequence.Stream
		value.Header.Set(headerPosition, strconv.FormatUint(position, 10))
		value.Header.Set(headerCreated, created)
		// Refused if anybody else has written since: the next start reads what.
		ack, err := js.PublishMsg(ctx, value, jetstream.WithExpectLastSequence(revision))
		if err != nil {
			return err
		}
		revision = ack.Sequence
	}
}

// change is what a message means for the bucket, nil for nothing: a change that nobody could read.
func change(msg jetstream.Msg) *nats.Msg {
	key := msg.Subject()[strings.LastIndex(msg.Subject(), ".")+1:]
	value := nats.NewMsg("$KV." + bucket + "." + key)
	var clocking struct{ Status string }
	kind := msg.Headers().Get("ce-type")
	switch {
	case strings.HasSuffix(kind, ".upserted") && json.Unmarshal(msg.Data(), &clocking) == nil && clocking.Status != "Deleted":
		value.Data = msg.Data()
	case strings.HasSuffix(kind, ".upserted"), strings.HasSuffix(kind, ".deleted"):
		value.Header.Set("KV-Operation", "DEL")
	default:
		return nil
	}
	return value
}
