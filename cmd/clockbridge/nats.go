package main

import (
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

// connect connects to NATS, and goes on trying behind the caller's back for ever: a feed says itself that it is waiting.
func connect(c natsConfig, log *slog.Logger, more ...nats.Option) (*nats.Conn, error) {
	options := append([]nats.Option{
		nats.Name("clockbridge"),
		nats.MaxReconnects(-1),
		nats.RetryOnFailedConnect(true),
		nats.ReconnectBufSize(-1), // nothing is sent behind a feed's back after a reconnect
		nats.Timeout(5 * time.Second),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				log.Warn("NATS connection lost", "error", err.Error())
			}
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) { log.Info("NATS connected", "url", nc.ConnectedUrlRedacted()) }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			log.Warn("NATS error", "error", err.Error())
		}),
	}, more...)
	if c.Context != "" {
		nc, _, err := natscontext.Connect(c.Context, options...)
		if err != nil {
			return nil, fmt.Errorf("connect to NATS with context %s: %w", c.Context, err)
		}
		return nc, nil
	}
	credentials, err := c.credentials()
	if err != nil {
		return nil, fmt.Errorf("connect to NATS: %w", err)
	}
	nc, err := nats.Connect(c.URL, append(options, credentials...)...)
	if err != nil {
		return nil, fmt.Errorf("connect to NATS at %s: %w", redact(c.URL), err)
	}
	return nc, nil
}

// credentials are those of the file, and the environment's as the nats CLI knows it.
func (c *natsConfig) credentials() ([]nats.Option, error) {
	var options []nats.Option
	from := func(value, variable string) string {
		if value != "" {
			return value
		}
		return os.Getenv(variable)
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
	password, token := os.Getenv("NATS_PASSWORD"), os.Getenv("NATS_TOKEN")
	for file, secret := range map[string]*string{c.PasswordFile: &password, c.TokenFile: &token} {
		if file == "" {
			continue
		}
		var err error
		if *secret, err = readSecret(file); err != nil {
			return nil, err
		}
	}
	if user := from(c.User, "NATS_USER"); user != "" {
		options = append(options, nats.UserInfo(user, password))
	}
	if token != "" {
		options = append(options, nats.Token(token))
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

// redact takes user, password and token out of a list of URLs.
func redact(urls string) string {
	list := strings.Split(urls, ",")
	for i, s := range list {
		u, err := url.Parse(strings.TrimSpace(s))
		switch {
		case err != nil:
			list[i] = "(not a URL)"
		case u.User != nil:
			u.User = nil
			list[i] = u.String()
		}
	}
	return strings.Join(list, ",")
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
		// The server itself would only say that it did not get ready.
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
	s.SetLoggerV2(serverLog{log}, false, false, false)
	s.Start()
	if !s.ReadyForConnections(10*time.Second) || !s.JetStreamEnabled() {
		s.Shutdown()
		return nil, fmt.Errorf("start embedded NATS in %s: not ready within 10 s; see the log above", dir)
	}
	return s, nil
}

// serverLog hands the server's warnings and errors to slog.
type serverLog struct{ log *slog.Logger }

func (l serverLog) Noticef(string, ...any)        {}
func (l serverLog) Debugf(string, ...any)         {}
func (l serverLog) Tracef(string, ...any)         {}
func (l serverLog) Warnf(format string, v ...any) { l.say(slog.LevelWarn, format, v) }
func (l serverLog) Errorf(format string, v ...any) {
	l.say(slog.LevelError, format, v)
}
func (l serverLog) Fatalf(format string, v ...any) { l.say(slog.LevelError, format, v) }

func (l serverLog) say(level slog.Level, format string, v []any) {
	l.log.Log(context.Background(), level, "embedded NATS", "message", fmt.Sprintf(format, v...))
}
