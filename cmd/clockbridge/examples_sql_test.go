//go:build examples

package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"clockbridge/bridge"
)

var (
	exampleSeed     = flag.Uint64("example-seed", 0, "seed of the kills; 0 = a new one, which is printed")
	examplePostgres = flag.String("example-postgres", "/usr/lib/postgresql/15/bin", "directory of PostgreSQL's programs")
)

// killer ends programs at random moments.
type killer struct {
	rng   *rand.Rand
	life  time.Duration // at most
	last  uint64        // how far the programs have got
	moved int           // lives in which one got further
}

func newKiller(t *testing.T) *killer {
	seed := *exampleSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("replay with -example-seed=%d", seed)
	return &killer{rng: rand.New(rand.NewPCG(seed, 3))}
}

// live starts a program and kills it with SIGKILL: the first one when it has got somewhere, which tells how long that takes; the others
// at random, before that, in the midst of it, or after.
func (k *killer) live(e *example, cmd *exec.Cmd, got func() uint64) {
	e.Helper()
	began := time.Now()
	e.start(cmd)
	if k.life == 0 {
		if !poll(time.Minute, func() bool { return got() > 0 }) {
			e.Fatalf("%v gets nowhere", cmd.Args)
		}
		k.life = max(3*time.Since(began), 500*time.Millisecond)
	} else {
		<-time.After(time.Duration(k.rng.Int64N(int64(k.life)))) // the moment is what is tried
	}
	cmd.Process.Kill()
	cmd.Wait()
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !status.Signaled() {
		e.Fatalf("%v ended by itself: %v", cmd.Args, cmd.ProcessState)
	}
	if now := got(); now > k.last {
		k.last, k.moved = now, k.moved+1
	}
}

// kills lets a program live and die so often, and fails if it mostly got nowhere.
func (k *killer) kills(e *example, program func() *exec.Cmd, got func() uint64) {
	e.Helper()
	for range *exampleKills {
		k.live(e, program(), got)
	}
	e.Logf("%d kills, %d of them after something was stored", *exampleKills, k.moved)
	if k.moved < *exampleKills/4 {
		e.Fatal("it was killed too often before it got anywhere")
	}
}

// database is read by its own program, not by what wrote it.
type database func(query string) (rows []string, err error)

func sqlite(e *example) (database, []string) {
	return func(query string) ([]string, error) {
		out, err := exec.Command("sqlite3", "-cmd", ".timeout 10000", filepath.Join(e.dir, "clockings.db"), query).Output()
		return strings.Split(strings.TrimSuffix(string(out), "\n"), "\n"), err
	}, nil
}

// postgres starts a PostgreSQL of its own, which is no program for root.
func postgres(e *example) (database, []string) {
	e.Helper()
	dir, err := os.MkdirTemp("", "clockbridge-postgres-")
	if err != nil {
		e.Fatal(err)
	}
	e.Cleanup(func() { os.RemoveAll(dir) })
	as := &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if os.Getuid() == 0 {
		u, err := user.Lookup("postgres")
		if err != nil {
			e.Fatal(err)
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		if err := os.Chown(dir, uid, gid); err != nil {
			e.Fatal(err)
		}
		as.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	data := filepath.Join(dir, "data")
	initdb := exec.Command(filepath.Join(*examplePostgres, "initdb"), "-D", data, "-A", "trust", "-U", "demo", "-E", "UTF8")
	initdb.Dir, initdb.SysProcAttr = dir, as
	if out, err := initdb.CombinedOutput(); err != nil {
		e.Fatalf("%v\n%s", err, out)
	}
	server := exec.Command(filepath.Join(*examplePostgres, "postgres"), "-D", data, "-k", dir, "-c", "listen_addresses=")
	server.Dir, server.SysProcAttr = dir, as
	e.start(server)
	env := []string{"PGHOST=" + dir, "PGUSER=demo", "PGDATABASE=postgres"}
	db := func(query string) ([]string, error) {
		psql := exec.Command(filepath.Join(*examplePostgres, "psql"), "-AtqX", "-F", "|", "-c", query)
		psql.Env = append(os.Environ(), env...)
		out, err := psql.Output()
		return strings.Split(strings.TrimSuffix(string(out), "\n"), "\n"), err
	}
	if !poll(time.Minute, func() bool { _, err := db("SELECT 1"); return err == nil }) {
		e.Fatal("PostgreSQL does not start")
	}
	return db, env
}

// TestExample_sql kills the program while changes flow. The table must be what the API holds, the history each message once, in its place.
func TestExample_sql(t *testing.T) {
	for name, tt := range map[string]struct {
		of func(*example) *exec.Cmd
		db func(*example) (database, []string)
	}{
		"Go, SQLite":             {func(e *example) *exec.Cmd { return e.golang("sql") }, sqlite},
		"JavaScript, PostgreSQL": {func(e *example) *exec.Cmd { return e.node("sql") }, postgres},
	} {
		t.Run(name, func(t *testing.T) {
			e := newExample(t)
			db, env := tt.db(e)
			program := func() *exec.Cmd {
				cmd := tt.of(e)
				cmd.Env = append(cmd.Env, env...)
				return cmd
			}
			position := func() uint64 {
				rows, err := db("SELECT position FROM feed")
				if err != nil {
					return 0
				}
				n, _ := strconv.ParseUint(rows[0], 10, 64)
				return n
			}
			stop := e.flow()
			newKiller(t).kills(e, program, position)
			stop()
			want := e.messages(e.sim, e.stream)
			running := program()
			e.start(running)
			poll(time.Minute, func() bool { return position() >= want[len(want)-1].position })
			e.judgeSQL(db, want)

			t.Run("somebody forgotten", func(t *testing.T) {
				var who struct{ Person struct{ ID json.Number } }
				if err := json.Unmarshal(want[0].data, &who); err != nil {
					t.Fatal(err)
				}
				person := bridge.NewPerson("clockings", who.Person.ID.String(), nil)
				names := func(table string) (n int) {
					rows, err := db("SELECT data FROM " + table)
					if err != nil {
						t.Fatal(err)
					}
					for _, data := range rows {
						if person.NamedBy([]byte(data), false) {
							n++
						}
					}
					return n
				}
				if names("history") == 0 {
					t.Fatalf("person %s is nowhere", who.Person.ID)
				}
				asked := bridge.ForgetRequest{Person: who.Person.ID.String()}
				r, err := bridge.RequestForget(t.Context(), e.js.Conn(), "demo", "clockings", asked, func(bridge.Forgotten) {})
				if err != nil || r.Records == 0 {
					t.Fatalf("%+v, %v", r, err)
				}
				if !poll(time.Minute, func() bool { return position() >= r.Position+uint64(r.Records) }) {
					t.Fatalf("the tables end at %d", position())
				}
				if history, present := names("history"), names("clockings"); history+present > 0 {
					t.Errorf("the person is named by %d rows of the history, and %d of the present state", history, present)
				}
			})

			t.Run("the stream created anew", func(t *testing.T) {
				if err := e.js.DeleteStream(t.Context(), e.stream); err != nil {
					t.Fatal(err)
				}
				if err := running.Wait(); err == nil {
					t.Error("the program that ran then ended as if all were well")
				}
				if !poll(time.Minute, func() bool { _, err := e.js.Stream(t.Context(), e.stream); return err == nil }) {
					t.Fatal("the stream does not come back")
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				cmd := program()
				said := new(logBuffer)
				cmd.Stderr = said
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				defer context.AfterFunc(ctx, func() { cmd.Process.Kill() })()
				if err := cmd.Wait(); err == nil || ctx.Err() != nil || !strings.Contains(said.String(), "empty all three tables") {
					t.Errorf("it ended with %v and said %q", err, said)
				}
			})
		})
	}
}

// judgeSQL compares the tables with the stream and the API.
func (e *example) judgeSQL(db database, want []message) {
	e.Helper()
	rows := func(query string) []string {
		rows, err := db(query)
		if err != nil {
			e.Fatalf("%s: %v", query, err)
		}
		return rows
	}
	got := rows("SELECT position, type, id, data FROM history ORDER BY position")
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) || got[i] != fmt.Sprintf("%d|%s|%s|%s", want[i].position, want[i].kind, want[i].id, want[i].data) {
			e.Errorf("history: %d rows of %d messages; they differ from the %d. on", len(got), len(want), i+1)
			break
		}
	}
	state := map[string]string{}
	for _, row := range rows("SELECT id, data FROM clockings") {
		id, data, _ := strings.Cut(row, "|")
		if !json.Valid([]byte(data)) {
			e.Errorf("record %s is %q", id, data)
		}
		state[id] = data
	}
	e.same("table", state, present(e.sim))
	if at, end := rows("SELECT position FROM feed")[0], fmt.Sprint(want[len(want)-1].position); at != end {
		e.Errorf("position %s of stream %s, which ends at %s", at, bridge.StreamName("demo", "clockings"), end)
	}
}
