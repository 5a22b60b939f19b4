// Command inbox shows an inbox and its counter of unread messages kept in agreement: both are derived, by one fold,
// from one log of what people did.
//
//	go run ./examples/inbox
//
// Without -brokers it runs on a broker inside the process, with invented mail. While it runs,
//
//	go run ./examples/inbox status
//
// shows who does what; topology and reset are further commands.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"tailrace.dev/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := command(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// command is the program: it returns the exit code. 0 is a clean end, 1 a failure or counters that disagree, 2 a
// wrong command line. With a command, such as status, it is a tool for the application instead of a run of it.
func command(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		return cli.Execute(ctx, tool(), args, stdout, stderr)
	}
	o, err := parse(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintln(stderr, "inbox:", err)
		return 2
	}
	out := &console{w: stdout, quiet: o.quiet}
	err = run(ctx, o, out, logger(stderr, o.verbose))
	if err != nil && (ctx.Err() == nil || !errors.Is(err, context.Canceled)) { // stopped while starting is stopped
		fmt.Fprintln(stderr, "inbox:", err)
		return 1
	}
	return 0
}

// options are the flags.
type options struct {
	brokers  []string
	data     string
	state    string
	http     string
	httpFree bool // the address is the default one: another port will do
	rate     int
	events   int
	seed     uint64
	member   bool
	once     bool
	quiet    bool
	verbose  bool
	session  time.Duration
}

// The default addresses.
const (
	defaultHTTP = "127.0.0.1:8080"
	brokerPort  = 19292
)

func parse(args []string, stderr io.Writer) (options, error) {
	var o options
	var brokers string
	f := flag.NewFlagSet("inbox", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.Usage = func() {
		fmt.Fprint(stderr, "Usage:\n  inbox [flags]\n  inbox topology | status | reset [--help]\n\nFlags:\n")
		f.PrintDefaults()
	}
	f.StringVar(&brokers, "brokers", "",
		"seed `brokers` host:port,… of a Kafka cluster; empty runs a broker in this process")
	f.StringVar(&o.data, "data", "",
		"`directory` in which the broker in this process keeps its data; empty keeps it in memory")
	f.StringVar(&o.state, "state", "",
		"`directory` for local state; default: temporary without -brokers or with -member, "+
			"in -data if that is given, or else the user's state directory")
	f.StringVar(&o.http, "http", defaultHTTP, "`address` of the page; name another host to be reachable from outside. "+
		"If the default port is taken, a free one is used")
	f.IntVar(&o.rate, "rate", 250, "invented events per second")
	f.IntVar(&o.events, "events", 5000, "how many events to invent; 0 goes on for ever")
	f.Uint64Var(&o.seed, "seed", 1, "which mail to invent")
	f.BoolVar(&o.member, "member", false, "join a run that is under way at -brokers: no invented mail, temporary state")
	f.BoolVar(&o.once, "once", false, "end after the result, instead of serving the page until Ctrl-C")
	f.DurationVar(&o.session, "session", 10*time.Second,
		"after how long without a sign of life a member's work goes to others")
	f.BoolVar(&o.quiet, "quiet", false, "print the result only")
	f.BoolVar(&o.verbose, "v", false, "log what the library does")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	set := make(map[string]bool)
	f.Visit(func(f *flag.Flag) { set[f.Name] = true })
	o.httpFree = !set["http"]
	for b := range strings.SplitSeq(brokers, ",") {
		if b = strings.TrimSpace(b); b != "" {
			o.brokers = append(o.brokers, b)
		}
	}
	switch {
	case f.NArg() > 0:
		return o, fmt.Errorf("unexpected argument %q; all settings are flags, see -h", f.Arg(0))
	case set["brokers"] && len(o.brokers) == 0:
		return o, errors.New("-brokers is empty: name at least one host:port, or leave the flag out")
	case o.member && len(o.brokers) == 0:
		return o, errors.New("-member needs -brokers: the first process prints the whole line")
	case len(o.brokers) > 0 && o.data != "":
		return o, errors.New("-data belongs to the broker in this process and cannot go with -brokers")
	case o.member && (set["rate"] || set["events"] || set["seed"] || o.once):
		return o, errors.New("-member invents no mail, so -rate, -events, -seed and -once cannot go with it")
	case o.rate < 1 || o.rate > 100_000:
		return o, fmt.Errorf("-rate is %d: give 1 to 100000", o.rate)
	case o.events < 0:
		return o, fmt.Errorf("-events is %d: give 0 or more", o.events)
	case o.once && o.events == 0:
		return o, errors.New("-once needs an end: give -events")
	case o.session < 6*time.Second || o.session > 5*time.Minute:
		return o, fmt.Errorf("-session is %v: brokers take 6s to 5m", o.session)
	}
	return o, nil
}

// stateDir returns where local state goes, and a function that removes what is temporary. An empty directory is the
// library's default.
func (o options) stateDir() (dir string, remove func() error, err error) {
	none := func() error { return nil }
	switch {
	case o.state != "":
		return o.state, none, nil
	case o.data != "":
		return filepath.Join(o.data, "state"), none, nil
	case len(o.brokers) > 0 && !o.member:
		return "", none, nil
	}
	dir, err = os.MkdirTemp("", "inbox-state-")
	if err != nil {
		return "", none, fmt.Errorf("make a temporary state directory, or give -state: %w", err)
	}
	return dir, func() error { return os.RemoveAll(dir) }, nil
}

// memberLine returns the command that starts a second member beside this process.
func memberLine(brokers []string, session time.Duration) string {
	program := "go run tailrace.dev/examples/inbox"
	if exe, err := os.Executable(); err == nil && !strings.Contains(exe, "go-build") {
		program = exe
		if strings.ContainsAny(exe, " '\"$\\&;()") {
			program = "'" + strings.ReplaceAll(exe, "'", `'\''`) + "'"
		}
	}
	line := program + " -member -brokers " + strings.Join(brokers, ",")
	if session != 10*time.Second {
		line += " -session " + session.String()
	}
	return line
}

func logger(w io.Writer, verbose bool) *zap.Logger {
	level := zapcore.WarnLevel
	if verbose {
		level = zapcore.InfoLevel
	}
	c := zap.NewDevelopmentEncoderConfig()
	c.EncodeTime = zapcore.TimeEncoderOfLayout("15:04:05.000")
	return zap.New(zapcore.NewCore(zapcore.NewConsoleEncoder(c), zapcore.Lock(zapcore.AddSync(w)), level))
}
