package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"clockbridge/bridge"
	"clockbridge/protime"
)

// tenantConfig is one tenant: as the file or the variables name it, and after complete with its defaults.
type tenantConfig struct {
	Name        string            `yaml:"name"`
	ClientID    string            `yaml:"client_id"`
	SecretFile  string            `yaml:"client_secret_file"`
	Collections []string          `yaml:"collections"`
	Since       string            `yaml:"since"`
	Filter      string            `yaml:"filter"`
	Filters     map[string]string `yaml:"filters"` // by collection; they go before Since and Filter
	Poll        string            `yaml:"poll_interval"`
	APIURL      string            `yaml:"api_url"`
	AuthURL     string            `yaml:"auth_url"`
	UserAgent   string            `yaml:"user_agent"`
	Verify      string            `yaml:"verify_every"`
	Drop        []string          `yaml:"drop"`
	Hash        []string          `yaml:"hash"`
	HashKeyFile string            `yaml:"hash_key_file"`

	PollInterval time.Duration          `yaml:"-"` // what Poll says
	VerifyEvery  time.Duration          `yaml:"-"` // what Verify says; 0 = never
	noAPI        bool                   // as in settings
	privacy      *bridge.Privacy        // what Drop and Hash say; nil = nothing
	secret       func() (string, error) // asked for every token
}

// override lets what flags and variables say go before what the file says. Since and Filter are one setting.
func (t *tenantConfig) override(with tenantConfig) {
	if with.Since != "" || with.Filter != "" {
		t.Since, t.Filter = with.Since, with.Filter
	}
	if len(with.Collections) > 0 {
		t.Collections = slices.Clone(with.Collections)
		t.Filters = maps.Clone(t.Filters)
		maps.DeleteFunc(t.Filters, func(of, _ string) bool { return !slices.Contains(t.Collections, of) })
	}
	if len(with.Drop) > 0 {
		t.Drop = slices.Clone(with.Drop)
	}
	if len(with.Hash) > 0 {
		t.Hash = slices.Clone(with.Hash)
	}
	for to, value := range map[*string]string{
		&t.ClientID: with.ClientID, &t.SecretFile: with.SecretFile, &t.Poll: with.Poll,
		&t.APIURL: with.APIURL, &t.AuthURL: with.AuthURL, &t.UserAgent: with.UserAgent, &t.Verify: with.Verify,
		&t.HashKeyFile: with.HashKeyFile,
	} {
		if value != "" {
			*to = value
		}
	}
}

var nameRE = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)

// complete checks a tenant and fills in what is missing.
func (t *tenantConfig) complete(p *program) error {
	if !nameRE.MatchString(t.Name) {
		return errors.New("name: must be lower-case letters, digits and '-', the subdomain of the tenant's myprotime.eu address")
	}
	if len(t.Collections) == 0 {
		t.Collections = []string{"clockings"}
	}
	for i, c := range t.Collections {
		if !nameRE.MatchString(c) {
			return fmt.Errorf("collections: %q: must be lower-case letters, digits and '-'", c)
		}
		if slices.Contains(t.Collections[:i], c) {
			return fmt.Errorf("collections: %q: is named twice", c)
		}
	}
	for of := range t.Filters {
		if !slices.Contains(t.Collections, of) {
			return fmt.Errorf("filters: %q: is not one of the collections", of)
		}
	}
	if t.noAPI {
		return nil
	}
	if t.ClientID == "" {
		return errors.New("client_id: missing; set PROTIME_CLIENT_ID or the key in the file")
	}
	if err := t.findSecret(); err != nil {
		return err
	}
	switch {
	case t.Since != "" && t.Filter != "":
		return errors.New("since and filter: only one of them may be set")
	case t.Since == "":
		t.Since = lastYear
	}
	if _, err := sinceDate(t.Since, time.Now()); err != nil {
		return err
	}
	if err := t.readPoll(); err != nil {
		return err
	}
	if err := t.readVerify(); err != nil {
		return err
	}
	if err := t.readPrivacy(); err != nil {
		return err
	}
	if t.UserAgent == "" {
		t.UserAgent = fmt.Sprintf("clockbridge/%s (self-hosted)", p.version)
	}
	if _, err := t.client(protime.ReadScope(t.Collections[0])); err != nil {
		return errors.New(asKeys.Replace(err.Error()))
	}
	return nil
}

// asKeys turns the fields of protime.Config, which its errors name, into the keys that a user knows.
var asKeys = strings.NewReplacer("new client: ", "", "Tenant:", "name:", "ClientID:", "client_id:", "Secret:", "client secret:",
	"APIURL:", "api_url:", "AuthURL:", "auth_url:", "UserAgent:", "user_agent:")

// findSecret decides where the client secret comes from: a file, or an environment variable. The variable of a tenant
// of several is PROTIME_CLIENT_SECRET_<NAME>.
func (t *tenantConfig) findSecret() error {
	variable := "PROTIME_CLIENT_SECRET"
	own := variable + "_" + strings.ToUpper(strings.ReplaceAll(t.Name, "-", "_"))
	value := os.Getenv(own)
	if value != "" {
		variable = own
	} else {
		value = os.Getenv(variable)
	}
	switch {
	case value != "" && t.SecretFile != "":
		return fmt.Errorf("client secret: set both by file and by %s: remove one of them", variable)
	case value != "":
		t.secret = func() (string, error) { return value, nil }
	case t.SecretFile != "":
		file := t.SecretFile
		t.secret = func() (string, error) { return readSecret(file) }
	default:
		return fmt.Errorf("client secret: missing; set %s, or name a file with PROTIME_CLIENT_SECRET_FILE or client_secret_file", variable)
	}
	return nil
}

// errSecret says that a secret's file is of no use.
var errSecret = errors.New("read secret")

// readSecret reads a file that holds one secret and, as editors leave it, the end of its line.
func readSecret(file string) (string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("%w: %w", errSecret, err)
	}
	secret := strings.TrimRight(string(text), "\r\n")
	if secret == "" {
		return "", fmt.Errorf("%w: %s is empty", errSecret, file)
	}
	return secret, nil
}

// client makes an API client of the tenant for those scopes. Every feed has one of its own: the token endpoint refuses a request
// whole if one of its scopes is not granted, and that must not stop the other collections.
func (t *tenantConfig) client(scopes ...string) (*protime.Client, error) {
	return t.observedClient(nil, scopes...)
}

// observedClient makes a client that tells observe of its requests.
func (t *tenantConfig) observedClient(observe func(protime.Exchange), scopes ...string) (*protime.Client, error) {
	return protime.NewClient(protime.Config{
		Tenant: t.Name, ClientID: t.ClientID, Secret: t.secret, Scopes: scopes,
		APIURL: t.APIURL, AuthURL: t.AuthURL, UserAgent: t.UserAgent, Observe: observe,
	})
}

// A shorter pause than pollMin is a slip, such as a number without its unit; a longer one than pollMax is too near to
// the 72 hours after which a delta expires.
const (
	pollMin = 10 * time.Millisecond
	pollMax = 24 * time.Hour
)

func (t *tenantConfig) readPoll() error {
	if t.Poll == "" {
		return nil // the feed's default
	}
	pause, err := time.ParseDuration(t.Poll)
	if err != nil || pause < pollMin || pause > pollMax {
		return fmt.Errorf("poll_interval: %q: must be a time such as 30s, from 10ms to 24h", t.Poll)
	}
	t.PollInterval = pause
	return nil
}

// verifyMin is the shortest pause between two verifications: each one reads the API's whole list.
const verifyMin = time.Minute

func (t *tenantConfig) readVerify() error {
	t.VerifyEvery = 0
	if t.Verify == "" {
		return nil // never
	}
	pause, err := time.ParseDuration(t.Verify)
	if err != nil || pause != 0 && pause < verifyMin {
		return fmt.Errorf("verify_every: %q: must be a time such as 24h, at least %s, or 0 for never", t.Verify, verifyMin)
	}
	t.VerifyEvery = pause
	return nil
}

// readPrivacy reads the key of the hashes once: were it read again, hashes of before and after could stand side by side.
func (t *tenantConfig) readPrivacy() (err error) {
	const variable = "CLOCKBRIDGE_HASH_KEY"
	key := os.Getenv(variable)
	switch {
	case len(t.Hash) == 0:
		key = ""
	case key != "" && t.HashKeyFile != "":
		return fmt.Errorf("hash key: set both by file and by %s: remove one of them", variable)
	case t.HashKeyFile != "":
		if key, err = readSecret(t.HashKeyFile); err != nil {
			return fmt.Errorf("hash_key_file: %w", err)
		}
	case key == "":
		return fmt.Errorf("hash: needs a key: set %s, or name a file with hash_key_file", variable)
	}
	t.privacy, err = bridge.NewPrivacy(t.Drop, t.Hash, []byte(key))
	return err
}
