package store

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"pgregory.net/rapid"
)

// TestMain lets the test binary be its own child: a process that holds the file, or one that is killed in mid-commit.
func TestMain(m *testing.M) {
	switch os.Getenv("STORE_TEST_CHILD") {
	case "hold":
		s, err := Open(os.Getenv("STORE_TEST_PATH"))
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("open")
		_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
		s.Close()
		os.Exit(0)
	case "commit":
		commitForever(os.Getenv("STORE_TEST_PATH"))
	}
	os.Exit(m.Run())
}

const feed = "acme/clockings"

func openTest(t testing.TB) (*Store, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "data", "bridge.db")
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, path
}

func at(n uint64) Checkpoint {
	return Checkpoint{Cursor: fmt.Sprint("cursor ", n), Origin: "delta", Position: n, At: time.Unix(int64(n), 5).UTC()}
}

func entry(id string, position uint64) Entry {
	return Entry{ID: id, Version: "0000090200004BD0000A", Date: "2026-01-15", Position: position, Walk: 3}
}

func mustCommit(t testing.TB, s *Store, from, to Checkpoint, entries ...Entry) {
	t.Helper()
	if err := s.Commit(feed, from, to, entries); err != nil {
		t.Fatal(err)
	}
}

func wantState(t testing.TB, s *Store, c Checkpoint, entries ...Entry) {
	t.Helper()
	got, err := s.Checkpoint(feed)
	if err != nil || got != c {
		t.Errorf("checkpoint = %+v, %v; want %+v", got, err, c)
	}
	all, err := s.Select(feed, "", 1<<20, func(Entry) bool { return true })
	if err != nil || fmt.Sprint(all) != fmt.Sprint(entries) {
		t.Errorf("index = %+v, %v; want %+v", all, err, entries)
	}
}

func TestStore_Commit(t *testing.T) {
	t.Run("OK", func(t *testing.T) {
		s, path := openTest(t)
		wantState(t, s, Checkpoint{})
		mustCommit(t, s, Checkpoint{}, at(1), entry("1", 1))
		mustCommit(t, s, at(1), at(3), entry("2", 2), entry("1", 3))
		mustCommit(t, s, at(3), at(3), entry("2", 9), entry("2", 8))
		wantState(t, s, at(3), entry("1", 3), entry("2", 8))
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		wantState(t, s, at(3), entry("1", 3), entry("2", 8))
	})
	t.Run("ErrConflict", func(t *testing.T) {
		s, _ := openTest(t)
		if err := s.Commit(feed, at(1), at(2), []Entry{entry("1", 1)}); !errors.Is(err, ErrConflict) {
			t.Errorf("commit from a checkpoint that never was: %v, want %v", err, ErrConflict)
		}
		wantState(t, s, Checkpoint{})
		mustCommit(t, s, Checkpoint{}, at(5), entry("1", 5))
		for _, from := range []Checkpoint{{}, at(4), at(6)} {
			if err := s.Commit(feed, from, at(7), []Entry{entry("1", 7)}); !errors.Is(err, ErrConflict) {
				t.Errorf("commit from %+v: %v, want %v", from, err, ErrConflict)
			}
		}
		wantState(t, s, at(5), entry("1", 5))
	})
	t.Run("FeedsAreApart", func(t *testing.T) {
		s, _ := openTest(t)
		mustCommit(t, s, Checkpoint{}, at(1), entry("1", 1))
		if err := s.Commit("other/clockings", Checkpoint{}, at(9), []Entry{entry("1", 9)}); err != nil {
			t.Fatal(err)
		}
		wantState(t, s, at(1), entry("1", 1))
	})
	t.Run("DiskFails", func(t *testing.T) {
		s, path := openTest(t)
		mustCommit(t, s, Checkpoint{}, at(1), entry("1", 1))
		s.Close()
		// A descriptor that cannot be written is what a failing disk looks like to bbolt.
		ro, err := open(path, func(name string, _ int, _ os.FileMode) (*os.File, error) { return os.Open(name) })
		if err != nil {
			t.Fatal(err)
		}
		if err := ro.Commit(feed, at(1), at(2), []Entry{entry("2", 2)}); err == nil || errors.Is(err, ErrConflict) {
			t.Errorf("commit: %v, want an I/O error", err)
		}
		wantState(t, ro, at(1), entry("1", 1))
		ro.Close()
		again, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer again.Close()
		wantState(t, again, at(1), entry("1", 1))
	})
}

func TestStore_Lookup(t *testing.T) {
	s, _ := openTest(t)
	odd := Entry{ID: "\x00\xff 'x'", Version: "v", Deleted: true, Position: 1 << 60}
	if got, err := s.Lookup(feed, []string{"1"}); err != nil || len(got) != 1 || got[0] != (Entry{}) {
		t.Errorf("lookup in an unknown feed = %+v, %v", got, err)
	}
	mustCommit(t, s, Checkpoint{}, at(1), entry("1", 1), odd)
	got, err := s.Lookup(feed, []string{"nobody", odd.ID, "1", ""})
	if want := []Entry{{}, odd, entry("1", 1), {}}; err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("lookup = %+v, %v; want %+v", got, err, want)
	}
}

func TestStore_Select(t *testing.T) {
	s, _ := openTest(t)
	var entries []Entry
	for i := 1; i <= 1200; i++ {
		entries = append(entries, entry(fmt.Sprint(i), uint64(i)))
	}
	mustCommit(t, s, Checkpoint{}, at(1), entries...)
	var ids []string
	for after := ""; ; {
		page, err := s.Select(feed, after, 100, func(e Entry) bool { return e.Position%3 == 0 })
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 {
			break
		}
		for _, e := range page {
			ids = append(ids, e.ID)
		}
		after = ids[len(ids)-1]
		page[0].Deleted = true // commits in between are allowed
		mustCommit(t, s, at(1), at(1), page[0])
	}
	if len(ids) != 400 || ids[0] != "3" || ids[3] != "12" || ids[399] != "1200" {
		t.Errorf("selected %d ids from %s to %s, want every third of 1200 in the order of their values", len(ids), ids[0], ids[len(ids)-1])
	}
}

func TestOpen(t *testing.T) {
	t.Run("ReadableForItsOwnerAlone", func(t *testing.T) {
		_, path := openTest(t)
		for p, want := range map[string]os.FileMode{path: 0o600, filepath.Dir(path): 0o700} {
			if info, err := os.Stat(p); err != nil || info.Mode().Perm() != want {
				t.Errorf("mode of %s is %v, %v; want %v", p, info.Mode().Perm(), err, want)
			}
		}
		if left, _ := filepath.Glob(path + ".new-*"); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
	t.Run("ErrLocked", func(t *testing.T) {
		s, path := openTest(t)
		s.Close()
		cmd := child(t, "hold", path)
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		defer stdin.Close()
		readLine(t, cmd, "open")
		began := time.Now()
		if _, err := Open(path); !errors.Is(err, ErrLocked) {
			t.Errorf("open: %v, want %v", err, ErrLocked)
		}
		if took := time.Since(began); took > 3*lockTimeout {
			t.Errorf("open took %s to say so, want about %s", took, lockTimeout)
		}
	})
	t.Run("ErrSchema", func(t *testing.T) {
		s, path := openTest(t)
		if err := s.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(metaBucket).Put(schemaKey, []byte{0, 0, 0, 9}) }); err != nil {
			t.Fatal(err)
		}
		s.Close()
		if _, err := Open(path); !errors.Is(err, ErrSchema) || !strings.Contains(err.Error(), "schema 9") {
			t.Errorf("open: %v, want %v with schema 9", err, ErrSchema)
		}
	})
	t.Run("NotBbolt", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "bridge.db")
		if err := os.WriteFile(path, []byte(strings.Repeat("hello ", 4000)), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path); !errors.Is(err, ErrSchema) {
			t.Errorf("open: %v, want %v", err, ErrSchema)
		}
	})
	t.Run("CutShort", func(t *testing.T) {
		s, path := openTest(t)
		var entries []Entry
		for i := range 5000 {
			entries = append(entries, entry(fmt.Sprint(i), uint64(i+1)))
		}
		mustCommit(t, s, Checkpoint{}, at(1), entries...)
		s.Close()
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, size := range []int{0, 100, 4096, 8192, 16384, 65536} {
			cut := filepath.Join(t.TempDir(), "bridge.db")
			if err := os.WriteFile(cut, whole[:size], 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(cut); err == nil {
				t.Errorf("open the first %d of %d bytes: no error", size, len(whole))
			}
		}
	})
	t.Run("AnotherProgramsBbolt", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "bridge.db")
		db, err := bbolt.Open(path, 0o600, nil)
		if err != nil {
			t.Fatal(err)
		}
		db.Close()
		if _, err := Open(path); !errors.Is(err, ErrSchema) {
			t.Errorf("open: %v, want %v", err, ErrSchema)
		}
	})
	t.Run("CrashedWhileCreating", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "bridge.db")
		if err := os.WriteFile(path+".new-123", []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
	})
}

func TestStore_DamagedValue(t *testing.T) {
	s, _ := openTest(t)
	mustCommit(t, s, Checkpoint{}, at(1), entry("1", 1))
	err := s.db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket(feedsBucket).Bucket([]byte(feed)).Bucket(indexBucket).Put(appendKey(nil, "1"), []byte{9, 9})
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Lookup(feed, []string{"1"}); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), `"1"`) {
		t.Errorf("lookup: %v, want %v with the record's id", err, ErrDamaged)
	}
}

// commitForever moves the checkpoint on, one entry a time, each of which names the position it was committed with.
func commitForever(path string) {
	s, err := Open(path)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	from, err := s.Checkpoint(feed)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	for n := from.Position + 1; ; n++ {
		if err := s.Commit(feed, from, at(n), []Entry{entry(fmt.Sprint(n), n), entry("last", n)}); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		from = at(n)
		fmt.Println("committed", n)
	}
}

// TestStore_Killed: whatever was acknowledged before a SIGKILL is there, and checkpoint and index agree.
func TestStore_Killed(t *testing.T) {
	s, path := openTest(t)
	s.Close()
	for round := range 10 {
		cmd := child(t, "commit", path)
		acked := readLine(t, cmd, "committed")
		for range round * 3 {
			acked = nextLine(t, cmd, "committed")
		}
		if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		cmd.Wait()
		s, err := Open(path)
		if err != nil {
			t.Fatalf("open after a kill: %v", err)
		}
		c, err := s.Checkpoint(feed)
		if err != nil {
			t.Fatal(err)
		}
		var n uint64
		fmt.Sscanf(acked, "committed %d", &n)
		if c.Position < n {
			t.Errorf("checkpoint at %d, although %d was acknowledged", c.Position, n)
		}
		got, err := s.Lookup(feed, []string{"last", fmt.Sprint(c.Position), fmt.Sprint(c.Position + 1)})
		if err != nil || got[0].Position != c.Position || got[1].Position != c.Position || got[2].ID != "" {
			t.Errorf("checkpoint at %d, index says %+v, %v", c.Position, got, err)
		}
		s.Close()
	}
}

var readers = map[*exec.Cmd]*bufio.Scanner{}

func child(t *testing.T, what, path string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "STORE_TEST_CHILD="+what, "STORE_TEST_PATH="+path)
	t.Cleanup(func() {
		if cmd.Process != nil {
			cmd.Process.Kill()
			cmd.Wait()
		}
		delete(readers, cmd)
	})
	return cmd
}

func readLine(t *testing.T, cmd *exec.Cmd, prefix string) string {
	t.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	readers[cmd] = bufio.NewScanner(out)
	return nextLine(t, cmd, prefix)
}

func nextLine(t *testing.T, cmd *exec.Cmd, prefix string) string {
	t.Helper()
	if !readers[cmd].Scan() || !strings.HasPrefix(readers[cmd].Text(), prefix) {
		t.Fatalf("child says %q, want %q", readers[cmd].Text(), prefix)
	}
	return readers[cmd].Text()
}

// TestStore_Model holds the store against maps, through random commits and reopenings.
func TestStore_Model(t *testing.T) {
	dir := t.TempDir()
	n := 0
	rapid.Check(t, func(r *rapid.T) {
		n++
		path := filepath.Join(dir, fmt.Sprint(n))
		s, err := Open(path)
		if err != nil {
			r.Fatal(err)
		}
		defer func() { s.Close() }()
		checkpoints, index := map[string]Checkpoint{}, map[string]map[string]Entry{"a/x": {}, "b/x": {}}
		id := rapid.SampledFrom([]string{"1", "2", "10", "x", "é", "1000"})
		r.Repeat(map[string]func(*rapid.T){
			"commit": func(r *rapid.T) {
				f := rapid.SampledFrom([]string{"a/x", "b/x"}).Draw(r, "feed")
				from, to := checkpoints[f], at(rapid.Uint64Range(1, 1e6).Draw(r, "to"))
				wrong := rapid.Bool().Draw(r, "wrong from")
				if wrong {
					from.Position += 1
				}
				entries := make([]Entry, rapid.IntRange(0, 4).Draw(r, "n"))
				for i := range entries {
					entries[i] = Entry{
						ID: id.Draw(r, "id"), Version: rapid.String().Draw(r, "version"), Date: rapid.String().Draw(r, "date"),
						Position: rapid.Uint64().Draw(r, "position"), Walk: rapid.Uint64().Draw(r, "walk"), Deleted: rapid.Bool().Draw(r, "deleted"),
					}
				}
				err := s.Commit(f, from, to, entries)
				if wrong != errors.Is(err, ErrConflict) || !wrong && err != nil {
					r.Fatalf("commit: %v, wrong from: %v", err, wrong)
				}
				if !wrong {
					checkpoints[f] = to
					for _, e := range entries {
						index[f][e.ID] = e
					}
				}
			},
			"reopen": func(r *rapid.T) {
				if err := s.Close(); err != nil {
					r.Fatal(err)
				}
				if s, err = Open(path); err != nil {
					r.Fatal(err)
				}
			},
			"": func(r *rapid.T) {
				for f, want := range index {
					got, err := s.Select(f, "", 100, func(Entry) bool { return true })
					if err != nil || len(got) != len(want) {
						r.Fatalf("index of %s = %v, %v; want %v", f, got, err, want)
					}
					for _, e := range got {
						if e != want[e.ID] {
							r.Fatalf("entry %+v, want %+v", e, want[e.ID])
						}
					}
					if c, err := s.Checkpoint(f); err != nil || c != checkpoints[f] {
						r.Fatalf("checkpoint of %s = %+v, %v; want %+v", f, c, err, checkpoints[f])
					}
				}
			},
		})
	})
}

// FuzzEntry decodes anything without a panic, with and without a good sum, and encodes what it decoded to the same entry.
func FuzzEntry(f *testing.F) {
	e := entry("1", 7)
	f.Add(e.encode())
	f.Add([]byte{})
	f.Add([]byte{1, 0x80})
	f.Fuzz(func(t *testing.T, v []byte) {
		for _, v := range [][]byte{v, appendSum(slices.Clone(v), "1")} {
			e, err := decodeEntry("1", v)
			if err != nil {
				if !errors.Is(err, ErrDamaged) {
					t.Fatalf("got %v, want %v", err, ErrDamaged)
				}
				continue
			}
			if again, err := decodeEntry("1", e.encode()); err != nil || again != e {
				t.Fatalf("decoded %+v, then %+v, %v", e, again, err)
			}
		}
	})
}

// BenchmarkStore_Commit commits runs of 1,000 new records, the ids ascending as in a listing.
func BenchmarkStore_Commit(b *testing.B) {
	s, _ := openTest(b)
	entries := make([]Entry, 1000)
	from, id := Checkpoint{}, 0
	for b.Loop() {
		for i := range entries {
			id++
			entries[i] = entry(fmt.Sprint(id), uint64(id))
		}
		mustCommit(b, s, from, at(uint64(id)), entries...)
		from = at(uint64(id))
	}
	b.ReportMetric(float64(1000*b.N)/b.Elapsed().Seconds(), "entries/s")
}

// TestTemporary: a store that leaves nothing behind.
func TestTemporary(t *testing.T) {
	dir := t.TempDir()
	s, err := Temporary(dir)
	if err != nil {
		t.Fatal(err)
	}
	entries := make([]Entry, 5000) // more than the file that it begins with holds
	for i := range entries {
		entries[i] = entry(fmt.Sprint(i), uint64(i)+1)
	}
	mustCommit(t, s, Checkpoint{}, at(1), entries...)
	got, err := s.Lookup(feed, []string{"0", "4999", "5000"})
	if err != nil || got[0] != entries[0] || got[1] != entries[4999] || got[2] != (Entry{}) {
		t.Errorf("Lookup: got %v, %v", got, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("Close, again: %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if s, err := Temporary(filepath.Join(dir, "missing")); err == nil {
		s.Close()
		t.Error("Temporary in a directory that does not exist: got no error")
	}
}
