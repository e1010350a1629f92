package store

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// A key is the id behind its length, so that integers sort by value and a listing in the order of ids writes the index
// from left to right.
func appendKey(b []byte, id string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(id))), id...) //nolint:gosec // bbolt takes no key that is longer
}

func idOfKey(key []byte) (string, error) {
	if len(key) < 2 || int(binary.BigEndian.Uint16(key)) != len(key)-2 {
		return "", fmt.Errorf("key %x is damaged", key)
	}
	return string(key[2:]), nil
}

// A value is one byte of flags, then position, walk and the version's length as uvarints, the version, and the date.
const flagDeleted = 1

func (e *Entry) encode() []byte {
	b := make([]byte, 1, 1+3*binary.MaxVarintLen64+len(e.Version)+len(e.Date))
	if e.Deleted {
		b[0] = flagDeleted
	}
	b = binary.AppendUvarint(b, e.Position)
	b = binary.AppendUvarint(b, e.Walk)
	b = binary.AppendUvarint(b, uint64(len(e.Version)))
	b = append(b, e.Version...)
	return append(b, e.Date...)
}

var errDamaged = errors.New("entry is damaged")

func decodeEntry(id string, v []byte) (Entry, error) {
	if len(v) == 0 || v[0]&^flagDeleted != 0 {
		return Entry{}, errDamaged
	}
	e := Entry{ID: id, Deleted: v[0]&flagDeleted != 0}
	rest := v[1:]
	var length uint64
	for _, field := range []*uint64{&e.Position, &e.Walk, &length} {
		n := 0
		*field, n = binary.Uvarint(rest)
		if n <= 0 {
			return Entry{}, errDamaged
		}
		rest = rest[n:]
	}
	if length > uint64(len(rest)) {
		return Entry{}, errDamaged
	}
	e.Version, e.Date = string(rest[:length]), string(rest[length:])
	return e, nil
}
