// Package bridge follows the delta feed of a myProtime collection and keeps a NATS JetStream stream that is a complete,
// ordered, duplicate-free log of its changes, one subject per record.
//
// # Promises
//
//  1. Nothing lost. Every change that the API reports is in the stream before the cursor moves past it; a deletion that
//     happened while the delta was expired is still published. (TestPromise1NothingLost)
//  2. Nothing twice. A crash at any instruction, on either side, leaves no duplicate in the stream, however long the
//     outage: this rests on positions, not on a duplicate window. (TestPromise2NothingTwice, TestPromise2NoMessageID)
//  3. In order. For one record, the order in the stream is the order of changeVersion; the last message on a subject is
//     the record's latest state. (TestPromise3InOrder)
//  4. Loss is noticed. If JetStream itself loses acknowledged messages, the feed notices at its next append, reconnect
//     or start, and repairs it; a purge is reported. (TestPromise4LossIsNoticed)
//  5. One writer. Two instances never follow one feed at once, and whoever does not know where the stream ends cannot
//     write to it. (TestPromise5OneFollower, TestPromise5OneWriter, TestStaleChainTailIsRefused)
//  6. It never stops silently. Every state other than "healthy" is visible in status, metrics, readiness and a log
//     line. (TestPromise6NeverStopsSilently)
//
// TestModel drives all of them at once through random histories.
//
// # The protocol
//
// The stream is the log; the store is its index. The store holds, for each feed, a checkpoint (cursor and position) and
// an index (record id to last published changeVersion and its position), and changes only after the stream has
// acknowledged. One round is four steps, to be read in [Feed.follow]:
//
//	page   ← source.Fetch(cursor)
//	fresh  ← index.Fresh(page.changes)
//	pos    ← log.Append(fresh, at: checkpoint.position)
//	store.Commit(index += fresh, checkpoint ← {page.next, pos})
//
// A page of any size is read as a stream and appended in runs of at most 1,000 changes; the cursor moves only with the
// last one, when the body was read whole and named its successor.
//
// The feed is its stream's only writer, so it knows the position that each message must get, and says so. An append is
// acknowledged, refused, or of unknown outcome; the last two end in the same place as a start does: catchUp reads what
// the stream holds behind the checkpoint, applies it to the index, and the page is fetched again.
//
// An append is an atomic batch where the server knows them, or a chain of pipelined messages. In a chain a position
// alone is not enough: the 301st message of a stalled chain fits whenever the stream happens to hold 300, be it an hour
// later and written by somebody else. So each message of a chain also names the position of its record's message before
// it, and each is acknowledged. BenchmarkAppend measures the price.
package bridge
