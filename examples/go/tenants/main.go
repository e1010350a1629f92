// Tenants: one stream that holds the clockings of all tenants, made by JetStream itself. It is another stream: those of the feeds stay
// as they are. Run it again when there is a new tenant.
//
//	go run ./cmd/clockbridge demo           # in one terminal, from the top of the repository
//	cd examples/go && go run ./tenants      # in another
//	nats sub 'protime.*.clockings.*' --stream ALL_CLOCKINGS --all
//
// Of each tenant everything is there once and in order; the subject tells whose it is. Between tenants there is no order.
package main

import (
	"cmp"
	"context"
	"fmt"
	"log"
	"os"

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
	all := jetstream.StreamConfig{Name: "ALL_CLOCKINGS"} // without subjects: nobody but JetStream writes it
	names := js.StreamNames(ctx, jetstream.WithStreamListSubject("protime.*.clockings.*"))
	for name := range names.Name() {
		all.Sources = append(all.Sources, &jetstream.StreamSource{Name: name})
	}
	if err := names.Err(); err != nil {
		log.Fatal(err)
	}
	if _, err := js.CreateOrUpdateStream(ctx, all); err != nil {
		log.Fatal(err)
	}
	for _, source := range all.Sources {
		fmt.Println(source.Name)
	}
}
