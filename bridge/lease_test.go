package bridge

import (
	"errors"
	"testing"
	"time"

	"clockbridge/protime/protimetest"
	"clockbridge/store"
)

// TestLease_save: the record is written by its holder alone, and a holder whose answers were lost is still the holder.
func TestLease_save(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{})
	key := leaseKey(w.feed.name)
	first := w.leased(forNow)
	if err := first.save(store.Checkpoint{Round: 1}); err != nil {
		t.Fatal(err)
	}
	first.revision-- // as if the answer to that had been lost
	if err := first.save(store.Checkpoint{Round: 2}); err != nil {
		t.Fatalf("after a lost answer: %v", err)
	}
	second := w.leased(forNow)
	if got := second.checkpoint().Round; got != 2 {
		t.Errorf("the record hands over round %d, want 2", got)
	}
	for range 2 {
		if err := first.save(store.Checkpoint{Round: 3}); !errors.Is(err, errLost) {
			t.Errorf("the former holder saves: %v, want errLost", err)
		}
	}
	if err := first.check(); !errors.Is(err, errLost) {
		t.Errorf("the former holder may act: %v", err)
	}
	entry, err := kv(t, w.nc).Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	if r := decodeLease(entry.Value()); r.Checkpoint.Round != 2 || r.Term != second.term() {
		t.Errorf("the record is %+v", r)
	}
	if err := kv(t, w.nc).Delete(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	if err := second.save(store.Checkpoint{Round: 4}); !errors.Is(err, errLost) {
		t.Errorf("a record that was deleted is saved: %v, want errLost", err)
	}
}

// TestLease_check: a lease is good until the membership is not safe any more, and a feed without one may always act.
func TestLease_check(t *testing.T) {
	until := time.Now().Add(time.Minute)
	l := &lease{until: func() time.Time { return until }}
	if err := l.check(); err != nil {
		t.Error(err)
	}
	until = time.Now()
	if err := l.check(); !errors.Is(err, errLapsed) {
		t.Errorf("got %v, want errLapsed", err)
	}
	if err := (*lease)(nil).check(); err != nil {
		t.Error(err)
	}
}

// TestLease_lose: a lease is lost by what was written behind its own record, and not by what a slow watch shows of the time before.
func TestLease_lose(t *testing.T) {
	own, other := leaseRecord{Holder: "a", Term: 7}, leaseRecord{Holder: "b", Term: 6}
	for _, test := range []struct {
		name     string
		shown    leaseRecord
		revision uint64
		want     bool
	}{
		{"HolderBefore", other, 9, false},
		{"ItsOwn", own, 10, false},
		{"SavedByItself", own, 11, false},
		{"HolderBehind", leaseRecord{Holder: "b", Term: 8}, 11, true},
		{"ItsOwnNextTerm", leaseRecord{Holder: "a", Term: 8}, 11, true},
		{"Deleted", leaseRecord{}, 11, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := &lease{record: own, revision: 10}
			if got := l.lose(test.shown, test.revision); got != test.want || l.isLost() != test.want {
				t.Errorf("lost %v, then %v, want %v", got, l.isLost(), test.want)
			}
		})
	}
}

func FuzzDecodeLease(f *testing.F) {
	f.Add([]byte(`{"holder":"a","name":"host:1","term":3,"checkpoint":{"cursor":"/x?deltaToken=y","position":7}}`))
	f.Add([]byte(`{"holder":7}`))
	f.Add([]byte(`{"name":"host:1","feeds":["acme/clockings"],"heartbeat":5000000000}`))
	f.Fuzz(func(t *testing.T, value []byte) {
		decodeLease(value)
		if m, ok := decodeMember(value); ok && (m.Heartbeat <= 0 || m.Heartbeat*deadTenths <= 0) {
			t.Errorf("a heartbeat of %s", m.Heartbeat)
		}
	})
}
