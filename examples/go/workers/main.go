// Workers: as many of them as you start share the work, and the changes of one clocking are still worked on one after the other.
//
//	go run ./cmd/clockbridge demo           # in one terminal, from the top of the repository
//	cd examples/go && go run ./workers      # in as many others as you like; start and kill them at will
//
// The stream of the feed stays as it is: a second one takes its messages in and puts a partition into their subjects. JetStream has
// one message of each partition worked on at a time, by whichever worker, and the next when it is acknowledged. A message comes
// again if its worker dies, or takes longer than AckWait: keep the position with the result, and do not go back.
package main

import (
	"cmp"
	"context"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const partitions = 8 // how many messages are worked on at once; another number needs another stream

func main() {
	ctx := context.Background()
	nc, err := nats.Connect(cmp.Or(os.Getenv("NATS_URL"), nats.DefaultURL), nats.MaxReconnects(-1))
	if err != nil {
		log.Fatal(err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		log.Fatal(err)
	}
	if _, err := js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name: "WORK_CLOCKINGS",
		Sources: []*jetstream.StreamSource{{Name: "PROTIME_DEMO_CLOCKINGS", SubjectTransforms: []jetstream.SubjectTransformConfig{{
			Source: "protime.demo.clockings.*", Destination: fmt.Sprintf("work.{{partition(%d,1)}}.{{wildcard(1)}}", partitions),
		}}}},
	}); err != nil {
		log.Fatal(err)
	}
	failed := make(chan error)
	for p := range partitions {
		consumer, err := js.CreateOrUpdateConsumer(ctx, "WORK_CLOCKINGS", jetstream.ConsumerConfig{
			Durable: fmt.Sprintf("partition-%d", p), FilterSubject: fmt.Sprintf("work.%d.*", p),
			AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: 1, AckWait: 5 * time.Second,
		})
		if err != nil {
			log.Fatal(err)
		}
		go func() { failed <- work(ctx, consumer, p) }()
	}
	log.Fatal(<-failed)
}

// work takes messages of one partition, one at a time.
func work(ctx context.Context, consumer jetstream.Consumer, partition int) error {
	msgs, err := consumer.Messages(jetstream.PullMaxMessages(1)) // the others are for other workers
	if err != nil {
		return err
	}
	defer msgs.Stop()
	for {
		msg, err := msgs.Next()
		if err != nil {
			return err
		}
		h := msg.Headers()
		position := strings.Fields(h.Get("Nats-Stream-Source"))[1]                                  // in the stream of the feed
		fmt.Println(position, partition, h.Get("ce-type"), h.Get("ce-subject"), string(msg.Data())) // your work
		if err := msg.DoubleAck(ctx); err != nil {
			log.Println("acknowledge:", err) // it comes again
		}
	}
}
