//go:build natscli

package main

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"clockbridge/bridge"
)

var natsCLI = flag.String("nats-cli", "nats", "the nats CLI")

// TestNATSCLI: the nats CLI finds the service and its endpoints, and reads the streams, as operators and subscribers use it.
func TestNATSCLI(t *testing.T) {
	a := newAccounts(t)
	operator, _ := a.connect("operator")
	a.bridge("first")
	a.settled(operator, bridge.StateHealthy)
	for _, test := range []struct {
		user, args string
		want       []string
	}{
		{"operator", "micro list", []string{"clockbridge", "1.0.0"}},
		{"operator", "micro info clockbridge", []string{"forget", "pause", "repair", "resume", "resync", "status", "sync-now", "verify"}},
		{"operator", "micro stats clockbridge", []string{"sync-now"}},
		{"operator", "micro ping clockbridge", []string{"clockbridge"}},
		{"operator", "request clockbridge.acme.clockings.status {} --raw", []string{`"state":"healthy"`}},
		{"operator", "--js-domain clockbridge stream ls -a", []string{"PROTIME_ACME_CLOCKINGS", "PROTIME_OTHER_CLOCKINGS"}},
		{"operator", "--js-domain clockbridge stream info PROTIME_OTHER_CLOCKINGS", []string{"protime.other.clockings.*"}},
		{"operator", "--js-domain clockbridge stream get PROTIME_OTHER_CLOCKINGS 1", []string{"protime.other.clockings.19250"}},
		{"operator", "--js-domain clockbridge kv get CLOCKBRIDGE feed.acme.clockings --raw", []string{`"checkpoint"`}},
		{"operator", "--js-domain clockbridge sub protime.acme.clockings.* --stream PROTIME_ACME_CLOCKINGS --last-per-subject --count 1", []string{"19250"}},
		{"operator", "--js-domain clockbridge consumer add PROTIME_ACME_CLOCKINGS payroll --pull --deliver all --ack explicit --defaults", []string{"payroll"}},
		{"acme", "--js-domain clockbridge consumer next PROTIME_ACME_CLOCKINGS payroll --count 1", []string{"protime.acme.clockings.19250"}},
		{"acme", "--js-domain clockbridge stream info PROTIME_ACME_CLOCKINGS", []string{"protime.acme.clockings.*"}},
		{"acme", "--js-domain clockbridge stream get PROTIME_ACME_CLOCKINGS --last-for protime.acme.clockings.19250", []string{"19250"}},
		{"staff", "--js-domain clockbridge sub protime.acme.clockings.* --stream PROTIME_ACME_CLOCKINGS --last-per-subject --count 1", []string{"19250"}},
		{"staff", "--js-domain clockbridge sub protime.acme.clockings.* --stream PROTIME_ACME_CLOCKINGS --new --count 1", []string{"protime.acme.clockings."}},
	} {
		t.Run(test.user+" "+test.args, func(t *testing.T) {
			args := append([]string{"--server", a.server.ClientURL(), "--user", test.user, "--password", "secret-of-" + test.user, "--no-context", "--timeout", "3s"}, strings.Fields(test.args)...)
			cmd := exec.CommandContext(t.Context(), *natsCLI, args...)
			cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error)
			go func() { ended <- cmd.Wait() }()
			for tick := time.Tick(100 * time.Millisecond); ; {
				select {
				case err := <-ended:
					if err != nil {
						t.Errorf("%v\n%s", err, out.String())
					}
				case <-tick:
					if strings.Contains(test.args, "--new") { // it shows what comes from now on
						a.insert("acme")
					}
					continue
				}
				break
			}
			for _, want := range test.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("%q is missing:\n%s", want, out.String())
				}
			}
		})
	}
}
