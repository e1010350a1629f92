// Durable: a consumer that JetStream remembers by name. Started again, it goes on where it was.
//
//   go run ./cmd/clockbridge demo                               # in one terminal, from the top of the repository
//   cd examples/javascript && npm ci && node durable.mjs        # in another
//
// A message that was not acknowledged, because this program ended, comes again after ack_wait. With one on its way at a time, none overtakes it.
import { AckPolicy, jetstream, jetstreamManager } from "@nats-io/jetstream";
import { connect, nanos } from "@nats-io/transport-node";

const nc = await connect({ servers: process.env.NATS_URL ?? "nats://127.0.0.1:4222" });
const manager = await jetstreamManager(nc);
await manager.consumers.add("PROTIME_DEMO_CLOCKINGS", {
  durable_name: "payroll-js", ack_policy: AckPolicy.Explicit, ack_wait: nanos(10_000), max_ack_pending: 1,
});
const consumer = await jetstream(nc).consumers.get("PROTIME_DEMO_CLOCKINGS", "payroll-js");
for await (const msg of await consumer.consume()) {
  console.log(msg.seq, msg.headers.get("ce-type"), msg.headers.get("ce-subject"), msg.string()); // your work
  msg.ack();
}
