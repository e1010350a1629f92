package protimetest

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// tokenLife is how long a token is good for.
const tokenLife = 1800 * time.Second

// grant is what a token allows.
type grant struct {
	tenant string
	client string
	scopes []string
	until  time.Time
}

// KillTokens makes every token issued so far answer 401.
func (s *Server) KillTokens() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.tokens)
}

func (s *Server) serveToken(w http.ResponseWriter, r *http.Request) {
	tenant, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/tenants/"), "/")
	if tenant == "" || s.o.Tenant != "" && tenant != s.o.Tenant {
		writeError(w, http.StatusNotFound, "There is no such tenant")
		return
	}
	switch rest {
	case "connect/token":
	case ".well-known/openid-configuration":
		base := "http://" + r.Host + s.o.Prefix + "/tenants/" + tenant
		if r.TLS != nil {
			base = "https" + strings.TrimPrefix(base, "http")
		}
		writeJSON(w, http.StatusOK, map[string]any{
			"issuer": base, "token_endpoint": base + "/connect/token", "grant_types_supported": []string{"client_credentials"},
		})
		return
	default:
		writeError(w, http.StatusNotFound, "There is nothing at this path")
		return
	}
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		writeError(w, http.StatusMethodNotAllowed, "Use POST")
		return
	}
	if s.limited(w, r, tenant) {
		return
	}
	w, r, answered := s.fail(w, r, true)
	if answered {
		return
	}
	refuse := func(code string) { writeJSON(w, http.StatusBadRequest, map[string]string{"error": code}) }
	if r.ParseForm() != nil || !strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form-urlencoded") {
		refuse("invalid_request")
		return
	}
	form := r.PostForm
	scopes := strings.Fields(form.Get("scope"))
	switch {
	case form.Get("grant_type") != "client_credentials":
		refuse("unsupported_grant_type")
	case !s.knownClient(form.Get("client_id"), form.Get("client_secret")):
		refuse("invalid_client")
	case len(scopes) == 0 || slices.ContainsFunc(scopes, func(scope string) bool { return !s.knownScope(scope) }):
		refuse("invalid_scope")
	default:
		s.mu.Lock()
		s.tenant(tenant) // from now on it is there, and if it is the first, what belongs to the first is its own
		token := s.issue(tenant, form.Get("client_id"), scopes)
		s.mu.Unlock()
		writeJSON(w, http.StatusOK, map[string]any{
			"access_token": token, "expires_in": int(tokenLife.Seconds()), "token_type": "Bearer", "scope": strings.Join(scopes, " "),
		})
	}
}

func (s *Server) knownClient(id, secret string) bool {
	wanted, ok := s.o.MoreClients[id]
	return id == s.o.ClientID && secret == s.o.ClientSecret || ok && secret == wanted
}

// issue makes a token that looks like a JWT and is known only here.
func (s *Server) issue(tenant, client string, scopes []string) string {
	s.issued++
	now := s.now()
	part := func(v any) string {
		b, _ := json.Marshal(v) // maps of strings and numbers always marshal
		return base64.RawURLEncoding.EncodeToString(b)
	}
	token := part(map[string]string{"alg": "RS256", "typ": "at+jwt"}) + "." +
		part(map[string]any{"client_id": client, "exp": now.Add(tokenLife).Unix(), "jti": s.issued, "tenant": tenant}) + "." +
		part(fmt.Sprintf("%016X%016X", s.rng.Uint64(), s.rng.Uint64()))
	for t, g := range s.tokens {
		if now.After(g.until) {
			delete(s.tokens, t)
		}
	}
	s.tokens[token] = &grant{tenant: tenant, client: client, scopes: scopes, until: now.Add(tokenLife)}
	return token
}

// authorize returns what the request's token allows, nil if it has none that is good.
func (s *Server) authorize(r *http.Request) *grant {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.tokens[token]
	if g == nil || !s.now().Before(g.until) {
		return nil
	}
	// Where hosts name tenants, as in acme.myprotime.eu, a token is good at its own tenant's only.
	if host, _, ok := strings.Cut(r.Host, "."); ok && host != g.tenant && s.tenants[host] != nil {
		return nil
	}
	return g
}

func (s *Server) knownScope(scope string) bool {
	name, ok := strings.CutPrefix(scope, "connector-protimeapi-")
	if !ok {
		return false
	}
	collection, right, _ := strings.Cut(name, ".")
	if right == "write" {
		return collection == "clockings" || collection == "assignments"
	}
	return right == "read" && slices.ContainsFunc(s.kinds, func(k kind) bool { return k.scope == collection })
}

func scopeFor(k kind, right string) string { return "connector-protimeapi-" + k.scope + "." + right }
