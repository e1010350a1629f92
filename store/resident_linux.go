package store

import (
	"syscall"
	"unsafe"

	"go.etcd.io/bbolt"
)

// trimFrom is how many entries must be committed, or read in a row, before the pages that were touched are given back.
const trimFrom = 256

// trim lets go of the pages of the mapped file. bbolt reads through a mapping, so a walk over a large index would
// otherwise leave all of it resident in this process. Nothing is lost: the pages stay in the kernel's cache as long as
// it likes, and come back on demand.
func (s *Store) trim() {
	// A read transaction holds the mapping in place. Its error, and the kernel's, change nothing.
	_ = s.db.View(func(tx *bbolt.Tx) error {
		data := s.db.Info().Data
		if data == 0 {
			return nil
		}
		// The address is outside Go's heap: the collector neither moves nor knows it.
		mapped := unsafe.Slice(*(**byte)(unsafe.Pointer(&data)), tx.Size()) //nolint:gosec // only its address and length are used
		return syscall.Madvise(mapped, syscall.MADV_DONTNEED)
	})
}
