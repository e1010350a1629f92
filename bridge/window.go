package bridge

import (
	"strings"
	"time"

	"clockbridge/protime"
)

// maxHorizon bounds how far into the future a listing looks, in years: a slip such as the year 9999 must not become a
// request for each month until then.
const maxHorizon = 10

// windows cuts a filter with a start date into filters that together cover it, without overlap or gap, each no longer
// than a month: well below the year that the API takes, since a listing that breaks off is walked again from its start,
// and since narrow queries are what its rate limits favour. Any other filter is one window.
//
// A feed has no end, but a listing needs one. Absences and assignments are planned ahead, so the last window ends with
// next year or, if the stream has a record of a later date than that, with the year behind the latest. A filter that has an
// end date keeps it.
func windows(collection, filter string, today time.Time, latest string) []string {
	known, _ := protime.CollectionOf(collection)
	all := months(filter, today, latest)
	for i := range all {
		all[i] = known.ListFilter(all[i])
	}
	return all
}

func months(filter string, today time.Time, latest string) []string {
	start := fromRE.FindStringSubmatch(filter)
	if start == nil {
		return []string{filter}
	}
	from, err := time.Parse(time.DateOnly, start[1])
	if err != nil {
		return []string{filter} // the API will say what is wrong with it
	}
	to := horizon(today.UTC(), max(latest, start[1]))
	end := toRE.FindStringSubmatch(filter)
	if end != nil {
		if to, err = time.Parse(time.DateOnly, end[1]); err != nil {
			return []string{filter}
		}
	}
	var all []string
	for ; !from.After(to); from = firstOfNextMonth(from) {
		last := firstOfNextMonth(from).AddDate(0, 0, -1)
		if last.After(to) {
			last = to
		}
		ge, le := "date ge '"+from.Format(time.DateOnly)+"'", "date le '"+last.Format(time.DateOnly)+"'"
		window := strings.Replace(filter, start[0], ge, 1)
		if end != nil {
			window = strings.Replace(window, end[0], le, 1)
		} else {
			window = strings.Replace(window, ge, ge+" and "+le, 1)
		}
		all = append(all, window)
	}
	return all
}

func firstOfNextMonth(t time.Time) time.Time {
	return time.Date(t.Year(), t.Month()+1, 1, 0, 0, 0, 0, time.UTC)
}

// horizon is the last day that a listing without an end asks for.
func horizon(today time.Time, latest string) time.Time {
	year := today.Year() + 1
	if t, err := time.Parse(time.DateOnly, latest); err == nil && t.Year() >= year {
		year = min(t.Year()+1, today.Year()+maxHorizon)
	}
	return time.Date(year, time.December, 31, 0, 0, 0, 0, time.UTC)
}

func isDate(s string) bool {
	_, err := time.Parse(time.DateOnly, s)
	return err == nil
}
