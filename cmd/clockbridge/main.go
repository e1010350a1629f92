// Command clockbridge keeps NATS JetStream streams that are exact logs of the clockings of myProtime tenants.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/alecthomas/kong"
	"golang.org/x/term"
)

// Exit codes.
const (
	exitOK      = 0
	exitFailed  = 1
	exitUsage   = 2 // wrong usage or configuration
	exitDiffers = 3 // verify found differences
)

type cli struct {
	Run         runCmd         `cmd:"" help:"Follow every configured feed. With no NATS URL it starts a JetStream server of its own in the data directory."`
	Demo        demoCmd        `cmd:"" help:"Watch it work: a simulated tenant, a JetStream server in a temporary directory, and every change as it lands."`
	Sim         simCmd         `cmd:"" help:"Serve a simulated myProtime API, token endpoint included, to develop against."`
	Check       checkCmd       `cmd:"" help:"Check configuration, token and scopes, API, NATS, streams and data directory, a line each. Never starts a delta."`
	Verify      verifyCmd      `cmd:"" help:"Compare the API's present list with the last message of every record, without touching the delta. Ends with 3 if they differ."`
	Status      statusCmd      `cmd:"" help:"What each feed is doing, from the instances that run. Ends with 1 if one is not well."`
	Resync      resyncCmd      `cmd:"" help:"Ask the running instances to start every delta anew, publishing only what differs: when the stream may have missed something."`
	Pause       pauseCmd       `cmd:"" help:"Ask the running instances to neither poll nor publish, across restarts and takeovers, until they are resumed. A delta expires after 72 hours."`
	Resume      resumeCmd      `cmd:"" help:"Ask the running instances to go on with what is paused."`
	SyncNow     syncNowCmd     `cmd:"" help:"Ask the running instances to poll at once, or to try again what they wait with."`
	Forget      forgetCmd      `cmd:"" help:"Show what the streams of a tenant hold of one person, and, with --yes, have the running instances erase it for good."`
	Schema      schemaCmd      `cmd:"" help:"Print what subscribers may rely on: an AsyncAPI document of subjects, streams and messages, or the JSON Schema of a payload."`
	Collections collectionsCmd `cmd:"" help:"List the collections that can be followed: scope, filter, and what to know of each. Needs no configuration."`
	Tail        tailCmd        `cmd:"" help:"Show changes as they land in a stream, from now or from a point on."`
	Replay      replayCmd      `cmd:"" help:"Read a part of a stream again: to the terminal, or to another subject at any speed."`
	History     historyCmd     `cmd:"" help:"What became of one record, version by version, and what changed in each."`
	Export      exportCmd      `cmd:"" help:"The state of every record at one position, from the stream alone."`
	Clocking    clockingCmd    `cmd:"" help:"Create, get and list clockings."`
	Version     versionCmd     `cmd:"" help:"Print the version."`
}

// program is what a command sees of the process.
type program struct {
	stdout, stderr io.Writer
	terminal       bool // stdout is one
	errTerminal    bool // stderr is one
	version        string
}

// usageError is wrong usage or configuration: exit code 2.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	p := &program{
		stdout: os.Stdout, stderr: os.Stderr,
		terminal:    term.IsTerminal(int(os.Stdout.Fd())),
		errTerminal: term.IsTerminal(int(os.Stderr.Fd())),
		version:     version(),
	}
	context.AfterFunc(ctx, stop) // whoever asks twice does not wait for a graceful end
	code := run(ctx, os.Args[1:], p)
	stop()
	os.Exit(code)
}

// helpShown ends the parsing of a command line that asked for help.
type helpShown struct{ code int }

func run(ctx context.Context, args []string, p *program) (code int) {
	defer func() {
		if r := recover(); r != nil {
			shown, ok := r.(helpShown)
			if !ok {
				panic(r)
			}
			code = shown.code
		}
	}()
	var c cli
	parser, err := kong.New(&c,
		kong.Name("clockbridge"),
		kong.Description("Keeps NATS JetStream streams that are exact logs of the clockings of myProtime tenants."),
		kong.Writers(p.stdout, p.stderr),
		kong.Exit(func(code int) { panic(helpShown{code}) }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 110}),
	)
	if err != nil {
		panic(err) // the grammar above is wrong
	}
	command, err := parser.Parse(args)
	if err != nil {
		fmt.Fprintf(p.stderr, "clockbridge: %v\ntry: clockbridge --help\n", err)
		return exitUsage
	}
	command.BindTo(ctx, (*context.Context)(nil))
	err = command.Run(p)
	var usage usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage):
		code = exitUsage
	case errors.Is(err, errDiffers):
		return exitDiffers
	default:
		code = exitFailed
	}
	if !errors.Is(err, errShown) {
		fmt.Fprintf(p.stderr, "clockbridge: %v\n", err)
	}
	return code
}

// errShown is returned by commands whose output has said what failed.
var errShown = errors.New("failed")

type versionCmd struct{}

func (versionCmd) Run(p *program) error {
	fmt.Fprintln(p.stdout, "clockbridge", p.version)
	return nil
}

// stamp is set by the linker in released binaries.
var stamp string

func version() string {
	if stamp != "" {
		return stamp
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "devel"
}
