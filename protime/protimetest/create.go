package protimetest

import (
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// problem is an item of validationErrors.
type problem struct {
	Field   string `json:"field"`
	Message string `json:"message"`
}

// create posts a clocking. There is no idempotency: the same body twice makes two.
func (s *Server) create(w http.ResponseWriter, r *http.Request, g *grant) {
	fields, problems := readClocking(r)
	if len(problems) == 0 {
		if wanted, ok := fields["person"].(map[string]any)["externalReferences"].(map[string]any); ok {
			s.mu.Lock()
			id := s.personOf(s.tenant(g.tenant), wanted)
			s.mu.Unlock()
			if id == "" {
				badRequest("There is no person with these external references").write(w)
				return
			}
			fields["person"] = map[string]any{"id": json.Number(id)}
		}
		w.Header().Set("Location", Root+"clockings/"+s.Tenant(g.tenant).Insert("clockings", fields))
		w.WriteHeader(http.StatusCreated)
		return
	}
	// Model validation answers without the wrapper "error", as documented.
	writeJSON(w, http.StatusBadRequest, struct {
		Code             string    `json:"code"`
		Message          string    `json:"message"`
		ValidationErrors []problem `json:"validationErrors"`
	}{"BadRequest", "The request was invalid", problems})
}

func readClocking(r *http.Request) (fields map[string]any, problems []problem) {
	if !strings.HasPrefix(r.Header.Get("Content-Type"), "application/json") {
		return nil, []problem{{"Content-Type", "must be application/json"}}
	}
	body := json.NewDecoder(io.LimitReader(r.Body, 1<<20))
	body.UseNumber()
	if err := body.Decode(&fields); err != nil || fields == nil {
		return nil, []problem{{"", "The body is not a JSON object"}}
	}
	if _, err := body.Token(); err != io.EOF {
		return nil, []problem{{"", "There is something behind the JSON object"}}
	}
	return fields, checkClocking(fields)
}

// writable are the fields of a clocking that a POST may carry.
var writable = []struct {
	name     string
	required bool
	kind     string // the only kind that has it, "" = all
	ok       func(any) bool
	message  string
}{
	{"person", true, "", func(v any) bool { return isReference(v) || hasReferences(v) }, "must have an id or externalReferences"},
	{"date", true, "", isDate, "must be a date as YYYY-MM-DD"},
	{"timeOfDayInMinutes", true, "", isMinutes, "must be an integer from -1440 to 2880"},
	{"kind", true, "", isClockingKind, "must be InOut, Reason, Activity or ActivityEnd"},
	{"terminal", false, "", func(v any) bool { return isReference(v) || hasReferences(v) }, "must have an id or externalReferences"},
	{"geolocation", false, "", isGeolocation, "must have the numbers longitude and latitude"},
	{"reason", false, "Reason", func(v any) bool { return isReference(v) || hasReferences(v) }, "must have an id or externalReferences"},
	{"isOpen", false, "Reason", func(v any) bool { _, ok := v.(bool); return ok }, "must be true or false"},
	{"activityLevels", false, "Activity", isLevels, "must be objects with level and activityDefinition.id"},
}

// checkClocking says what is wrong with a posted clocking, and drops what is ignored: read-only and unknown fields.
func checkClocking(fields map[string]any) (problems []problem) {
	clean := map[string]any{}
	for _, f := range writable {
		v := fields[f.name]
		switch {
		case v == nil && f.required:
			problems = append(problems, problem{f.name, "is required"})
		case v == nil:
		case !f.ok(v):
			problems = append(problems, problem{f.name, f.message})
		case f.kind != "" && fields["kind"] != f.kind:
			problems = append(problems, problem{f.name, "is allowed for the kind " + f.kind + " only"})
		default:
			clean[f.name] = v
		}
	}
	clear(fields)
	for k, v := range clean {
		fields[k] = v
	}
	return problems
}

func isReference(v any) bool {
	o, _ := v.(map[string]any)
	n, _ := o["id"].(json.Number)
	id, err := strconv.ParseInt(string(n), 10, 64)
	return err == nil && id > 0
}

func hasReferences(v any) bool {
	o, _ := v.(map[string]any)
	refs, _ := o["externalReferences"].(map[string]any)
	return len(refs) > 0
}

func isDate(v any) bool {
	text, _ := v.(string)
	_, err := time.Parse(time.DateOnly, text)
	return err == nil
}

func isMinutes(v any) bool {
	number, _ := v.(json.Number)
	n, err := strconv.Atoi(string(number))
	return err == nil && n >= -1440 && n <= 2880
}

func isClockingKind(v any) bool {
	text, _ := v.(string)
	return slices.Contains([]string{"InOut", "Reason", "Activity", "ActivityEnd"}, text)
}

func isGeolocation(v any) bool {
	o, _ := v.(map[string]any)
	_, long := o["longitude"].(json.Number)
	_, lat := o["latitude"].(json.Number)
	return long && lat
}

func isLevels(v any) bool {
	levels, ok := v.([]any)
	for _, level := range levels {
		o, _ := level.(map[string]any)
		definition, _ := o["activityDefinition"].(map[string]any)
		_, isNumber := o["level"].(json.Number)
		_, isText := definition["id"].(string)
		ok = ok && isNumber && isText
	}
	return ok
}
