package main

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"time"

	"clockbridge/bridge"
)

// settings are the flags and environment variables that say what is followed. A file given with --config says the same
// for several tenants; flags and variables go before it, for each of its tenants.
type settings struct {
	Config string `env:"CLOCKBRIDGE_CONFIG" placeholder:"FILE" help:"YAML file; needed for more than one tenant."`

	Tenant       string   `env:"PROTIME_TENANT" placeholder:"NAME" help:"The tenant: the subdomain of its myprotime.eu address."`
	ClientID     string   `env:"PROTIME_CLIENT_ID" placeholder:"ID" help:"Client id. The secret comes from PROTIME_CLIENT_SECRET or a file."`
	SecretFile   string   `name:"client-secret-file" env:"PROTIME_CLIENT_SECRET_FILE" placeholder:"FILE" help:"File with the client secret, read again for every token."`
	Collections  []string `env:"PROTIME_COLLECTIONS" placeholder:"NAME,..." help:"Collections to follow. Default: clockings."`
	Since        string   `env:"PROTIME_SINCE" placeholder:"WHEN" help:"How far back: a date, 90d, or last-year, the earliest that the API takes. Default: last-year."`
	Filter       string   `env:"PROTIME_FILTER" placeholder:"EXPR" help:"The whole filter expression, instead of --since."`
	PollInterval string   `env:"PROTIME_POLL_INTERVAL" placeholder:"30s" help:"Pause between polls. Default: 30s."`
	APIURL       string   `name:"api-url" env:"PROTIME_API_URL" placeholder:"URL" help:"Default: https://<tenant>.myprotime.eu."`
	AuthURL      string   `name:"auth-url" env:"PROTIME_AUTH_URL" placeholder:"URL" help:"Default: https://authentication.myprotime.eu."`
	Drop         []string `env:"CLOCKBRIDGE_DROP" placeholder:"PATH,..." help:"Fields of a record's data that are not published, such as person.firstName."`
	Hash         []string `env:"CLOCKBRIDGE_HASH" placeholder:"PATH,..." help:"Fields of which a keyed hash is published instead. The key comes from CLOCKBRIDGE_HASH_KEY or a file."`
	HashKeyFile  string   `env:"CLOCKBRIDGE_HASH_KEY_FILE" placeholder:"FILE" help:"File with the key of the hashes."`
	UserAgent    string   `env:"PROTIME_USER_AGENT" placeholder:"NAME/VERSION (COMPANY)" help:"How the vendor knows the caller."`

	NATSURL     string `name:"nats-url" env:"NATS_URL" placeholder:"URL,..." help:"Servers. None: a JetStream server inside this process."`
	NATSCreds   string `name:"nats-creds" env:"NATS_CREDS" placeholder:"FILE" help:"Credentials file."`
	NATSContext string `name:"nats-context" env:"NATS_CONTEXT" placeholder:"NAME" help:"A context of the nats CLI."`
	NATSPort    int    `name:"nats-port" env:"CLOCKBRIDGE_NATS_PORT" placeholder:"PORT" help:"Port of the JetStream server inside this process, on 127.0.0.1; -1: any free one. Default: 4222."`
	Replicas    int    `name:"nats-replicas" env:"CLOCKBRIDGE_NATS_REPLICAS" placeholder:"N" help:"Of a stream that is created, and of the bucket of leases: 3 in a cluster of three. Default: 1."`

	MaxAge        string `name:"max-age" env:"CLOCKBRIDGE_MAX_AGE" placeholder:"90d" help:"Of a message in a stream that is created, at least 73h. Default: unlimited."`
	MaxPerSubject int    `name:"max-messages-per-subject" env:"CLOCKBRIDGE_MAX_MESSAGES_PER_SUBJECT" placeholder:"N" help:"Of a record, in a stream that is created. Default: unlimited."`

	DataDir   string `env:"CLOCKBRIDGE_DATA_DIR" placeholder:"DIR" help:"Where checkpoints, index and the embedded JetStream live; %d in it: the lowest number that no running instance holds. Default: ./data."`
	Heartbeat string `env:"CLOCKBRIDGE_HEARTBEAT" placeholder:"5s" help:"Between two signs of life to the other instances, which take over after three. Default: 5s."`
	LogLevel  string `env:"CLOCKBRIDGE_LOG_LEVEL" placeholder:"LEVEL" help:"debug, info, warn or error. Default: info."`
	LogFormat string `env:"CLOCKBRIDGE_LOG_FORMAT" placeholder:"FORMAT" help:"text or json. Default: text on a terminal, json otherwise."`

	noAPI bool // the API is not asked, so that its credentials need not be known
}

// config is the whole configuration, checked and with defaults filled in.
type config struct {
	Tenants   []tenantConfig `yaml:"tenants"`
	NATS      natsConfig     `yaml:"nats"`
	DataDir   string         `yaml:"data_dir"`
	HTTPAddr  string         `yaml:"http_addr"`
	ShowData  bool           `yaml:"show_data"`
	Heartbeat string         `yaml:"heartbeat"`
	Verify    string         `yaml:"verify_every"` // of every tenant that does not say otherwise
	LogLevel  string         `yaml:"log_level"`
	LogFormat string         `yaml:"log_format"`

	heartbeat time.Duration // what Heartbeat says; 0 = the fleet's default
}

type natsConfig struct {
	URL           string `yaml:"url"`
	Creds         string `yaml:"creds"`
	NKey          string `yaml:"nkey"`
	User          string `yaml:"user"`
	PasswordFile  string `yaml:"password_file"`
	TokenFile     string `yaml:"token_file"`
	Context       string `yaml:"context"`
	CA            string `yaml:"ca"`
	Cert          string `yaml:"cert"`
	Key           string `yaml:"key"`
	Replicas      int    `yaml:"replicas"`
	MaxAge        string `yaml:"max_age"`
	MaxPerSubject int    `yaml:"max_messages_per_subject"`
	Port          int    `yaml:"port"` // of the embedded server; -1 = any free one

	limits bridge.Limits // what MaxAge and MaxPerSubject say
}

// check finds what cannot be meant.
func (c *natsConfig) check() error {
	switch {
	case c.URL != "" && c.Context != "":
		return errors.New("nats: url and context: only one of them may be set")
	case c.Port < -1 || c.Port > 65535:
		return fmt.Errorf("nats: port: %d: must be a port, or -1 for any free one", c.Port)
	case c.Replicas < 0 || c.Replicas > 5:
		return fmt.Errorf("nats: replicas: %d: must lie between 1 and 5", c.Replicas)
	case (c.Cert == "") != (c.Key == "") && os.Getenv("NATS_CERT") == "" && os.Getenv("NATS_KEY") == "":
		return errors.New("nats: cert and key: a client certificate needs both files")
	}
	return c.readLimits()
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
		c.Tenants = []tenantConfig{{Name: s.Tenant}}
	}
	if len(c.Tenants) == 0 {
		return nil, usagef("no tenant: set PROTIME_TENANT, PROTIME_CLIENT_ID and PROTIME_CLIENT_SECRET, or name a file with --config; to try it without any: clockbridge demo")
	}
	override := func(to *string, value string) {
		if value != "" {
			*to = value
		}
	}
	c.NATS.override(s.NATSURL, s.NATSCreds, s.NATSContext, s.NATSPort)
	if s.Replicas != 0 {
		c.NATS.Replicas = s.Replicas
	}
	override(&c.NATS.MaxAge, s.MaxAge)
	if s.MaxPerSubject != 0 {
		c.NATS.MaxPerSubject = s.MaxPerSubject
	}
	override(&c.DataDir, s.DataDir)
	override(&c.Heartbeat, s.Heartbeat)
	override(&c.LogLevel, s.LogLevel)
	override(&c.LogFormat, s.LogFormat)
	if c.DataDir == "" {
		c.DataDir = defaultDataDir
	}
	for i := range c.Tenants {
		if c.Tenants[i].Verify == "" {
			c.Tenants[i].Verify = c.Verify
		}
		c.Tenants[i].override(tenantConfig{
			ClientID: s.ClientID, SecretFile: s.SecretFile, Collections: s.Collections, Since: s.Since, Filter: s.Filter,
			Poll: s.PollInterval, APIURL: s.APIURL, AuthURL: s.AuthURL, UserAgent: s.UserAgent,
			Drop: s.Drop, Hash: s.Hash, HashKeyFile: s.HashKeyFile,
		})
		c.Tenants[i].noAPI = s.noAPI
		if err := c.Tenants[i].complete(p); err != nil {
			return nil, usageError{fmt.Errorf("tenant %q: %w", c.Tenants[i].Name, err)}
		}
		if slices.ContainsFunc(c.Tenants[:i], func(t tenantConfig) bool { return t.Name == c.Tenants[i].Name }) {
			return nil, usagef("tenant %q: named twice", c.Tenants[i].Name)
		}
	}
	if err := c.NATS.check(); err != nil {
		return nil, usageError{err}
	}
	if err := c.readHeartbeat(); err != nil {
		return nil, usageError{err}
	}
	if _, err := c.level(); err != nil {
		return nil, usageError{err}
	}
	if c.LogFormat != "" && c.LogFormat != "text" && c.LogFormat != "json" {
		return nil, usagef("log_format: %q: must be text or json", c.LogFormat)
	}
	return c, nil
}

// loadControl is loadSome, of a command that asks running instances and never the API: it needs no credentials of it.
func (s settings) loadControl(p *program) (*config, error) {
	s.noAPI = true
	return s.loadSome(p)
}

// loadSome loads the settings of a command that looks at what others do. With a file, --tenant chooses one of those that it names.
func (s settings) loadSome(p *program) (*config, error) {
	wanted := ""
	if s.Config != "" {
		wanted, s.Tenant = s.Tenant, ""
	}
	cfg, err := s.load(p)
	if err != nil || wanted == "" {
		return cfg, err
	}
	for _, t := range cfg.Tenants {
		if t.Name == wanted {
			cfg.Tenants = []tenantConfig{t}
			return cfg, nil
		}
	}
	return nil, usagef("%s does not name the tenant %q", s.Config, wanted)
}

// A shorter heartbeat than heartbeatMin is missed on a busy machine; a longer one than heartbeatMax makes a takeover slow
// beyond use.
const (
	heartbeatMin = 100 * time.Millisecond
	heartbeatMax = time.Hour
)

func (c *config) readHeartbeat() error {
	if c.Heartbeat == "" {
		return nil
	}
	pause, err := time.ParseDuration(c.Heartbeat)
	if err != nil || pause < heartbeatMin || pause > heartbeatMax {
		return fmt.Errorf("heartbeat: %q: must be a time such as 5s, from 100ms to 1h", c.Heartbeat)
	}
	c.heartbeat = pause
	return nil
}

// readLimits reads what a stream is to keep of the past.
func (c *natsConfig) readLimits() error {
	c.limits = bridge.Limits{MaxPerSubject: int64(c.MaxPerSubject)}
	if c.MaxPerSubject < 0 {
		return fmt.Errorf("nats: max_messages_per_subject: %d: must not be negative; 0 is unlimited", c.MaxPerSubject)
	}
	if c.MaxAge == "" || c.MaxAge == "0" {
		return nil
	}
	age := c.MaxAge
	if m := daysRE.FindStringSubmatch(age); m != nil {
		days, _ := strconv.Atoi(m[1]) // digits alone
		age = fmt.Sprintf("%dh", 24*days)
	}
	var err error
	if c.limits.MaxAge, err = time.ParseDuration(age); err != nil || c.limits.MaxAge <= 0 {
		return fmt.Errorf("nats: max_age: %q: must be a time such as 90d or 2160h, or 0 for unlimited", c.MaxAge)
	}
	if err := c.limits.Check(); err != nil {
		return fmt.Errorf("nats: max_age: %w", err)
	}
	return nil
}

// override lets what flags or variables say go before the file. A server and a context are two ways to say the same.
func (c *natsConfig) override(url, creds, context string, port int) {
	if url != "" || context != "" {
		c.URL, c.Context = url, context
	}
	c.Creds = cmp.Or(creds, c.Creds)
	c.Port = cmp.Or(port, c.Port, natsPort)
}

// runSettings are those of an instance that follows: what run needs and check looks at.
type runSettings struct {
	settings
	httpSettings
	VerifyEvery string `env:"CLOCKBRIDGE_VERIFY_EVERY" placeholder:"24h" help:"Compare every stream with the API's list now and then, as verify does. Default: never."`
	ShowData    string `env:"CLOCKBRIDGE_SHOW_DATA" placeholder:"true" help:"Show on the status page whose clocking has changed and how, which is personal data. Default: false, the record's id alone."`
}

// load merges file, environment and flags, as that of settings does.
func (s *runSettings) load(p *program) (*config, error) {
	c, err := s.settings.load(p)
	if err != nil {
		return nil, err
	}
	c.HTTPAddr = s.addr(c.HTTPAddr)
	if err := c.verifyEvery(s.VerifyEvery); err != nil {
		return nil, err
	}
	return c, c.showData(s.ShowData)
}

// verifyEvery lets what a flag or a variable says of verify_every go before what the file says.
func (c *config) verifyEvery(every string) error {
	for i := range c.Tenants {
		c.Tenants[i].override(tenantConfig{Verify: every})
		if err := c.Tenants[i].readVerify(); err != nil {
			return usageError{err}
		}
	}
	return nil
}

// showData lets what a flag or a variable says of show_data go before what the file says.
func (c *config) showData(show string) (err error) {
	if show == "" {
		return nil
	}
	if c.ShowData, err = strconv.ParseBool(show); err != nil {
		return usagef("show_data: %q: must be true or false", show)
	}
	return nil
}

func (c *config) level() (slog.Level, error) {
	var level slog.Level
	if c.LogLevel == "" {
		return slog.LevelInfo, nil
	}
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		return 0, fmt.Errorf("log_level: %q: must be debug, info, warn or error", c.LogLevel)
	}
	return level, nil
}

// logger writes to stderr: text on a terminal, JSON otherwise, unless the configuration says which.
func (c *config) logger(p *program) *slog.Logger {
	level, _ := c.level() // load has checked it
	options := &slog.HandlerOptions{Level: level, ReplaceAttr: spellOut}
	if c.LogFormat == "text" || c.LogFormat == "" && p.errTerminal {
		return slog.New(slog.NewTextHandler(p.stderr, options))
	}
	return slog.New(slog.NewJSONHandler(p.stderr, options))
}

// spellOut writes times such as 2m30s as the text format does: in JSON they would be nanoseconds.
func spellOut(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.StringValue(a.Value.Duration().String())
	}
	return a
}
