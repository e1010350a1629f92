// Package store keeps, in one bbolt file, what every feed has durably reached: a checkpoint and an index of its
// records.
//
// A checkpoint is replaced only if it is still the one the caller read, together with the index entries that belong to
// the move, in one transaction. When Commit returns nil the move survives a power cut; when it returns an error other
// than ErrConflict the file may hold either checkpoint, and only a new Open tells which. Nothing is kept in memory, so
// nothing in memory can be ahead of the disk.
//
// A Store is safe for use by many goroutines at once; commits take turns.
package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// Errors of Open and Commit.
var (
	// ErrConflict means that the stored checkpoint is not the one the caller moves from; nothing was changed.
	ErrConflict = errors.New("checkpoint was moved by somebody else")
	// ErrLocked means that another process has the file open.
	ErrLocked = errors.New("store is in use by another process")
	// ErrSchema means that the file was written by another version or by another program.
	ErrSchema = errors.New("store has an unknown layout")
	// ErrDamaged means that the file is not what was written. After a Store has returned it, nothing can be done with that Store.
	ErrDamaged = errors.New("store is damaged, move its file away: it is built anew from the streams")
)

// Checkpoint is what a feed has durably reached. The zero value is that of a feed that never advanced.
type Checkpoint struct {
	Cursor   string    `json:"cursor"`             // link to GET next; "" = a walk of the whole listing is to be started
	Filter   string    `json:"filter"`             // filter that the delta was started with
	Begun    time.Time `json:"begun"`              // when the latest walk was started
	Origin   string    `json:"origin"`             // what the cursor will bring: "snapshot", "resync" or "delta"
	Walk     uint64    `json:"walk"`               // number of the latest walk
	Confirm  bool      `json:"confirm,omitempty"`  // the walk has ended; records that it did not show are still to be asked for
	Repair   bool      `json:"repair,omitempty"`   // the stream lost messages; entries at position 0 are still to be asked for
	TrustAPI bool      `json:"trustApi,omitempty"` // this walk takes the API's state as newer than the index, whatever the changeVersions
	Position uint64    `json:"position"`           // stream sequence of the feed's last message; 0 = none
	Stream   time.Time `json:"stream"`             // when the stream that Position counts in was created
	At       time.Time `json:"at"`                 // when this checkpoint was made
	Answered time.Time `json:"answered,omitzero"`  // when the API last answered for a cursor, or up to an hour before; the zero time if that is not known
	Term     uint64    `json:"term,omitempty"`     // number of the lease under which it was made; 0 = none
	Round    uint64    `json:"round,omitempty"`    // number of the checkpoint, counted over all terms
	Losses   uint64    `json:"losses,omitempty"`   // how often the stream was found to have lost messages
	First    uint64    `json:"first,omitempty"`    // position that the stream begins at since a person was forgotten; 0 = nobody was
}

// Newer reports whether c was made after d, by whichever process: under a later lease, or later under the same one.
func (c Checkpoint) Newer(d Checkpoint) bool {
	return c.Term > d.Term || c.Term == d.Term && c.Round > d.Round
}

// Entry is what the index says of one record.
type Entry struct {
	ID       string
	Version  string // last published changeVersion
	Date     string // the record's date as YYYY-MM-DD, "" if it has none or none is known
	Position uint64 // stream sequence of its last message; 0 = the stream has lost it
	Walk     uint64 // number of the last walk that showed the record, or in whose time it changed
	Deleted  bool   // its last message was a Delete
	Erased   bool   // that one stands for what was erased, whatever the API has
}

var (
	metaBucket  = []byte("meta")
	feedsBucket = []byte("feeds")
	schemaKey   = []byte("schema")
	memberKey   = []byte("member") // in meta

	checkpointKey = []byte("checkpoint") // in a feed's bucket
	indexBucket   = []byte("index")      // likewise
)

// schema is the version of the layout: feeds/<feed>/checkpoint holds JSON, feeds/<feed>/index/<key> an entry, both with a sum since
// version 2.
const schema = 2

// lockTimeout is how long Open waits for another process to let go of the file.
const lockTimeout = time.Second

// Store is an open file.
type Store struct {
	db      *bbolt.DB
	path    string      // of a file to be removed once it is closed, "" = none
	writing sync.Mutex  // held by one commit after the other
	damaged atomic.Bool // bbolt has stumbled over its file, and may hold its locks for ever
}

// Open opens the file at path, and creates it, readable for its owner alone, if it is missing. A new file is built under
// a temporary name, because a crash inside bbolt's first write can leave a file that does not open.
func Open(path string) (*Store, error) { return open(path, nil) }

type openFile func(name string, flag int, perm os.FileMode) (*os.File, error)

func open(path string, openFile openFile) (_ *Store, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("open store %s: %w", path, err)
		}
	}()
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		if err := create(path); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, err
	case info.Size() == 0:
		return nil, fmt.Errorf("%w: it is empty", ErrDamaged) // bbolt would take it for a new one
	}
	db, err := openBolt(path, &bbolt.Options{Timeout: lockTimeout, FreelistType: bbolt.FreelistMapType, OpenFile: openFile})
	if err != nil {
		return nil, err
	}
	st := &Store{db: db}
	if err := st.guard(func() error { return checkSchema(db) }); err != nil {
		return nil, errors.Join(err, st.Close())
	}
	return st, nil
}

// openBolt opens a file with bbolt, which finds some damage by panicking, or by reading behind the end of its mapping, which would end
// the process without a word of use. It keeps the file open then: the process can only end, but it can say why.
func openBolt(path string, options *bbolt.Options) (db *bbolt.DB, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", ErrDamaged, r)
		}
	}()
	db, err = bbolt.Open(path, 0o600, options)
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, ErrLocked
	case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrVersionMismatch), errors.Is(err, bolterrors.ErrChecksum):
		return nil, fmt.Errorf("%w: %w", ErrSchema, err)
	}
	return db, err
}

// Temporary opens a store of its own in a new file in dir ("" = the system's directory for such files), which is gone when it is
// closed. It is not made to survive anything, so its commits wait for no disk.
func Temporary(dir string) (*Store, error) {
	f, err := os.CreateTemp(dir, "clockbridge-*.tmp") // 0600
	if err != nil {
		return nil, fmt.Errorf("create temporary store: %w", err)
	}
	path := f.Name()
	s, err := temporary(f)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("create temporary store %s: %w", path, err), os.Remove(path))
	}
	if os.Remove(path) != nil { // where an open file can be removed, not even a crash leaves it behind
		s.path = path
	}
	return s, nil
}

func temporary(f *os.File) (*Store, error) {
	if err := f.Close(); err != nil {
		return nil, err
	}
	db, err := bbolt.Open(f.Name(), 0o600, &bbolt.Options{
		Timeout: lockTimeout, FreelistType: bbolt.FreelistMapType, NoSync: true, NoFreelistSync: true,
	})
	if err != nil {
		return nil, err
	}
	err = db.Update(layout)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return &Store{db: db}, nil
}

// layout makes an empty file a store.
func layout(tx *bbolt.Tx) error {
	meta, err := tx.CreateBucket(metaBucket)
	if err != nil {
		return err
	}
	if _, err := tx.CreateBucket(feedsBucket); err != nil {
		return err
	}
	return meta.Put(schemaKey, binary.BigEndian.AppendUint32(nil, schema))
}

func create(path string) (err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, filepath.Base(path)+".new-*") // 0600, and a name of its own if two start at once
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) //nolint:errcheck // it is gone once all went well
	if err := tmp.Close(); err != nil {
		return err
	}
	db, err := bbolt.Open(tmp.Name(), 0o600, &bbolt.Options{Timeout: lockTimeout})
	if err != nil {
		return err
	}
	err = db.Update(layout)
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	// A link, unlike a rename, does not replace the file of a process that was quicker; but not every file system has them.
	if err := os.Link(tmp.Name(), path); err != nil && !errors.Is(err, os.ErrExist) {
		if err := os.Rename(tmp.Name(), path); err != nil {
			return err
		}
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func checkSchema(db *bbolt.DB) error {
	return db.View(func(tx *bbolt.Tx) error {
		meta := tx.Bucket(metaBucket)
		if meta == nil || tx.Bucket(feedsBucket) == nil {
			return fmt.Errorf("%w: not a clockbridge store", ErrSchema)
		}
		v := meta.Get(schemaKey)
		if len(v) != 4 {
			return fmt.Errorf("%w: no schema version", ErrSchema)
		}
		if got := binary.BigEndian.Uint32(v); got != schema {
			return fmt.Errorf("%w: schema %d, this program knows %d: move the file away, and it is built anew from the streams", ErrSchema, got, schema)
		}
		return nil
	})
}

// Close releases the file. Closing twice is allowed.
func (s *Store) Close() error {
	if s.damaged.Load() {
		return nil // bbolt might wait for itself; the file is released when the process ends
	}
	err := s.db.Close()
	if s.path != "" {
		err = errors.Join(err, os.Remove(s.path))
		s.path = ""
	}
	return err
}

// read runs do in a transaction that reads.
func (s *Store) read(do func(tx *bbolt.Tx) error) error {
	return s.guard(func() error { return s.db.View(do) })
}

// write runs do in a transaction that writes.
func (s *Store) write(do func(tx *bbolt.Tx) error) error {
	s.writing.Lock() // bbolt's own lock stays locked for ever if it stumbles
	defer s.writing.Unlock()
	return s.guard(func() error { return s.db.Update(do) })
}

// guard makes an error of a disk that returns something else than was written, or nothing: bbolt maps the file and finds that out as
// openBolt says.
func (s *Store) guard(do func() error) (err error) {
	if s.damaged.Load() {
		return ErrDamaged
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			s.damaged.Store(true)
			err = fmt.Errorf("%w: %v", ErrDamaged, r)
		}
	}()
	return do()
}

// Checkpoint returns the feed's checkpoint, the zero value if it never advanced.
func (s *Store) Checkpoint(feed string) (Checkpoint, error) {
	var c Checkpoint
	err := s.read(func(tx *bbolt.Tx) (err error) {
		b := tx.Bucket(feedsBucket).Bucket([]byte(feed))
		if b == nil {
			return nil
		}
		v := b.Get(checkpointKey)
		if v == nil {
			return nil
		}
		if c, err = decodeCheckpoint(feed, v); err != nil {
			return fmt.Errorf("checkpoint of %s: %w", feed, err)
		}
		return nil
	})
	return c, err
}

// Lookup returns what the index says of each id, in their order; the zero Entry for one that it does not know.
func (s *Store) Lookup(feed string, ids []string) ([]Entry, error) {
	entries := make([]Entry, len(ids))
	err := s.view(feed, func(index *bbolt.Bucket) error {
		var key []byte
		for i, id := range ids {
			key = appendKey(key[:0], id)
			v := index.Get(key)
			if v == nil {
				continue
			}
			e, err := decodeEntry(id, v)
			if err != nil {
				return fmt.Errorf("index of %s, record %q: %w", feed, id, err)
			}
			entries[i] = e
		}
		return nil
	})
	return entries, err
}

// Select returns up to limit entries that match, in key order, from behind the id after ("" = from the start). Each call
// is a transaction of its own, so that a walk over a large index may commit in between.
func (s *Store) Select(feed, after string, limit int, match func(Entry) bool) ([]Entry, error) {
	var entries []Entry
	read := 0
	err := s.view(feed, func(index *bbolt.Bucket) error {
		c := index.Cursor()
		k, v := c.First()
		if after != "" {
			from := appendKey(nil, after)
			if k, v = c.Seek(from); bytes.Equal(k, from) {
				k, v = c.Next()
			}
		}
		for ; k != nil && len(entries) < limit; k, v = c.Next() {
			read++
			id, err := idOfKey(k)
			if err != nil {
				return fmt.Errorf("index of %s: %w", feed, err)
			}
			e, err := decodeEntry(id, v)
			if err != nil {
				return fmt.Errorf("index of %s, record %q: %w", feed, id, err)
			}
			if match(e) {
				entries = append(entries, e)
			}
		}
		return nil
	})
	if read >= trimFrom {
		s.trim()
	}
	return entries, err
}

// view runs do on the feed's index, if there is one.
func (s *Store) view(feed string, do func(index *bbolt.Bucket) error) error {
	return s.read(func(tx *bbolt.Tx) error {
		b := tx.Bucket(feedsBucket).Bucket([]byte(feed))
		if b == nil {
			return nil
		}
		index := b.Bucket(indexBucket)
		if index == nil {
			return nil
		}
		return do(index)
	})
}

// Commit moves feed from one checkpoint to the next and records entries in its index; of several entries for one id the
// last wins. It returns ErrConflict, and changes nothing, if the stored checkpoint is not from. from and to may be equal.
func (s *Store) Commit(feed string, from, to Checkpoint, entries []Entry) error {
	was, err := from.encode(feed)
	if err != nil {
		return err
	}
	will, err := to.encode(feed)
	if err != nil {
		return err
	}
	err = s.write(func(tx *bbolt.Tx) error {
		b, err := tx.Bucket(feedsBucket).CreateBucketIfNotExists([]byte(feed))
		if err != nil {
			return err
		}
		stored := b.Get(checkpointKey)
		if stored == nil && from != (Checkpoint{}) || stored != nil && !bytes.Equal(stored, was) {
			return ErrConflict
		}
		if err := b.Put(checkpointKey, will); err != nil {
			return err
		}
		index, err := b.CreateBucketIfNotExists(indexBucket)
		if err != nil {
			return err
		}
		index.FillPercent = 0.9 // keys mostly come in ascending order
		for i := range entries {
			// bbolt keeps both slices until the transaction ends.
			if err := index.Put(appendKey(nil, entries[i].ID), entries[i].encode()); err != nil {
				return fmt.Errorf("record %q: %w", entries[i].ID, err)
			}
		}
		return nil
	})
	if err == nil && len(entries) >= trimFrom {
		s.trim()
	}
	return err
}

// Reset forgets checkpoint and index of feed.
func (s *Store) Reset(feed string) error {
	return s.write(func(tx *bbolt.Tx) error {
		feeds := tx.Bucket(feedsBucket)
		if feeds.Bucket([]byte(feed)) == nil {
			return nil
		}
		return feeds.DeleteBucket([]byte(feed))
	})
}

// SwapMember records under which id the process that has the file open is known to others, and returns the id that was
// recorded before: of a process that has ended, since only one at a time can have the file open.
func (s *Store) SwapMember(id string) (previous string, err error) {
	err = s.write(func(tx *bbolt.Tx) error {
		meta := tx.Bucket(metaBucket)
		previous = string(meta.Get(memberKey))
		return meta.Put(memberKey, []byte(id))
	})
	return previous, err
}
