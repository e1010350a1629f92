// Durable: a consumer that JetStream remembers by name. Started again, it goes on where it was.
//
//	go run ./cmd/clockbridge demo           # in one terminal, from the top of the repository
//	cd examples/go && go run ./durable      # in another
//
// A message that was not acknowledged, because this program ended, comes again after AckWait. With one on its way at a time, none overtakes it.
package main

import (
	"cmp"
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func main() {
	ctx := context.Background()
	nc, err := nats.Connect(cmp.Or(os.Getenv("NATS_URL"), nats.DefaultURL))
	if err != nil {
		log.Fatal(err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		log.Fatal(err)
	}
	consumer, err := js.CreateOrUpdateConsumer(ctx, "PROTIME_DEMO_CLOCKINGS", jetstream.ConsumerConfig{
		Durable: "payroll", AckPolicy: jetstream.AckExplicitPolicy, AckWait: 10 * time.Second, MaxAckPending: 1,
	})
	if err != nil {
		log.Fatal(err)
	}
	msgs, err := consumer.Messages()
	if err != nil {
		log.Fatal(err)
	}
	for {
		msg, err := msgs.Next()
		if err != nil {
			log.Fatal(err)
		}
		meta, err := msg.Metadata()
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(meta.Sequence.Stream, msg.Headers().Get("ce-type"), msg.Headers().Get("ce-subject"), string(msg.Data())) // your work
		if err := msg.Ack(); err != nil {
			log.Fatal(err)
		}
	}
}
