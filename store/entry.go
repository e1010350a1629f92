package store

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
)

// A key is the id behind its length, so that integers sort by value and a listing in the order of ids writes the index
// from left to right.
func appendKey(b []byte, id string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(id))), id...) //nolint:gosec // bbolt takes no key that is longer
}

func idOfKey(key []byte) (string, error) {
	if len(key) < 2 || int(binary.BigEndian.Uint16(key)) != len(key)-2 {
		return "", fmt.Errorf("%w: key %x", ErrDamaged, key)
	}
	return string(key[2:]), nil
}

// A value is one byte of flags, then position, walk and the version's length as uvarints, the version, and the date; and the sum of
// the key and of all that.
const (
	flagDeleted = 1 << iota
	flagErased
)

func (e *Entry) encode() []byte {
	b := make([]byte, 1, 1+3*binary.MaxVarintLen64+len(e.Version)+len(e.Date)+sumSize)
	if e.Deleted {
		b[0] = flagDeleted
	}
	if e.Erased {
		b[0] |= flagErased
	}
	b = binary.AppendUvarint(b, e.Position)
	b = binary.AppendUvarint(b, e.Walk)
	b = binary.AppendUvarint(b, uint64(len(e.Version)))
	b = append(b, e.Version...)
	b = append(b, e.Date...)
	return appendSum(b, e.ID)
}

func decodeEntry(id string, v []byte) (Entry, error) {
	v, err := cutSum(v, id)
	if err != nil {
		return Entry{}, err
	}
	if len(v) == 0 || v[0]&^(flagDeleted|flagErased) != 0 {
		return Entry{}, fmt.Errorf("%w: unknown flags", ErrDamaged)
	}
	e := Entry{ID: id, Deleted: v[0]&flagDeleted != 0, Erased: v[0]&flagErased != 0}
	rest := v[1:]
	var length uint64
	for _, field := range []*uint64{&e.Position, &e.Walk, &length} {
		n := 0
		*field, n = binary.Uvarint(rest)
		if n <= 0 {
			return Entry{}, fmt.Errorf("%w: no number", ErrDamaged)
		}
		rest = rest[n:]
	}
	if length > uint64(len(rest)) {
		return Entry{}, fmt.Errorf("%w: version of %d bytes", ErrDamaged, length)
	}
	e.Version, e.Date = string(rest[:length]), string(rest[length:])
	return e, nil
}

// A checkpoint is its JSON and the sum of the feed's name and of that.
func (c *Checkpoint) encode(feed string) ([]byte, error) {
	b, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode checkpoint: %w", err)
	}
	return appendSum(b, feed), nil
}

func decodeCheckpoint(feed string, v []byte) (c Checkpoint, err error) {
	v, err = cutSum(v, feed)
	if err != nil {
		return Checkpoint{}, err
	}
	if err := json.Unmarshal(v, &c); err != nil {
		return Checkpoint{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return c, nil
}

const sumSize = 4

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func sum(b []byte, name string) uint32 {
	return crc32.Update(crc32.Checksum([]byte(name), castagnoli), castagnoli, b)
}

// appendSum appends the sum of name and b to b.
func appendSum(b []byte, name string) []byte { return binary.BigEndian.AppendUint32(b, sum(b, name)) }

// cutSum returns b without the sum that appendSum appended.
func cutSum(b []byte, name string) ([]byte, error) {
	if len(b) < sumSize {
		return nil, fmt.Errorf("%w: no sum", ErrDamaged)
	}
	data := b[:len(b)-sumSize]
	if binary.BigEndian.Uint32(b[len(data):]) != sum(data, name) {
		return nil, fmt.Errorf("%w: wrong sum", ErrDamaged)
	}
	return data, nil
}
