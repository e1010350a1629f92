package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"
)

// TestConnect_ways connects to a real server in every way that users of NATS know: by settings, and by the environment.
func TestConnect_ways(t *testing.T) {
	pki := newPKI(t)
	userKey, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	public, err := userKey.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := userKey.Seed()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	nkey, password, token := file("nkey", string(seed)), file("password", "hunter2\n"), file("token", "s3cr3t\n")
	jwtServer, creds := jwtAccount(t)
	credsFile := file("creds", creds)

	user := server.Options{Username: "bridge", Password: "hunter2"}
	secure := server.Options{TLS: true, TLSConfig: &tls.Config{Certificates: []tls.Certificate{pki.server}, MinVersion: tls.VersionTLS12}}
	mutual := server.Options{TLS: true, TLSVerify: true, TLSConfig: &tls.Config{
		Certificates: []tls.Certificate{pki.server}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pki.pool, MinVersion: tls.VersionTLS12,
	}}
	web := server.Options{Websocket: server.WebsocketOpts{Host: "127.0.0.1", Port: -1, NoTLS: true}}
	secureWeb := server.Options{Username: "bridge", Password: "hunter2", Websocket: server.WebsocketOpts{
		Host: "127.0.0.1", Port: -1, TLSConfig: &tls.Config{Certificates: []tls.Certificate{pki.server}, MinVersion: tls.VersionTLS12},
	}}
	tests := []struct {
		name   string
		server server.Options
		config natsConfig // the URL is filled in
		env    map[string]string
		url    func(s *server.Server) string
	}{
		{name: "no credentials"},
		{name: "second of a list", url: func(s *server.Server) string { return "nats://127.0.0.1:1," + s.ClientURL() }},
		{name: "without a scheme", url: func(s *server.Server) string { return strings.TrimPrefix(s.ClientURL(), "nats://") }},
		{name: "user and password file", server: user, config: natsConfig{User: "bridge", PasswordFile: password}},
		{name: "NATS_USER and NATS_PASSWORD", server: user, env: map[string]string{"NATS_USER": "bridge", "NATS_PASSWORD": "hunter2"}},
		{name: "user and password in NATS_URL", server: user, url: func(s *server.Server) string { return fmt.Sprintf("nats://bridge:hunter2@%s", s.Addr()) }},
		{name: "token file", server: server.Options{Authorization: "s3cr3t"}, config: natsConfig{TokenFile: token}},
		{name: "NATS_TOKEN", server: server.Options{Authorization: "s3cr3t"}, env: map[string]string{"NATS_TOKEN": "s3cr3t"}},
		{name: "nkey", server: server.Options{Nkeys: []*server.NkeyUser{{Nkey: public}}}, config: natsConfig{NKey: nkey}},
		{name: "NATS_NKEY", server: server.Options{Nkeys: []*server.NkeyUser{{Nkey: public}}}, env: map[string]string{"NATS_NKEY": nkey}},
		{name: "creds", server: jwtServer, config: natsConfig{Creds: credsFile}},
		{name: "NATS_CREDS", server: jwtServer, env: map[string]string{"NATS_CREDS": credsFile}},
		{name: "TLS", server: secure, config: natsConfig{CA: pki.ca}},
		{name: "NATS_CA", server: secure, env: map[string]string{"NATS_CA": pki.ca}},
		{name: "mutual TLS", server: mutual, config: natsConfig{CA: pki.ca, Cert: pki.cert, Key: pki.key}},
		{name: "NATS_CERT and NATS_KEY", server: mutual, env: map[string]string{"NATS_CA": pki.ca, "NATS_CERT": pki.cert, "NATS_KEY": pki.key}},
		{name: "NATS_USER and NATS_PASSWORD before the file's", server: user, config: natsConfig{User: "nobody", PasswordFile: token},
			env: map[string]string{"NATS_USER": "bridge", "NATS_PASSWORD": "hunter2"}},
		{name: "NATS_USER before the file's", server: user, config: natsConfig{User: "nobody", PasswordFile: password}, env: map[string]string{"NATS_USER": "bridge"}},
		{name: "NATS_PASSWORD before the file's", server: user, config: natsConfig{User: "bridge", PasswordFile: token}, env: map[string]string{"NATS_PASSWORD": "hunter2"}},
		{name: "NATS_TOKEN before the file's", server: server.Options{Authorization: "s3cr3t"}, config: natsConfig{TokenFile: password}, env: map[string]string{"NATS_TOKEN": "s3cr3t"}},
		{name: "NATS_NKEY before the file's", server: server.Options{Nkeys: []*server.NkeyUser{{Nkey: public}}}, config: natsConfig{NKey: password}, env: map[string]string{"NATS_NKEY": nkey}},
		{name: "NATS_CREDS before the file's", server: jwtServer, config: natsConfig{Creds: password}, env: map[string]string{"NATS_CREDS": credsFile}},
		{name: "NATS_CA before the file's", server: secure, config: natsConfig{CA: password}, env: map[string]string{"NATS_CA": pki.ca}},
		{name: "NATS_CERT and NATS_KEY before the file's", server: mutual, config: natsConfig{CA: pki.ca, Cert: password, Key: password},
			env: map[string]string{"NATS_CERT": pki.cert, "NATS_KEY": pki.key}},
		{name: "WebSocket", server: web, url: func(s *server.Server) string { return s.WebsocketURL() }},
		{name: "WebSocket with TLS and a password", server: secureWeb, config: natsConfig{CA: pki.ca, User: "bridge", PasswordFile: password},
			url: func(s *server.Server) string { return s.WebsocketURL() }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			noEnvironment(t)
			for name, value := range tt.env {
				t.Setenv(name, value)
			}
			s := startWith(t, tt.server)
			tt.config.URL = s.ClientURL()
			if tt.url != nil {
				tt.config.URL = tt.url(s)
			}
			reached(t, tt.config, s)
		})
	}
	t.Run("context of the nats CLI", func(t *testing.T) {
		noEnvironment(t)
		s := startWith(t, user)
		context := file("context.json", fmt.Sprintf(`{"url":%q,"user":"bridge","password":"hunter2"}`, s.ClientURL()))
		reached(t, natsConfig{Context: context}, s)
	})
	t.Run("NATS_CONTEXT", func(t *testing.T) {
		noEnvironment(t)
		s := startWith(t, user)
		t.Setenv("XDG_CONFIG_HOME", dir)
		if err := os.MkdirAll(filepath.Join(dir, "nats", "context"), 0o700); err != nil {
			t.Fatal(err)
		}
		file(filepath.Join("nats", "context", "prod.json"), fmt.Sprintf(`{"url":%q,"user":"bridge","password":"hunter2"}`, s.ClientURL()))
		t.Setenv("NATS_CONTEXT", "prod")
		c, err := load(t, "--config", write(t, exampleConfig))
		if err != nil {
			t.Fatal(err)
		}
		reached(t, c.NATS, s)
	})
}

// reached connects as clockbridge does, and looks whether the server sees a connection of that name.
func reached(t *testing.T, c natsConfig, s *server.Server) {
	t.Helper()
	var log logBuffer
	nc, err := connect(c, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if !poll(10*time.Second, nc.IsConnected) {
		t.Fatalf("not connected: %v\n%s", nc.LastError(), log.String())
	}
	if err := nc.FlushTimeout(5 * time.Second); err != nil {
		t.Fatal(err)
	}
	if nc.Opts.MaxReconnect != -1 {
		t.Errorf("a lost connection is given up after %d attempts, want never", nc.Opts.MaxReconnect)
	}
	conns, err := s.Connz(nil)
	if err != nil || conns.NumConns != 1 || conns.Conns[0].Name != "clockbridge" {
		t.Errorf("the server sees %+v (%v), want one connection called clockbridge", conns.Conns, err)
	}
	for _, secret := range []string{"hunter2", "s3cr3t", "SUA"} {
		if strings.Contains(log.String(), secret) {
			t.Errorf("the log shows a secret:\n%s", log.String())
		}
	}
}

func startWith(t *testing.T, o server.Options) *server.Server {
	t.Helper()
	o.Host, o.Port, o.NoSigs, o.NoLog = "127.0.0.1", -1, true, true
	s, err := server.NewServer(&o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("nats-server is not ready")
	}
	return s
}

// jwtAccount makes an operator with an account and a user, as a server in operator mode knows them, and the user's credentials.
func jwtAccount(t *testing.T) (server.Options, string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	pair := func(make func() (nkeys.KeyPair, error)) (nkeys.KeyPair, string) {
		t.Helper()
		key, err := make()
		must(err)
		public, err := key.PublicKey()
		must(err)
		return key, public
	}
	operatorKey, operatorID := pair(nkeys.CreateOperator)
	accountKey, accountID := pair(nkeys.CreateAccount)
	userKey, userID := pair(nkeys.CreateUser)
	operator := jwt.NewOperatorClaims(operatorID)
	_, err := operator.Encode(operatorKey)
	must(err)
	account := jwt.NewAccountClaims(accountID)
	accountJWT, err := account.Encode(operatorKey)
	must(err)
	user := jwt.NewUserClaims(userID)
	userJWT, err := user.Encode(accountKey)
	must(err)
	seed, err := userKey.Seed()
	must(err)
	creds, err := jwt.FormatUserConfig(userJWT, seed)
	must(err)
	resolver := &server.MemAccResolver{}
	must(resolver.Store(accountID, accountJWT))
	return server.Options{TrustedOperators: []*jwt.OperatorClaims{operator}, AccountResolver: resolver}, string(creds)
}

// pki is an authority with a certificate for a server and one for a client, in files where a client needs them.
type pki struct {
	ca, cert, key string
	pool          *x509.CertPool
	server        tls.Certificate
}

func newPKI(t *testing.T) pki {
	t.Helper()
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		must(os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
		return path
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	must(err)
	issue := func(serial int64, name string) (cert, key []byte) {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(err)
		der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}, ca, &k.PublicKey, caKey)
		must(err)
		keyDER, err := x509.MarshalPKCS8PrivateKey(k)
		must(err)
		return der, keyDER
	}
	p := pki{ca: write("ca.pem", "CERTIFICATE", caDER), pool: x509.NewCertPool()}
	authority, err := x509.ParseCertificate(caDER)
	must(err)
	p.pool.AddCert(authority)
	cert, key := issue(2, "server")
	p.server, err = tls.LoadX509KeyPair(write("server.pem", "CERTIFICATE", cert), write("server.key", "PRIVATE KEY", key))
	must(err)
	cert, key = issue(3, "client")
	p.cert, p.key = write("client.pem", "CERTIFICATE", cert), write("client.key", "PRIVATE KEY", key)
	return p
}
