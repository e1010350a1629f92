package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"

	"clockbridge/protime"
)

// settings are the flags and environment variables that say what is followed. A file given with --config says the same
// for several tenants; flags and variables go before it.
type settings struct {
	Config string `env:"CLOCKBRIDGE_CONFIG" placeholder:"FILE" help:"YAML file; needed for more than one tenant."`

	Tenant       string        `env:"PROTIME_TENANT" placeholder:"NAME" help:"The tenant: the subdomain of its myprotime.eu address."`
	ClientID     string        `env:"PROTIME_CLIENT_ID" placeholder:"ID" help:"Client id. The secret comes from PROTIME_CLIENT_SECRET or a file."`
	SecretFile   string        `name:"client-secret-file" env:"PROTIME_CLIENT_SECRET_FILE" placeholder:"FILE" help:"File with the client secret, read again for every token."`
	Collections  []string      `env:"PROTIME_COLLECTIONS" placeholder:"NAME,..." help:"Collections to follow. Default: clockings."`
	Since        string        `env:"PROTIME_SINCE" placeholder:"WHEN" help:"How far back: a date, 90d, or last-year, the earliest that the API takes. Default: last-year."`
	Filter       string        `env:"PROTIME_FILTER" placeholder:"EXPR" help:"The whole filter expression, instead of --since."`
	PollInterval time.Duration `env:"PROTIME_POLL_INTERVAL" placeholder:"30s" help:"Pause between polls. Default: 30s."`
	APIURL       string        `name:"api-url" env:"PROTIME_API_URL" placeholder:"URL" help:"Default: https://<tenant>.myprotime.eu."`
	AuthURL      string        `name:"auth-url" env:"PROTIME_AUTH_URL" placeholder:"URL" help:"Default: https://authentication.myprotime.eu."`
	UserAgent    string        `env:"PROTIME_USER_AGENT" placeholder:"NAME/VERSION (COMPANY)" help:"How the vendor knows the caller."`

	NATSURL     string `name:"nats-url" env:"NATS_URL" placeholder:"URL,..." help:"Servers. None: a JetStream server inside this process."`
	NATSCreds   string `name:"nats-creds" env:"NATS_CREDS" placeholder:"FILE" help:"Credentials file."`
	NATSContext string `name:"nats-context" env:"NATS_CONTEXT" placeholder:"NAME" help:"A context of the nats CLI."`

	DataDir   string `env:"CLOCKBRIDGE_DATA_DIR" placeholder:"DIR" help:"Where checkpoints, index and the embedded JetStream live. Default: ./data."`
	LogLevel  string `env:"CLOCKBRIDGE_LOG_LEVEL" placeholder:"LEVEL" help:"debug, info, warn or error. Default: info."`
	LogFormat string `env:"CLOCKBRIDGE_LOG_FORMAT" placeholder:"FORMAT" help:"text or json. Default: text on a terminal, json otherwise."`
}

// config is the whole configuration, checked and with defaults filled in.
type config struct {
	Tenants   []tenantConfig `yaml:"tenants"`
	NATS      natsConfig     `yaml:"nats"`
	DataDir   string         `yaml:"data_dir"`
	HTTPAddr  string         `yaml:"http_addr"`
	LogLevel  string         `yaml:"log_level"`
	LogFormat string         `yaml:"log_format"`
}

type tenantConfig struct {
	Name         string        `yaml:"name"`
	ClientID     string        `yaml:"client_id"`
	SecretFile   string        `yaml:"client_secret_file"`
	Collections  []string      `yaml:"collections"`
	Since        string        `yaml:"since"`
	Filter       string        `yaml:"filter"`
	PollInterval time.Duration `yaml:"poll_interval"`
	APIURL       string        `yaml:"api_url"`
	AuthURL      string        `yaml:"auth_url"`
	UserAgent    string        `yaml:"user_agent"`

	secret func() (string, error)
}

type natsConfig struct {
	URL          string `yaml:"url"`
	Creds        string `yaml:"creds"`
	NKey         string `yaml:"nkey"`
	User         string `yaml:"user"`
	PasswordFile string `yaml:"password_file"`
	TokenFile    string `yaml:"token_file"`
	Context      string `yaml:"context"`
	CA           string `yaml:"ca"`
	Cert         string `yaml:"cert"`
	Key          string `yaml:"key"`
	Replicas     int    `yaml:"replicas"`
}

// embedded reports whether no server is named, so that one is started in this process.
func (c *natsConfig) embedded() bool { return c.URL == "" && c.Context == "" }

const (
	defaultDataDir  = "./data"
	defaultHTTPAddr = "127.0.0.1:8080"
)

// load merges file, environment and flags. Its errors are usage errors that name the key.
func (s *settings) load(p *program) (*config, error) {
	c, err := readConfig(s.Config)
	if err != nil {
		return nil, usageError{err}
	}
	if s.Tenant != "" {
		if len(c.Tenants) > 0 {
			return nil, usagef("tenants are named in %s and by PROTIME_TENANT or --tenant: remove one of them", s.Config)
		}
		c.Tenants = []tenantConfig{{
			Name: s.Tenant, ClientID: s.ClientID, SecretFile: s.SecretFile, Collections: s.Collections, Since: s.Since, Filter: s.Filter,
			PollInterval: s.PollInterval, APIURL: s.APIURL, AuthURL: s.AuthURL, UserAgent: s.UserAgent,
		}}
	}
	if len(c.Tenants) == 0 {
		return nil, usagef("no tenant: set PROTIME_TENANT, PROTIME_CLIENT_ID and PROTIME_CLIENT_SECRET, or name a file with --config; to try it without any: clockbridge demo")
	}
	override := func(to *string, values ...string) {
		for _, v := range values {
			if v != "" {
				*to = v
			}
		}
	}
	if s.NATSURL != "" || s.NATSContext != "" {
		c.NATS.URL, c.NATS.Context = s.NATSURL, s.NATSContext
	}
	override(&c.NATS.Creds, s.NATSCreds)
	override(&c.DataDir, s.DataDir)
	override(&c.LogLevel, s.LogLevel)
	override(&c.LogFormat, s.LogFormat)
	if c.DataDir == "" {
		c.DataDir = defaultDataDir
	}
	for i := range c.Tenants {
		if err := c.Tenants[i].complete(p); err != nil {
			return nil, usageError{fmt.Errorf("tenant %q: %w", c.Tenants[i].Name, err)}
		}
		if slices.ContainsFunc(c.Tenants[:i], func(t tenantConfig) bool { return t.Name == c.Tenants[i].Name }) {
			return nil, usagef("tenant %q: named twice", c.Tenants[i].Name)
		}
	}
	if _, err := c.level(); err != nil {
		return nil, usageError{err}
	}
	if c.LogFormat != "" && c.LogFormat != "text" && c.LogFormat != "json" {
		return nil, usagef("log format %q: must be text or json", c.LogFormat)
	}
	return c, nil
}

// readConfig reads the YAML file. It never shows a line of it: a secret may stand there by mistake.
func readConfig(path string) (*config, error) {
	c := new(config)
	if path == "" {
		return c, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	err = yaml.NewDecoder(bytes.NewReader(text), yaml.Strict()).Decode(c)
	if err == nil || errors.Is(err, io.EOF) {
		return c, nil
	}
	var at yaml.Error
	if !errors.As(err, &at) || at.GetToken() == nil {
		return nil, fmt.Errorf("%s: not valid YAML", path)
	}
	token := at.GetToken()
	where := fmt.Sprintf("%s:%d", path, token.Position.Line)
	var unknown *yaml.UnknownFieldError
	if !errors.As(err, &unknown) {
		return nil, fmt.Errorf("%s: %s", where, at.GetMessage())
	}
	switch token.Value {
	case "client_secret", "password", "token":
		return nil, fmt.Errorf("%s: a secret does not belong into this file: use %s_file, or the environment", where, token.Value)
	}
	return nil, fmt.Errorf("%s: unknown key %q; the README lists all keys", where, token.Value)
}

var nameRE = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)

// complete checks a tenant and fills in what is missing.
func (t *tenantConfig) complete(p *program) error {
	if !nameRE.MatchString(t.Name) {
		return fmt.Errorf("name: must be lower-case letters, digits and '-', the subdomain of the tenant's myprotime.eu address")
	}
	if len(t.Collections) == 0 {
		t.Collections = []string{"clockings"}
	}
	for i, c := range t.Collections {
		if !nameRE.MatchString(c) {
			return fmt.Errorf("collections: %q: must be lower-case letters, digits and '-'", c)
		}
		if slices.Contains(t.Collections[:i], c) {
			return fmt.Errorf("collections: %q is named twice", c)
		}
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
	if t.PollInterval < 0 || t.PollInterval > 24*time.Hour {
		return fmt.Errorf("poll_interval: %s: must lie between 0 and 24h, since a delta expires after 72 h", t.PollInterval)
	}
	if t.UserAgent == "" {
		t.UserAgent = fmt.Sprintf("clockbridge/%s (self-hosted)", p.version)
	}
	if _, err := t.client(); err != nil {
		return err
	}
	return nil
}

// findSecret decides where the client secret comes from: a file, or an environment variable. The variable of a tenant
// of several is PROTIME_CLIENT_SECRET_<NAME>.
func (t *tenantConfig) findSecret() error {
	variable := "PROTIME_CLIENT_SECRET"
	own := variable + "_" + strings.ToUpper(strings.ReplaceAll(t.Name, "-", "_"))
	value := os.Getenv(own)
	if value == "" {
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

func readSecret(file string) (string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("read secret: %w", err)
	}
	secret := strings.TrimRight(string(text), "\r\n")
	if secret == "" {
		return "", fmt.Errorf("read secret: %s is empty", file)
	}
	return secret, nil
}

// client makes the API client of the tenant, with the read scope of its collections and what else is asked for.
func (t *tenantConfig) client(extra ...string) (*protime.Client, error) {
	scopes := extra
	for _, c := range t.Collections {
		if scope := protime.ReadScope(c); !slices.Contains(scopes, scope) {
			scopes = append(scopes, scope)
		}
	}
	return protime.NewClient(protime.Config{
		Tenant: t.Name, ClientID: t.ClientID, Secret: t.secret, Scopes: scopes,
		APIURL: t.APIURL, AuthURL: t.AuthURL, UserAgent: t.UserAgent,
	})
}

func (c *config) level() (slog.Level, error) {
	var level slog.Level
	if c.LogLevel == "" {
		return slog.LevelInfo, nil
	}
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		return 0, fmt.Errorf("log level %q: must be debug, info, warn or error", c.LogLevel)
	}
	return level, nil
}

// logger writes to stderr: text on a terminal, JSON otherwise, unless the configuration says which.
func (c *config) logger(p *program) *slog.Logger {
	level, _ := c.level() // load has checked it
	options := &slog.HandlerOptions{Level: level}
	if c.LogFormat == "text" || c.LogFormat == "" && p.errTerminal {
		return slog.New(slog.NewTextHandler(p.stderr, options))
	}
	return slog.New(slog.NewJSONHandler(p.stderr, options))
}
