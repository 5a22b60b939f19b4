// Package cli has the commands of an operator: what a topology looks like, who runs it and how far it is, and how it is
// set back. Command tailrace has them for any application; an application's own binary gets them by one call:
//
//	func main() { os.Exit(cli.Main(newApp)) }
//
//	func newApp() (*processor.App, error) { … }
//
// Without a subcommand the binary runs the application. With one it is a tool for it, which knows the application's
// id, topology, brokers and state directory:
//
//	inbox topology
//	inbox status --watch
//	inbox reset --to earliest --dry-run
//
// A program that has flags of its own calls Command and Execute instead, and decides itself when to.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"tailrace.dev/internal/engine"
	"tailrace.dev/processor"
)

// The exit codes of all commands.
const (
	// ExitOK: it was done, or there was nothing to do.
	ExitOK = 0
	// ExitFailure: something went wrong that has no code of its own.
	ExitFailure = 1
	// ExitUsage: the command line is wrong.
	ExitUsage = 2
	// ExitBusy: refused, because members run, or a directory is in use.
	ExitBusy = 3
	// ExitNotFound: the application or a topic is not known.
	ExitNotFound = 4
	// ExitUnreachable: no broker answers.
	ExitUnreachable = 5
	// ExitDenied: the brokers did not accept who we are, or do not allow it.
	ExitDenied = 6
	// ExitUnconfirmed: nobody said yes.
	ExitUnconfirmed = 7
)

// Main is the whole of an application's main function: it runs the command line of the process and returns its exit
// code, for os.Exit. Without a subcommand it runs the application until SIGINT or SIGTERM. app makes the App; it is
// called at most once.
func Main(app func() (*processor.App, error)) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return Execute(ctx, Command(app), os.Args[1:], os.Stdout, os.Stderr)
}

// Command returns the command line of an application's binary, to which flags and further commands can be added: the
// commands topology, status, reset and completion, and without one the application itself. app is called when one of
// them runs, after flags are parsed.
func Command(app func() (*processor.App, error)) *cobra.Command {
	name := filepath.Base(os.Args[0])
	root := newRoot(name)
	root.Short = "Run the application, look at it, or set it back"
	root.Long = root.Short + "\n\nWithout a command it runs until it is told to stop by SIGINT or SIGTERM.\n\n" + exitCodes
	root.Example = fmt.Sprintf("  %s\n  %s status --watch\n  %s reset --to earliest --dry-run", name, name, name)
	root.RunE = func(cmd *cobra.Command, _ []string) error {
		a, err := app()
		if err != nil {
			return err
		}
		return a.Run(cmd.Context())
	}
	e := &env{own: app, program: name}
	root.AddCommand(e.topology(), e.status(), e.reset())
	return root
}

// Tailrace returns the command line of command tailrace, which works on any application.
func Tailrace() *cobra.Command {
	root := newRoot("tailrace")
	root.Short = "Look at applications made with Tailrace, and set them back"
	root.Long = root.Short + `

An application is named by its id. What it looks like is read from the topic <id>-control, where it
has recorded it at its start, and from its consumer group, which has the same name as the application.

` + exitCodes
	root.Example = "  tailrace dev --topics orders:4\n  tailrace status --app inbox --brokers localhost:9092"
	root.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	e := &env{program: "tailrace"}
	root.AddCommand(e.dev(), e.topology(), e.status(), e.reset())
	return root
}

const exitCodes = `Exit codes: 0 done, 1 failure, 2 wrong command line, 3 refused because members run or a directory is in
use, 4 application or topic not found, 5 no broker answers, 6 access denied, 7 not confirmed.`

// newRoot makes a root that leaves printing and exit codes to Execute.
func newRoot(name string) *cobra.Command {
	root := &cobra.Command{
		Use: name, Args: noArgs, SilenceUsage: true, SilenceErrors: true, DisableAutoGenTag: true,
		SuggestionsMinimumDistance: 2,
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return &usageError{cmd.CommandPath(), err} })
	return root
}

// usageError is a command line that is wrong.
type usageError struct {
	command string
	err     error
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usage(cmd *cobra.Command, format string, args ...any) error {
	return &usageError{cmd.CommandPath(), fmt.Errorf(format, args...)}
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if !cmd.HasSubCommands() {
		return usage(cmd, "unexpected argument %q: all settings are flags", args[0])
	}
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		return usage(cmd, "unknown command %q: did you mean %s?", args[0], strings.Join(near, " or "))
	}
	return usage(cmd, "unknown command %q", args[0])
}

// errUnconfirmed says that a question was not answered by yes.
var errUnconfirmed = errors.New("not confirmed")

// Execute runs a command line that Command or Tailrace made, without the name of the program, and returns the exit
// code. What goes wrong is printed to stderr.
func Execute(ctx context.Context, root *cobra.Command, args []string, stdout, stderr io.Writer) int {
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return ExitOK
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return ExitOK // told to stop
	}
	fmt.Fprintf(stderr, "%s: %s\n", root.Name(), strings.ReplaceAll(err.Error(), "engine: ", ""))
	var wrong *usageError
	if errors.As(err, &wrong) {
		fmt.Fprintf(stderr, "See %s --help.\n", wrong.command)
	}
	return exitCode(err)
}

func exitCode(err error) int {
	var wrong *usageError
	switch {
	case errors.As(err, &wrong), errors.Is(err, engine.ErrBadReset):
		return ExitUsage
	case errors.Is(err, errUnconfirmed):
		return ExitUnconfirmed
	case errors.Is(err, engine.ErrMembersRun), errors.Is(err, engine.ErrStateLocked), errors.Is(err, errInUse):
		return ExitBusy
	case errors.Is(err, engine.ErrUnknownApp), errors.Is(err, engine.ErrMissingTopic):
		return ExitNotFound
	case errors.Is(err, engine.ErrUnreachable):
		return ExitUnreachable
	case errors.Is(err, engine.ErrNotAuthorized):
		return ExitDenied
	}
	return ExitFailure
}

// env is what the commands of one command line share.
type env struct {
	program string
	own     func() (*processor.App, error) // nil: any application, by its id
	id      string                         // flag --app
	conn    connection
}

// target is the application that a command is about.
type target struct {
	id       string
	app      *processor.App // nil: known only by its id
	known    []engine.AppTopics
	stateDir string // of the application
}

// target finds out which application is meant.
func (e *env) target(cmd *cobra.Command) (*target, error) {
	if e.own == nil {
		if e.id == "" {
			return nil, usage(cmd, "which application? Give --app")
		}
		dir, err := processor.DefaultStateDir()
		if err != nil {
			dir = "" // there is no local state that could be found
		}
		t := &target{id: e.id}
		if dir != "" {
			t.stateDir = filepath.Join(dir, e.id)
		}
		return t, nil
	}
	app, err := e.own()
	if err != nil {
		return nil, err
	}
	t := &target{id: app.ID(), app: app}
	if c := app.Config(); c.StateDir != "" && !c.InMemory {
		t.stateDir = filepath.Join(c.StateDir, app.ID())
	}
	topology := app.Topology()
	for _, sub := range topology.SubTopologies() {
		at := engine.AppTopics{
			Name: sub, Sources: topology.Sources(app.ID(), sub), Internal: topology.InternalTopics(app.ID(), sub),
		}
		for _, st := range topology.Stores(sub) {
			at.Stores = append(at.Stores, st.Name())
		}
		t.known = append(t.known, at)
	}
	return t, nil
}

// appFlag adds the flag that names the application, where it is not the program's own.
func (e *env) appFlag(cmd *cobra.Command) {
	if e.own == nil {
		cmd.Flags().StringVar(&e.id, "app", "", "`id` of the application, which is the name of its consumer group")
	}
}

// who is the beginning of an example.
func (e *env) who(command string) string {
	if e.own == nil {
		return "  tailrace " + command + " --app inbox"
	}
	return "  " + e.program + " " + command
}

// outputFlag adds the flag that chooses how results are printed.
func outputFlag(cmd *cobra.Command, to *string, forms ...string) {
	cmd.Flags().StringVarP(to, "output", "o", forms[0], "`form` of the output: "+strings.Join(forms, ", "))
	// The error would say that the flag does not exist, or has a completion already.
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(forms, cobra.ShellCompDirectiveNoFileComp))
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		for _, f := range forms {
			if *to == f {
				return nil
			}
		}
		return usage(cmd, "--output is %q: give %s", *to, strings.Join(forms, ", "))
	}
}
