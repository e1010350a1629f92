// Latest: the present state of every clocking, one line of JSON each, without reading what came before it.
//
//   go run ./cmd/clockbridge demo                               # in one terminal, from the top of the repository
//   cd examples/javascript && npm ci && node latest.mjs         # in another
//
// A clocking that was deleted by hand is still there, with "status":"Deleted"; one that is gone altogether is left out.
import { DeliverPolicy, jetstream } from "@nats-io/jetstream";
import { connect } from "@nats-io/transport-node";

const nc = await connect({ servers: process.env.NATS_URL ?? "nats://127.0.0.1:4222" });
const consumer = await jetstream(nc).consumers.get("PROTIME_DEMO_CLOCKINGS", { deliver_policy: DeliverPolicy.LastPerSubject });
const state = new Map(); // by id
if ((await consumer.info()).num_pending > 0) {
  for await (const msg of await consumer.consume()) { // a record that changes meanwhile comes again
    const id = msg.headers.get("ce-subject");
    const type = msg.headers.get("ce-type");
    if (type.endsWith(".upserted")) state.set(id, msg.string());
    if (type.endsWith(".deleted")) state.delete(id);
    if (msg.info.pending === 0) break;
  }
}
for (const data of state.values()) console.log(data);
await nc.close();
