// SQL: every change exactly once in a table, whatever crashes and whenever. The position of the last message is stored in the
// transaction that stores what the messages said, so nothing rests on an acknowledgement.
//
//	go run ./cmd/clockbridge demo           # in one terminal, from the top of the repository
//	cd examples/go && go run ./sql          # in another; kill it as often as you like
//	sqlite3 clockings.db 'SELECT count(*) FROM clockings; SELECT * FROM feed'
package main

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	_ "modernc.org/sqlite"
)

const (
	stream = "PROTIME_DEMO_CLOCKINGS"
	schema = `
CREATE TABLE IF NOT EXISTS clockings (id TEXT PRIMARY KEY, data TEXT NOT NULL);                    -- the present state
CREATE TABLE IF NOT EXISTS history (position INTEGER PRIMARY KEY, type TEXT, id TEXT, data TEXT);  -- each message
CREATE TABLE IF NOT EXISTS feed (stream TEXT PRIMARY KEY, created TEXT NOT NULL, position INTEGER NOT NULL);`
	begin   = `INSERT INTO feed VALUES (?, ?, 0) ON CONFLICT DO NOTHING`
	upsert  = `INSERT INTO clockings VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET data = excluded.data`
	remove  = `DELETE FROM clockings WHERE id = ?`
	erase   = `DELETE FROM history WHERE id = ?`
	record  = `INSERT INTO history VALUES (?, ?, ?, ?)`
	advance = `UPDATE feed SET position = ? WHERE stream = ? AND position = ?` // unless another instance was quicker
)

func main() { log.Fatal(run(context.Background())) }

func run(ctx context.Context) error {
	db, err := sql.Open("sqlite", "file:"+cmp.Or(os.Getenv("DB"), "clockings.db")+"?_pragma=busy_timeout(10000)&_pragma=synchronous(full)&_pragma=secure_delete(on)")
	if err != nil {
		return err
	}
	defer db.Close()
	if _, err := db.ExecContext(ctx, schema); err != nil {
		return err
	}
	nc, err := nats.Connect(cmp.Or(os.Getenv("NATS_URL"), nats.DefaultURL), nats.MaxReconnects(-1))
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	info, err := streamInfo(ctx, js)
	if err != nil {
		return err
	}
	if _, err := db.ExecContext(ctx, begin, stream, created(info)); err != nil {
		return err
	}
	var position uint64
	if err := db.QueryRowContext(ctx, `SELECT position FROM feed WHERE stream = ?`, stream).Scan(&position); err != nil {
		return err
	}
	// An ordered consumer never skips, repeats or swaps, and needs no acknowledgement.
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
		batch, err := next(msgs)
		if err != nil {
			return err
		}
		if err := sameStream(ctx, js, db, position); err != nil { // before the batch counts
			return err
		}
		if position, err = store(ctx, db, batch, position); err != nil {
			return err
		}
	}
}

// next waits for a message, and takes with it what is already there.
func next(msgs jetstream.MessagesContext) (batch []jetstream.Msg, err error) {
	for len(batch) < 500 {
		msg, err := msgs.Next(jetstream.NextMaxWait(5 * time.Second))
		if errors.Is(err, nats.ErrTimeout) {
			return batch, nil
		}
		if err != nil {
			return nil, err
		}
		batch = append(batch, msg)
		if meta, err := msg.Metadata(); err != nil || meta.NumPending == 0 {
			return batch, err
		}
	}
	return batch, nil
}

// store does all that a batch says, or nothing, and returns the position that it leads to.
func store(ctx context.Context, db *sql.DB, batch []jetstream.Msg, position uint64) (uint64, error) {
	if len(batch) == 0 {
		return position, nil
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return 0, err
	}
	defer tx.Rollback()
	at := position
	for _, msg := range batch {
		meta, err := msg.Metadata()
		if err != nil {
			return 0, err
		}
		if meta.Sequence.Stream <= at {
			continue // it is in the tables
		}
		at = meta.Sequence.Stream
		id, kind, data := msg.Headers().Get("ce-subject"), msg.Headers().Get("ce-type"), string(msg.Data())
		if msg.Headers().Get("ce-origin") == "erasure" { // somebody is to be forgotten: what the record was goes, too
			if _, err := tx.ExecContext(ctx, erase, id); err != nil {
				return 0, err
			}
		}
		if _, err := tx.ExecContext(ctx, record, at, kind, id, data); err != nil {
			return 0, err
		}
		switch {
		case strings.HasSuffix(kind, ".upserted"):
			_, err = tx.ExecContext(ctx, upsert, id, data)
		case strings.HasSuffix(kind, ".deleted"):
			_, err = tx.ExecContext(ctx, remove, id)
		}
		if err != nil {
			return 0, err
		}
	}
	moved, err := tx.ExecContext(ctx, advance, at, stream, position)
	if err != nil {
		return 0, err
	}
	if n, err := moved.RowsAffected(); err != nil {
		return 0, err
	} else if n != 1 {
		return 0, fmt.Errorf("position %d is not the stored one: another instance writes these tables", position)
	}
	return at, tx.Commit()
}

// sameStream notices a stream that was created anew, or restored from a backup of before: its positions mean something else.
func sameStream(ctx context.Context, js jetstream.JetStream, db *sql.DB, position uint64) error {
	info, err := streamInfo(ctx, js)
	if err != nil {
		return err
	}
	var known string
	if err := db.QueryRowContext(ctx, `SELECT created FROM feed WHERE stream = ?`, stream).Scan(&known); err != nil {
		return err
	}
	if known != created(info) || info.State.LastSeq < position {
		return fmt.Errorf("stream %s is not the one of these tables: it was created at %s and ends at %d, known are %s and %d; empty all three tables, and start again",
			stream, created(info), info.State.LastSeq, known, position)
	}
	return nil
}

func streamInfo(ctx context.Context, js jetstream.JetStream) (*jetstream.StreamInfo, error) {
	s, err := js.Stream(ctx, stream)
	if err != nil {
		return nil, err
	}
	return s.CachedInfo(), nil
}

func created(info *jetstream.StreamInfo) string { return info.Created.UTC().Format(time.RFC3339Nano) }
