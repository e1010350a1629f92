package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"clockbridge/protime"
)

type clockingCmd struct {
	Create clockingCreateCmd `cmd:"" help:"Create a clocking and print its id, with how to get it on stderr."`
	Get    clockingGetCmd    `cmd:"" help:"Print a clocking: laid out on a terminal, the API's very bytes in a pipe."`
	List   clockingListCmd   `cmd:"" help:"List clockings."`
}

// account is the tenant that a clocking command talks to.
type account struct{ settings }

// client loads the settings and returns the client of their only tenant, or of the one that --tenant names.
func (a *account) client(p *program, scopes ...string) (*protime.Client, error) {
	s := a.settings
	wanted := ""
	if s.Config != "" {
		wanted, s.Tenant = s.Tenant, ""
	}
	c, err := s.load(p)
	if err != nil {
		return nil, err
	}
	if wanted == "" && len(c.Tenants) > 1 {
		return nil, usagef("%s names several tenants: choose one with --tenant", s.Config)
	}
	i := 0
	if wanted != "" {
		i = slices.IndexFunc(c.Tenants, func(t tenantConfig) bool { return t.Name == wanted })
	}
	if i < 0 {
		return nil, usagef("%s names no tenant %q", s.Config, wanted)
	}
	return c.Tenants[i].client(scopes...)
}

type clockingCreateCmd struct {
	account
	Person   int64  `required:"" help:"Id of the person."`
	Date     string `required:"" placeholder:"YYYY-MM-DD" help:"The day."`
	Time     string `required:"" placeholder:"HH:MM" help:"Time of day, or minutes after midnight: -1440 to -1 on the day before, 1440 to 2880 on the day after."`
	Kind     string `default:"InOut" help:"InOut, Reason, Activity or ActivityEnd."`
	Terminal int64  `placeholder:"ID" help:"Id of the terminal."`
	Reason   int64  `placeholder:"ID" help:"Absence definition, for the kind Reason."`
}

func (c *clockingCreateCmd) Run(ctx context.Context, p *program) error {
	minutes, err := parseMinutes(c.Time)
	if err != nil {
		return usageError{err}
	}
	client, err := c.client(p, protime.WriteScope("clockings"))
	if err != nil {
		return err
	}
	id, err := client.CreateClocking(ctx, protime.NewClocking{
		Person: c.Person, Date: c.Date, Minutes: minutes, Kind: c.Kind, Terminal: c.Terminal, Reason: c.Reason,
	})
	if errors.Is(err, protime.ErrOutcomeUnknown) {
		return fmt.Errorf("%w; look before trying again: clockbridge clocking list --from %s --to %s --person %d", err, c.Date, c.Date, c.Person)
	}
	if err != nil {
		return err
	}
	fmt.Fprintln(p.stdout, id)
	fmt.Fprintf(p.stderr, "get it: clockbridge clocking get %s\n", id)
	return nil
}

// parseMinutes reads a time of day as HH:MM or as minutes after midnight.
func parseMinutes(s string) (int, error) {
	if t, err := time.Parse("15:04", s); err == nil {
		return t.Hour()*60 + t.Minute(), nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < -1440 || n > 2880 {
		return 0, fmt.Errorf("time %q: must be HH:MM, or minutes from -1440 to 2880", s)
	}
	return n, nil
}

type clockingGetCmd struct {
	account
	ID string `arg:"" help:"Id of the clocking."`
}

func (c *clockingGetCmd) Run(ctx context.Context, p *program) error {
	client, err := c.client(p, protime.ReadScope("clockings"))
	if err != nil {
		return err
	}
	change, err := client.Get(ctx, "clockings", c.ID)
	if err != nil {
		return err
	}
	data := change.Data
	if p.terminal {
		var pretty bytes.Buffer
		if json.Indent(&pretty, data, "", "  ") == nil {
			data = pretty.Bytes()
		}
	}
	fmt.Fprintf(p.stdout, "%s\n", data)
	return nil
}

type clockingListCmd struct {
	account
	From   string `placeholder:"YYYY-MM-DD" help:"First day. Default: seven days ago."`
	To     string `placeholder:"YYYY-MM-DD" help:"Last day. Default: today."`
	Person int64  `placeholder:"ID" help:"Of one person."`
	Kind   string `placeholder:"KIND" help:"Of one kind."`
	JSON   bool   `help:"One JSON object a line, as the API sends it. So it is in a pipe."`
}

func (c *clockingListCmd) Run(ctx context.Context, p *program) error {
	client, err := c.client(p, protime.ReadScope("clockings"))
	if err != nil {
		return err
	}
	q := protime.ClockingsQuery{From: c.From, To: c.To, Person: c.Person, Kind: c.Kind}
	if q.From == "" {
		q.From = time.Now().AddDate(0, 0, -7).Format(time.DateOnly)
	}
	if q.To == "" {
		q.To = time.Now().Format(time.DateOnly)
	}
	if c.JSON || !p.terminal {
		for change, err := range client.Clockings(ctx, q) {
			if err != nil {
				return err
			}
			fmt.Fprintf(p.stdout, "%s\n", change.Data)
		}
		return nil
	}
	table := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "ID\tDATE\tTIME\tPERSON\tKIND\tSTATUS")
	for change, err := range client.Clockings(ctx, q) {
		if err != nil {
			return errors.Join(table.Flush(), err)
		}
		r := readClocking(change.Data)
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", change.ID, r.Date, timeOfDay(r.Minutes), r.Person.ID, r.Kind, r.Status)
	}
	return table.Flush()
}

// clocking is what a person wants to see of a clocking's data.
type clocking struct {
	Person    struct{ ID json.Number }
	Date      string
	Minutes   *int `json:"timeOfDayInMinutes"`
	Original  *int `json:"originalTimeOfDayInMinutes"`
	Kind      string
	Status    string
	Generated bool `json:"isGenerated"`
}

// readClocking takes what it understands; the API may send more, or other things.
func readClocking(data []byte) clocking {
	var c clocking
	_ = json.Unmarshal(data, &c) // what was not understood stays empty, and shows as empty
	return c
}

func timeOfDay(minutes *int) string {
	if minutes == nil {
		return ""
	}
	n, day := *minutes, ""
	switch {
	case n < 0:
		n, day = n+1440, " (day before)"
	case n >= 1440:
		n, day = n-1440, " (day after)"
	}
	return strings.TrimSpace(fmt.Sprintf("%02d:%02d%s", n/60, n%60, day))
}
