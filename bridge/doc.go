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
//  4. Loss is noticed. If JetStream itself loses acknowledged messages, the feed notices at its next poll, append, reconnect
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
// An append is an atomic batch where the server knows them, or a chain of pipelined messages. A position alone is not
// enough: the 301st message of a stalled chain fits whenever the stream happens to hold 300, be it an hour later and written
// by somebody else, and so does a stalled batch where the stream was made anew meanwhile. So a message also names the
// position of its record's message before it, which lies behind the append. A chain holds no record twice, and each of its
// messages is acknowledged. BenchmarkAppend measures the price. (TestRegression_RecordTwiceInAStalledChain,
// TestRegression_LateAppendInARecreatedStream)
//
// # Who follows
//
// The API allows one delta for each collection, so two followers take it away from each other. A [Fleet] lets one process
// follow a feed while it holds the feed's lease, a key in a JetStream bucket that names it and carries the checkpoint;
// the others stand by. A holder asks nothing of the API, and sends nothing to the stream, when two heartbeats have passed
// since the last one that was acknowledged; it is taken for dead after two and a half. These are times on two
// machines' own clocks, so they keep the API's delta whole as long as neither clock stops; the stream does not rest on
// them. A process that is frozen between its last look at the clock and the network may still send what it had in hand.
// Where its successor has written, the position refuses it. Where the successor has not, the message is the next change
// of the feed, in order and for the first time, and it is the successor's first append that is refused: it catches up
// and finds the change there (TestTakeover_lateWrite). Each message bears the number of the walk before it was read: one
// that arrives behind a later walk may speak of a record that was deleted in between, which only another walk can tell
// (TestRegression_LateAppendFromBeforeTheWalk,
// TestRegression_LateAppendInAFirstListing).
//
// What the holder has durably reached is in its store and in the lease's record; the later of the two counts, by the
// number of the lease and of the checkpoint. A deltaLink is asked for only when the record holds it, since it ends the
// one before. An idle poll is written to the record alone. Whoever takes over reads from the stream what its own
// index misses, and goes on with the same delta; where the last holder had begun a walk or a repair that only its
// index knew of, or the stream has lost messages since, it walks anew. (TestTakeover, TestTakeover_crash, TestTakeover_unfinishedWalk,
// TestTakeover_lostTail, TestTakeover_oldIndex, TestIdlePoll)
//
// # Traces
//
// Given a Tracer, a feed makes a span "round" of every run of changes that it fetched, or failed to, an idle poll included, and
// below it "fetch", "append" and "commit". The messages of a round that is sampled lead to its append by the header
// traceparent (W3C Trace Context); others have no such header, and nobody who reads the stream depends on it. A fetch lasts as
// long as the feed waited for it: a walk's pages are read ahead. Neither attribute nor error holds a cursor or a token.
// (TestTrace, TestTrace_errors, TestTrace_stop, TestTrace_header)
//
// # Messages
//
// A message is a CloudEvents 1.0 event in the binary mode of the NATS binding (which is in the binding's draft 1.0.3: version 1.0.2 is
// from before NATS had headers). [AsyncAPI] describes it to subscribers; it and the code do not part. No two changes are one event, and
// what cannot stand in an attribute, a control say, makes a change unreadable. What earlier versions wrote is still read.
// (TestContract, TestContract_refuses, TestAttribute, TestEventID, TestUnreadable_notText, TestDecode_earlier)
//
// # What the promises rest on
//
//   - JetStream stores a message only at the position that it names, and acknowledges it only when it is stored.
//     (TestAppend_Contract, TestReadAck, run against the oldest and the newest server)
//   - The store's commit is atomic and durable, and refuses to move a checkpoint that it does not hold. (TestStore_Commit,
//     TestStore_Killed)
//   - The API answers a deltaLink again with at least the same changes until the next one is used, or with 410. What it
//     leaves open is tried in every reading. (TestAlternatives)
//   - changeVersions of one record order as strings. Where they go backwards, the feed says so. (TestFeed_Regress)
//
// # What goes wrong
//
// Each of these, and what happens, has a test that fails when it does not:
//
//   - Network error, 408, 409, 429, 5xx, NATS unreachable: tried again for ever, with growing pauses; Retry-After is
//     honoured. (TestPlan, TestRun_BacksOffAndRecovers, TestFeed_Faults)
//   - Token or scope refused: state unauthorized, tried every 5 minutes, other feeds go on. (TestPlan, TestFeeds_AreIndependent)
//   - 410 on a cursor: resync. Again and again: with growing pauses. (TestPromise1NothingLost, TestRegression_EndlessResyncs)
//   - 400, 404, 409 or 414 on a cursor, three times in a row: resync. (TestPlan, TestRegression_LaterPageTakenForTheStart)
//   - Page cut short, not JSON, without value or link: tried again, the cursor does not move. (TestFeed_Faults,
//     TestClient_Fetch_refusesThePage)
//   - An answer that does not come, or stalls: given up, tried again. (TestRegression_UnansweredRequestHangs, TestClient_Fetch_stalls)
//   - Filter refused, stream not fit, no permission: state misconfigured. (TestFeed_Misconfigured, TestFeed_ForeignStream)
//   - Link or redirect elsewhere: refused. (TestBase_resolve_refuses, TestClient_redirects)
//   - A change that cannot be read: kept aside. (TestFeed_UnreadableChanges, TestKeepAside)
//   - Crash at any write, "lost" and "happened, but nobody was told": nothing lost, nothing twice. (TestPromise2NothingTwice, TestModel,
//     TestKilledFiftyTimes, TestTakeover_crash)
//   - The stream lost its tail, has a hole, was recreated, or comes from a backup: repaired. (TestPromise4LossIsNoticed,
//     TestRegression_CrashWhileMarkingALoss, TestRegression_FellBackWithAHoleAtItsNewEnd, TestRegression_LossHiddenByAReconnectInsideAStep,
//     TestRegression_IdleFeedIsTheLastToKnow)
//   - Messages are purged, or grow too old: no loss. (TestPromise4LossIsNoticed, TestFeed_Limits, TestRegression_PurgeTakenForALoss,
//     TestRetention_cursorExpires, TestRetention_emptyStore, TestRetention_lastOnly)
//   - The stream keeps more or less than is configured: said, and left alone. (TestLimits)
//   - The store was deleted, or is an old one: rebuilt from the stream. (TestPromise4LossIsNoticed, TestTakeover)
//   - The store cannot be written: the process ends. (TestEngine_run_ErrStore, TestStore_DamagedValue)
//   - A foreign message in the stream: state conflict. (TestPromise5OneWriter, TestDecode_Foreign)
//   - A second instance: it stands by. (TestFleet_standBy)
//   - The holder stops, crashes, or comes back: taken over at once, within three heartbeats, at once. (TestFleet_gracefulStop,
//     TestFleet_crash, TestFleet_restart)
//   - The feed is paused by an operator: it stays so across restarts and takeovers, and goes on with the same delta. (TestPause,
//     TestPause_takeover, TestPause_atOnce, TestPause_walk)
//   - The holder is frozen or cut off: it does not act, and stands by when it comes back. (TestPromise5OneFollower, TestFleet_buried,
//     TestMembership_bury, TestAppend_TooLate, TestRegression_DeadUntilTheNextHeartbeat)
//   - Instances join and leave: feeds are spread evenly, and no lease is taken whose holder is alive. (TestFleet_share, TestShare,
//     TestFleet_newcomer, TestFleet_margins, TestRegression_HolderThatTheWatchHasNotShown)
//   - The bucket is deleted, written by hand, or shows nothing: leases are made and looked at anew. (TestFleet_bucketLost,
//     TestFleet_robbed, TestFleet_unreadable, TestFleet_blindWatch, TestRegression_RevisionCountedTwice)
//   - Stream and API differ for whatever reason, a message removed from the middle of the stream, say: Verify finds it, Repair
//     appends what is missing and nothing else. (TestVerify, TestVerify_large, TestVerify_changesMeanwhile, TestFeed_Repair,
//     TestFeed_Repair_crash, TestControl)
//   - Fields are dropped or hashed before anything else sees them: no store, log, status, message or verification holds them.
//     (TestFeed_Privacy, TestPrivacy_apply, TestPrivacy_random)
//   - A person is to be forgotten: what names them is overwritten on the disks of JetStream, and a record whose last message goes gets
//     a deletion, which is not taken for the API's, nor the rest for a loss or a purge, in whose hands ever; interrupted anywhere, it is
//     asked for again. (TestForget, TestForget_crash, TestForget_olderCheckpoint, TestForget_purge, TestForget_lostTail,
//     TestForget_repairFirst, TestForget_refused, TestForget_takeover, TestModel)
//   - SIGTERM: the append in hand is finished and committed. (TestFeed_GracefulStop, TestEngine_run_stop,
//     TestRegression_StopWhileNATSReadsNothing)
package bridge
