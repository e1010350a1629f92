package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"clockbridge/bridge/subscribe"
)

type exportCmd struct {
	subscriber
	Format  string   `enum:"ndjson,csv" default:"ndjson" help:"ndjson, one JSON object a line, with the record as the API sent it; or csv."`
	Columns []string `placeholder:"NAME,..." help:"Of csv, behind id, changeVersion and position: members of the record, such as date or person.id. Default: those documented of clockings, and of other collections those of the first 1000 records."`
	At      string   `placeholder:"POINT" help:"The state of then: a position, a time such as 2026-01-31 or 2026-01-31T08:00:00Z, or how long ago, such as 90m or 7d. Default: of now."`
	Deleted bool     `help:"Deleted records too, in ndjson as \"type\":\"deleted\", in csv with a column deleted. (Clockings that were deleted by hand are records like others, with the status Deleted.)"`
}

// Run writes the state of every record at one position. Nothing is written before all of it has been read, so that what is written is whole:
// it waits in a temporary file, which has no name.
func (c *exportCmd) Run(ctx context.Context, p *program) (err error) {
	var at point
	if c.At != "" {
		if at, err = parsePoint(c.At, time.Now()); err != nil {
			return err
		}
	}
	if len(c.Columns) > 0 && c.Format != "csv" {
		return usagef("columns: are those of --format csv")
	}
	s, err := c.open(ctx, p)
	if err != nil {
		return err
	}
	defer s.close()
	spool, err := newSpool()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, spool.close()) }()
	e := &exporter{cmd: c, collection: s.Collection, spool: spool}
	position, err := c.read(ctx, s, at, e)
	if err == nil {
		err = e.end()
	}
	if err == nil {
		err = spool.copyTo(p.stdout)
	}
	if errors.Is(err, subscribe.ErrPast) {
		return fmt.Errorf("%w: an earlier state cannot be told", err)
	}
	if err := ended(ctx, err); err != nil {
		return err
	}
	fmt.Fprintf(p.stderr, "clockbridge: %s/%s at position %d: %d records\n", s.Tenant, s.Collection, position, e.records)
	return nil
}

func (c *exportCmd) read(ctx context.Context, s *reading, at point, e *exporter) (position uint64, err error) {
	if c.At == "" {
		return s.Export(ctx, e.begin, e.add)
	}
	if position, err = at.last(ctx, s); err != nil {
		return 0, err
	}
	if err := e.begin(); err != nil {
		return 0, err
	}
	return position, s.ExportAt(ctx, position, "", e.add)
}

// exporter writes records into the spool.
type exporter struct {
	cmd        *exportCmd
	collection string
	spool      *spool
	table      *table // csv only
	line       []byte
	records    int
}

// begin throws away what was written.
func (e *exporter) begin() error {
	e.records, e.table = 0, nil
	if err := e.spool.reset(); err != nil {
		return err
	}
	if e.cmd.Format == "csv" {
		e.table = newTable(e.spool.w, e.collection, e.cmd.Columns, e.cmd.Deleted)
	}
	return nil
}

func (e *exporter) add(m subscribe.Message) error {
	if m.Unreadable() || m.Deleted && !e.cmd.Deleted {
		return nil
	}
	e.records++
	if e.table != nil {
		return e.table.add(&m)
	}
	e.line = append(appendMessage(e.line[:0], &m), "}\n"...)
	_, err := e.spool.w.Write(e.line)
	return err
}

func (e *exporter) end() error {
	if e.table != nil {
		return e.table.end()
	}
	return nil
}

// spool keeps an export until it is whole.
type spool struct {
	file *os.File
	name string // "" = it has none any more
	w    *bufio.Writer
}

func newSpool() (*spool, error) {
	f, err := os.CreateTemp("", "clockbridge-*.tmp") // 0600
	if err != nil {
		return nil, fmt.Errorf("create temporary file: %w", err)
	}
	s := &spool{file: f, w: bufio.NewWriterSize(f, 64<<10)}
	if os.Remove(f.Name()) != nil { // where an open file can be removed, not even a crash leaves it behind
		s.name = f.Name()
	}
	return s, nil
}

func (s *spool) reset() error {
	s.w.Reset(s.file)
	_, err := s.file.Seek(0, io.SeekStart)
	return errors.Join(err, s.file.Truncate(0))
}

func (s *spool) copyTo(w io.Writer) error {
	err := s.w.Flush()
	if err == nil {
		_, err = s.file.Seek(0, io.SeekStart)
	}
	if err == nil {
		_, err = io.Copy(w, s.file)
	}
	return err
}

func (s *spool) close() error {
	err := s.file.Close()
	if s.name != "" {
		err = errors.Join(err, os.Remove(s.name))
	}
	return err
}
