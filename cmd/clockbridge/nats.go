package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/synadia-io/orbit.go/natscontext"
)

// connect connects to NATS, and goes on trying behind the caller's back for ever, credentials refused or not: a feed says
// itself that it is waiting.
func connect(c natsConfig, log *slog.Logger, more ...nats.Option) (*nats.Conn, error) {
	said := "" // the last trouble that was logged: an attempt follows the other, with the same result
	trouble := func(err error) {
		if err != nil && err.Error() != said {
			said = err.Error()
			log.Warn("NATS not reachable", "error", said)
		}
	}
	connected := func(nc *nats.Conn) {
		said = ""
		if url := nc.ConnectedUrl(); url != "" { // else it is gone again
			log.Info("NATS connected", "url", redact(url))
		}
	}
	// The handlers are called one after the other.
	options := append([]nats.Option{
		nats.Name("clockbridge"),
		nats.MaxReconnects(-1),
		nats.RetryOnFailedConnect(true),
		nats.IgnoreAuthErrorAbort(), // credentials get rotated
		nats.ReconnectBufSize(-1),   // nothing is sent behind a feed's back after a reconnect
		// Whoever connects or writes holds the connection's lock, which all feeds need, and the end of the process too.
		nats.Timeout(3 * time.Second),
		nats.FlusherTimeout(2 * time.Second),
		nats.PingInterval(5 * time.Second), // a server that vanished without a word is given up after two of them, and another one tried
		nats.ConnectHandler(connected),
		nats.ReconnectHandler(connected),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) { trouble(err) }),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				log.Warn("NATS connection lost", "error", err.Error())
			}
		}),
		nats.ErrorHandler(func(nc *nats.Conn, _ *nats.Subscription, err error) {
			if !nc.IsConnected() {
				trouble(err)
				return
			}
			log.Warn("NATS error", "error", err.Error())
		}),
	}, more...)
	if c.Context != "" {
		nc, _, err := natscontext.Connect(c.Context, options...)
		if err != nil {
			return nil, fmt.Errorf("connect to NATS with context %s: %w", c.Context, withoutURL(err))
		}
		return nc, nil
	}
	if _, err := servers(c.URL); err != nil {
		return nil, fmt.Errorf("connect to NATS: NATS_URL: %w", err)
	}
	credentials, err := c.credentials()
	if err != nil {
		return nil, fmt.Errorf("connect to NATS: %w", err)
	}
	nc, err := nats.Connect(c.URL, append(options, credentials...)...)
	if err != nil {
		return nil, fmt.Errorf("connect to NATS at %s: %w", redact(c.URL), withoutURL(err))
	}
	return nc, nil
}

// withoutURL takes the URL, password and all, out of an error that came from reading one.
func withoutURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return errors.New("not a URL such as nats://nats.example.com:4222")
	}
	return err
}

// credentials are those of the environment, as the nats CLI knows it, or else those of the configuration. What stands in a file of
// its own is read again for every connection.
func (c *natsConfig) credentials() ([]nats.Option, error) {
	var options []nats.Option
	from := func(value, variable string) string {
		return cmp.Or(os.Getenv(variable), value)
	}
	if creds := from(c.Creds, "NATS_CREDS"); creds != "" {
		options = append(options, nats.UserCredentials(creds))
	}
	if file := from(c.NKey, "NATS_NKEY"); file != "" {
		option, err := nats.NkeyOptionFromSeed(file)
		if err != nil {
			return nil, fmt.Errorf("nkey %s: %w", file, err)
		}
		options = append(options, option)
	}
	password, err := secretFrom(c.PasswordFile, "NATS_PASSWORD")
	if err != nil {
		return nil, err
	}
	if user := from(c.User, "NATS_USER"); user != "" {
		options = append(options, nats.UserInfoHandler(func() (string, string) { return user, password() }))
	}
	token, err := secretFrom(c.TokenFile, "NATS_TOKEN")
	if err != nil {
		return nil, err
	}
	if token() != "" {
		options = append(options, nats.TokenHandler(token))
	}
	if ca := from(c.CA, "NATS_CA"); ca != "" {
		options = append(options, nats.RootCAs(ca))
	}
	cert, key := from(c.Cert, "NATS_CERT"), from(c.Key, "NATS_KEY")
	if (cert == "") != (key == "") {
		return nil, errors.New("a client certificate needs both its file and its key's: cert and key")
	}
	if cert != "" {
		options = append(options, nats.ClientCert(cert, key))
	}
	return options, nil
}

// secretFrom returns a function that gives what the variable holds or, if it is not set, reads file anew. A file that can no longer
// be read gives "", which the server refuses, and the connection is tried again.
func secretFrom(file, variable string) (func() string, error) {
	if value := os.Getenv(variable); value != "" || file == "" {
		return func() string { return value }, nil
	}
	if _, err := readSecret(file); err != nil {
		return nil, err
	}
	return func() string {
		value, _ := readSecret(file)
		return value
	}, nil
}

// servers reads a list of URLs as nats.Connect does: the scheme may be missing. Its error shows nothing of them.
func servers(list string) ([]*url.URL, error) {
	var all []*url.URL
	for s := range strings.SplitSeq(list, ",") {
		s = strings.TrimSpace(s)
		if !strings.Contains(s, "://") {
			s = "nats://" + s
		}
		u, err := url.Parse(s)
		if err != nil || u.Hostname() == "" {
			return nil, errors.New("not a URL such as nats://nats.example.com:4222, or several separated by commas")
		}
		all = append(all, u)
	}
	return all, nil
}

// redact shows of a list of URLs no more than where they lead: not user, password and token, nor what follows the host, where half a
// password ends up that has a slash in it.
func redact(list string) string {
	all, err := servers(list)
	if err != nil {
		return err.Error()
	}
	shown := make([]string, len(all))
	for i, u := range all {
		shown[i] = u.Scheme + "://" + u.Host
	}
	return strings.Join(shown, ",")
}

// Limits of the embedded server: without them it claims most of the machine.
const (
	embeddedMemory = 64 << 20
	embeddedStore  = 1 << 40
)

// startEmbedded starts a JetStream server that keeps its data in dir, on 127.0.0.1: on port, or on any for -1. It syncs
// every write, since nobody else holds a copy.
func startEmbedded(dir string, port int, log *slog.Logger) (*server.Server, error) {
	if port > 0 {
		// The server itself would not say what to do about it.
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if errors.Is(err, syscall.EADDRINUSE) {
			return nil, fmt.Errorf("start embedded NATS: port %d is taken: stop what listens there, or set NATS_URL if it is the NATS server to use", port)
		}
		if err != nil {
			return nil, fmt.Errorf("start embedded NATS: %w", err)
		}
		if err := l.Close(); err != nil {
			return nil, fmt.Errorf("start embedded NATS: %w", err)
		}
	}
	s, err := server.NewServer(&server.Options{
		ServerName: "clockbridge", Host: "127.0.0.1", Port: port, NoSigs: true,
		JetStream: true, StoreDir: filepath.Join(dir, "nats"), SyncAlways: true,
		JetStreamMaxMemory: embeddedMemory, JetStreamMaxStore: embeddedStore,
	})
	if err != nil {
		return nil, fmt.Errorf("start embedded NATS: %w", err)
	}
	fatal := make(chan string, 1)
	s.SetLoggerV2(serverLog{log, fatal}, false, false, false)
	s.Start()
	ready := make(chan bool, 1)
	go func() { ready <- s.ReadyForConnections(10*time.Second) && s.JetStreamEnabled() }()
	select {
	case message := <-fatal:
		s.Shutdown()
		return nil, fmt.Errorf("start embedded NATS in %s: %s", dir, message)
	case ok := <-ready:
		if !ok {
			s.Shutdown()
			return nil, fmt.Errorf("start embedded NATS in %s: not ready within 10 s; see the log above", dir)
		}
	}
	return s, nil
}

// serverLog hands the server's warnings and errors to slog, and what ends it to whoever starts it.
type serverLog struct {
	log   *slog.Logger
	fatal chan<- string
}

func (l serverLog) Noticef(string, ...any)         {}
func (l serverLog) Debugf(string, ...any)          {}
func (l serverLog) Tracef(string, ...any)          {}
func (l serverLog) Warnf(format string, v ...any)  { l.say(slog.LevelWarn, format, v) }
func (l serverLog) Errorf(format string, v ...any) { l.say(slog.LevelError, format, v) }

func (l serverLog) Fatalf(format string, v ...any) {
	select {
	case l.fatal <- fmt.Sprintf(format, v...):
	default: // nobody starts it any more
		l.say(slog.LevelError, format, v)
	}
}

func (l serverLog) say(level slog.Level, format string, v []any) {
	l.log.Log(context.Background(), level, "embedded NATS", "message", fmt.Sprintf(format, v...))
}
