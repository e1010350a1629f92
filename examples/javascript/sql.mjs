// SQL: every change exactly once in PostgreSQL, whatever crashes and whenever. The position of the last message is stored in the
// transaction that stores what the messages said, so nothing rests on an acknowledgement.
//
//   go run ./cmd/clockbridge demo                               # in one terminal, from the top of the repository
//   cd examples/javascript && npm ci && node sql.mjs            # in another; PGHOST, PGDATABASE, PGUSER... say where; kill it at will
//   psql -c 'SELECT count(*) FROM clockings' -c 'SELECT * FROM feed'
import { DeliverPolicy, jetstream, jetstreamManager } from "@nats-io/jetstream";
import { connect } from "@nats-io/transport-node";
import pg from "pg";

const stream = "PROTIME_DEMO_CLOCKINGS";
const db = new pg.Client();
await db.connect();
await db.query(`
  CREATE TABLE IF NOT EXISTS clockings (id TEXT PRIMARY KEY, data TEXT NOT NULL);                   -- the present state
  CREATE TABLE IF NOT EXISTS history (position BIGINT PRIMARY KEY, type TEXT, id TEXT, data TEXT);  -- each message
  CREATE TABLE IF NOT EXISTS feed (stream TEXT PRIMARY KEY, created TEXT NOT NULL, position BIGINT NOT NULL)`);
const nc = await connect({ servers: process.env.NATS_URL ?? "nats://127.0.0.1:4222", maxReconnectAttempts: -1 });
const manager = await jetstreamManager(nc);
const { created } = await manager.streams.info(stream);
await db.query("INSERT INTO feed VALUES ($1, $2, 0) ON CONFLICT DO NOTHING", [stream, created]);
const known = (await db.query("SELECT created, position FROM feed WHERE stream = $1", [stream])).rows[0];
let position = Number(known.position);
await sameStream();
setInterval(() => sameStream().catch(fail), 5000); // also while nothing comes

// An ordered consumer never skips, repeats or swaps, and needs no acknowledgement.
const consumer = await jetstream(nc).consumers.get(stream, { deliver_policy: DeliverPolicy.StartSequence, opt_start_seq: position + 1 });
let batch = [];
for await (const msg of await consumer.consume()) {
  if (msg.seq <= position) continue; // it is in the tables
  batch.push(msg);
  if (batch.length < 500 && msg.info.pending > 0) continue;
  await sameStream(); // before the batch counts
  await store(batch);
  batch = [];
}
fail(new Error("the consumer has ended"));

// store does all that a batch says, or nothing: a transaction that is not committed is undone when this process is gone.
async function store(batch) {
  await db.query("BEGIN");
  for (const msg of batch) {
    const id = msg.headers.get("ce-subject");
    const type = msg.headers.get("ce-type");
    // Somebody is to be forgotten: what the record was goes, too.
    if (msg.headers.get("ce-origin") === "erasure") await db.query("DELETE FROM history WHERE id = $1", [id]);
    await db.query("INSERT INTO history VALUES ($1, $2, $3, $4)", [msg.seq, type, id, msg.string()]);
    if (type.endsWith(".upserted")) {
      await db.query("INSERT INTO clockings VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET data = excluded.data", [id, msg.string()]);
    }
    if (type.endsWith(".deleted")) await db.query("DELETE FROM clockings WHERE id = $1", [id]);
  }
  const last = batch.at(-1).seq;
  const moved = await db.query("UPDATE feed SET position = $1 WHERE stream = $2 AND position = $3", [last, stream, position]);
  if (moved.rowCount !== 1) throw new Error(`position ${position} is not the stored one: another instance writes these tables`);
  await db.query("COMMIT");
  position = last;
}

// sameStream notices a stream that was created anew, or restored from a backup of before: its positions mean something else.
async function sameStream() {
  const least = position; // of now: it may move before the answer is there
  const info = await manager.streams.info(stream);
  if (info.created !== known.created || info.state.last_seq < least) {
    throw new Error(`stream ${stream} is not the one of these tables: it was created at ${info.created} and ends at ${info.state.last_seq}, ` +
      `known are ${known.created} and ${least}; empty all three tables, and start again`);
  }
}

function fail(err) {
  console.error(err.message);
  process.exit(1);
}
