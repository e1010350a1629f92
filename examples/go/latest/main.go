// Latest: the present state of every clocking, one line of JSON each, without reading what came before it.
//
//	go run ./cmd/clockbridge demo           # in one terminal, from the top of the repository
//	cd examples/go && go run ./latest       # in another
//
// A clocking that was deleted by hand is still there, with "status":"Deleted"; one that is gone altogether is left out.
package main

import (
	"cmp"
	"context"
	"fmt"
	"log"
	"os"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func main() {
	state, err := latest(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	for _, data := range state {
		fmt.Println(data)
	}
}

func latest(ctx context.Context) (map[string]string, error) {
	nc, err := nats.Connect(cmp.Or(os.Getenv("NATS_URL"), nats.DefaultURL))
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	consumer, err := js.OrderedConsumer(ctx, "PROTIME_DEMO_CLOCKINGS", jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverLastPerSubjectPolicy})
	if err != nil {
		return nil, err
	}
	msgs, err := consumer.Messages()
	if err != nil {
		return nil, err
	}
	defer msgs.Stop()
	state := map[string]string{} // by id
	for left := consumer.CachedInfo().NumPending; left > 0; {
		msg, err := msgs.Next()
		if err != nil {
			return nil, err
		}
		meta, err := msg.Metadata()
		if err != nil {
			return nil, err
		}
		left = meta.NumPending
		id, kind := msg.Headers().Get("ce-subject"), msg.Headers().Get("ce-type")
		switch { // a record that changes meanwhile comes again
		case strings.HasSuffix(kind, ".upserted"):
			state[id] = string(msg.Data())
		case strings.HasSuffix(kind, ".deleted"):
			delete(state, id)
		}
	}
	return state, nil
}
