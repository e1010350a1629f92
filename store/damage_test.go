package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"go.etcd.io/bbolt"
)

// TestStore_DamagedWhileOpen: a disk that loses what it held ends in an error of every call, and in no hang and no crash.
func TestStore_DamagedWhileOpen(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"CutShort": func(path string) error { return os.Truncate(path, 2*4096) },
		"Garbage": func(path string) error {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteAt(slices.Repeat([]byte{0xa5}, 1<<20), 2*4096)
			return err
		},
	} {
		for _, first := range []string{"Commit", "Lookup", "Select", "Checkpoint"} {
			t.Run(name+first, func(t *testing.T) {
				s, path := openTest(t)
				var entries []Entry
				for i := range 5000 {
					entries = append(entries, entry(fmt.Sprint(i), uint64(i+1)))
				}
				mustCommit(t, s, Checkpoint{}, at(1), entries...)
				if err := damage(path); err != nil {
					t.Fatal(err)
				}
				calls := map[string]func() error{
					"Commit":     func() error { return s.Commit(feed, at(1), at(2), entries) },
					"Lookup":     func() error { _, err := s.Lookup(feed, []string{"77"}); return err },
					"Select":     func() error { _, err := s.Select(feed, "", 1, func(Entry) bool { return false }); return err },
					"Checkpoint": func() error { _, err := s.Checkpoint(feed); return err },
				}
				if err := calls[first](); !errors.Is(err, ErrDamaged) {
					t.Errorf("%s: %v, want %v", first, err, ErrDamaged)
				}
				for what, call := range calls {
					if err := call(); !errors.Is(err, ErrDamaged) {
						t.Errorf("%s after that: %v, want %v", what, err, ErrDamaged)
					}
				}
				if err := s.Close(); err != nil {
					t.Errorf("close: %v", err)
				}
			})
		}
	}
}

// TestOpen_Empty: bbolt takes an empty file for a new one; here it is one that was cut short.
func TestOpen_Empty(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bridge.db")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); !errors.Is(err, ErrDamaged) {
		t.Errorf("open: %v, want %v", err, ErrDamaged)
	}
}

// FuzzCheckpoint decodes anything without a panic, and takes nothing that was not encoded for that feed.
func FuzzCheckpoint(f *testing.F) {
	c := at(7)
	good, err := c.encode(feed)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(feed, good)
	f.Add("other", good)
	f.Add(feed, good[:len(good)-1])
	f.Add(feed, appendSum([]byte(`{"position":-1}`), feed))
	f.Add(feed, appendSum([]byte(`{"position":18446744073709551616}`), feed))
	f.Fuzz(func(t *testing.T, name string, v []byte) {
		for _, v := range [][]byte{v, appendSum(slices.Clone(v), name)} {
			c, err := decodeCheckpoint(name, v)
			if err != nil {
				if !errors.Is(err, ErrDamaged) || c != (Checkpoint{}) {
					t.Fatalf("got %+v, %v; want %v", c, err, ErrDamaged)
				}
				continue
			}
			b, err := c.encode(name)
			if err != nil {
				continue // a year that JSON cannot write
			}
			if again, err := decodeCheckpoint(name, b); err != nil || !same(again, c) {
				t.Fatalf("decoded %+v, then %+v, %v", c, again, err)
			}
		}
	})
}

func same(a, b Checkpoint) bool {
	times := a.Begun.Equal(b.Begun) && a.Stream.Equal(b.Stream) && a.At.Equal(b.At)
	b.Begun, b.Stream, b.At = a.Begun, a.Stream, a.At
	return times && a == b
}

// FuzzKey: a key says its id and nothing else, and ids are as many keys.
func FuzzKey(f *testing.F) {
	f.Add([]byte("\x00\x011"), "1")
	f.Add([]byte("\x00\x021"), "\x00x")
	f.Add([]byte{}, "6f9619ff-8b86-d011-b42d-00c04fc964ff")
	f.Fuzz(func(t *testing.T, key []byte, id string) {
		if got, err := idOfKey(key); err == nil && string(appendKey(nil, got)) != string(key) {
			t.Fatalf("key %x is that of %q, which has key %x", key, got, appendKey(nil, got))
		}
		if got, err := idOfKey(appendKey(nil, id)); len(id) <= bbolt.MaxKeySize && (err != nil || got != id) {
			t.Fatalf("id %q came back as %q, %v", id, got, err)
		}
	})
}
