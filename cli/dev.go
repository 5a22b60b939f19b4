package cli

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"tailrace.dev/internal/embedded"
	"tailrace.dev/processor"
)

// defaultPort is the port of the development broker: neither Kafka's, nor one of the examples'.
const defaultPort = 19192

// errInUse says that the directory of a broker is another one's.
var errInUse = errors.New("directory is in use")

// devOutput is what dev prints as JSON when the broker serves.
type devOutput struct {
	Brokers []string   `json:"brokers"`
	Dir     string     `json:"dir,omitempty"`
	Topics  []devTopic `json:"topics"`
}

type devTopic struct {
	Name       string `json:"name"`
	Partitions int    `json:"partitions"`
}

type devFlags struct {
	port   int
	dir    string
	memory bool
	topics []string
	auto   bool
	output string
}

func (*env) dev() *cobra.Command {
	var f devFlags
	cmd := &cobra.Command{
		Use: "dev", Args: noArgs,
		Short: "Run a broker for development, until Ctrl-C",
		Long: `Run a broker on this machine's loopback interface, until Ctrl-C. It speaks Kafka's protocol, transactions
included, and keeps its data for the next start. It is not for production: it is one process without
replication, checked for what Tailrace needs and for nothing else.`,
		Example: "  tailrace dev\n  tailrace dev --topics orders:4,payments:4 --port 0 --memory",
	}
	outputFlag(cmd, &f.output, "text", "json")
	fl := cmd.Flags()
	fl.IntVar(&f.port, "port", defaultPort, "`port` on 127.0.0.1; 0 takes a free one")
	fl.StringVar(&f.dir, "dir", "", "`directory` of the data; default: tailrace-dev in the user's state directory")
	fl.BoolVar(&f.memory, "memory", false, "keep the data in memory, and lose it at the end")
	fl.StringSliceVar(&f.topics, "topics", nil, "topics to create if they are not there, as `name:partitions`,…; "+
		"name:partitions:compact makes a compacted one")
	fl.BoolVar(&f.auto, "auto-create", false, "create topics that a client asks for")
	_ = cmd.MarkFlagDirname("dir") // the flag exists
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return runDev(cmd, f) }
	return cmd
}

func runDev(cmd *cobra.Command, f devFlags) error {
	if f.port < 0 || f.port > 65535 {
		return usage(cmd, "--port is %d: give 0 to 65535", f.port)
	}
	if f.memory && f.dir != "" {
		return usage(cmd, "--dir and --memory cannot go together")
	}
	o := embedded.Options{Port: f.port, AutoCreate: f.auto, Dir: f.dir, Logger: zap.NewNop()}
	var err error
	if o.Topics, err = parseSetups(cmd, f.topics); err != nil {
		return err
	}
	if o.Dir == "" && !f.memory {
		state, err := processor.DefaultStateDir()
		if err != nil {
			return fmt.Errorf("no default for --dir: %w", err)
		}
		o.Dir = state + "-dev"
	}
	if o.Dir != "" {
		if o.Dir, err = filepath.Abs(o.Dir); err != nil {
			return fmt.Errorf("--dir: %w", err)
		}
	}
	b, err := embedded.Start(o)
	if err != nil {
		return devError(o, err)
	}
	out := devOutput{Brokers: b.Addrs(), Dir: o.Dir, Topics: []devTopic{}}
	for _, t := range o.Topics {
		out.Topics = append(out.Topics, devTopic{t.Name, t.Partitions})
	}
	if f.output == "json" {
		err = printJSON(cmd.OutOrStdout(), out)
	} else {
		err = out.print(cmd.OutOrStdout())
	}
	if err == nil {
		<-cmd.Context().Done()
		if f.output == "text" {
			fmt.Fprintln(cmd.OutOrStdout(), "\nStopped.")
		}
	}
	return errors.Join(err, b.Close())
}

// devError says what to do about a start that failed.
func devError(o embedded.Options, err error) error {
	switch {
	case errors.Is(err, embedded.ErrInUse):
		return fmt.Errorf("%w: %w", errInUse, err)
	case strings.Contains(err.Error(), "address already in use"):
		return fmt.Errorf("%w\nPort %d is taken: stop what has it, or take another by --port; --port 0 takes a free one", err, o.Port)
	}
	return err
}

func parseSetups(cmd *cobra.Command, args []string) ([]embedded.Topic, error) {
	var topics []embedded.Topic
	for _, arg := range args {
		parts := strings.Split(arg, ":")
		n := 0
		var err error
		if len(parts) >= 2 {
			n, err = strconv.Atoi(parts[1])
		}
		if err != nil || parts[0] == "" || len(parts) < 2 || len(parts) > 3 || n < 1 || len(parts) == 3 && parts[2] != "compact" {
			return nil, usage(cmd, "--topics has %q: give name:partitions or name:partitions:compact", arg)
		}
		t := embedded.Topic{Name: parts[0], Partitions: n}
		if len(parts) == 3 {
			t.Configs = map[string]string{"cleanup.policy": "compact"}
		}
		topics = append(topics, t)
	}
	return topics, nil
}

// print tells how to connect.
func (o *devOutput) print(w io.Writer) error {
	var b strings.Builder
	addr := strings.Join(o.Brokers, ",")
	where := "in memory: gone when this ends"
	if o.Dir != "" {
		where = o.Dir
	}
	fmt.Fprintln(&b, "A broker for development. Not for production: one process, no replication, no access control.")
	fmt.Fprintln(&b)
	t := table.NewWriter()
	t.SetOutputMirror(&b)
	t.SetStyle(plainStyle)
	t.SuppressTrailingSpaces()
	t.AppendRow(table.Row{"broker", addr})
	t.AppendRow(table.Row{"data", where})
	for _, topic := range o.Topics {
		t.AppendRow(table.Row{"topic", fmt.Sprintf("%s, %s", topic.Name, plural(topic.Partitions, "partition"))})
	}
	t.Render()
	fmt.Fprintf(&b, "\nConnect\n\n")
	t = table.NewWriter()
	t.SetOutputMirror(&b)
	t.SetStyle(plainStyle)
	t.SuppressTrailingSpaces()
	t.AppendRow(table.Row{"  an application", fmt.Sprintf("processor.Config{Brokers: []string{%q}}", addr)})
	t.AppendRow(table.Row{"  a client", fmt.Sprintf("kgo.NewClient(kgo.SeedBrokers(%q))", addr)})
	t.AppendRow(table.Row{"  an example", "go run ./examples/inbox -brokers " + addr})
	t.AppendRow(table.Row{"  tailrace", "export " + envBrokers + "=" + addr})
	t.Render()
	fmt.Fprintf(&b, "\nCtrl-C ends it.\n")
	_, err := io.WriteString(w, b.String())
	return err
}
