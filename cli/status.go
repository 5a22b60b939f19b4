package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"tailrace.dev/internal/engine"
)

func (e *env) status() *cobra.Command {
	var output string
	var watch bool
	var interval time.Duration
	cmd := &cobra.Command{
		Use: "status", Args: noArgs,
		Short: "Show members, their tasks, and how far they are",
		Long: `Show the members of the application, which tasks each has and in which role, the committed offsets
and how far they are behind the ends of the inputs.

A task without a member is shown with "-". The lag of a copy (standby, warmup) counts changelog records;
it is what the member knew when it joined the group last, and "-" if it did not know.`,
	}
	cmd.Example = e.who("status") + "\n" + e.who("status") + " --watch --interval 1s\n" + e.who("status") + " --output json"
	outputFlag(cmd, &output, "table", "json")
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "keep showing; ends by Ctrl-C. On what is not a terminal, a table is "+
		"printed once, and JSON a line each time")
	cmd.Flags().DurationVar(&interval, "interval", 2*time.Second, "how often --watch looks")
	e.appFlag(cmd)
	e.conn.flags(cmd, e.own != nil)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if interval < 100*time.Millisecond {
			return usage(cmd, "--interval is %v: give 100ms or more", interval)
		}
		t, err := e.target(cmd)
		if err != nil {
			return err
		}
		a, err := e.conn.open(cmd, t)
		if err != nil {
			return err
		}
		defer a.Close()
		out := cmd.OutOrStdout()
		look := func() (*engine.GroupStatus, error) { return a.Status(cmd.Context(), t.id, t.known) }
		if watch && output == "json" {
			return watchJSON(cmd.Context(), out, interval, look)
		}
		if watch && isTerminal(out) {
			return watchTable(cmd.Context(), out, interval, look)
		}
		st, err := look()
		if err != nil {
			return err
		}
		if output == "json" {
			return printJSON(out, st)
		}
		return printStatus(out, st, colors(out))
	}
	return cmd
}

// colors tells whether a writer shows them and the user wants them.
func colors(w io.Writer) bool {
	return isTerminal(w) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

func watchJSON(ctx context.Context, w io.Writer, every time.Duration, look func() (*engine.GroupStatus, error)) error {
	for {
		st, err := look()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if err := json.NewEncoder(w).Encode(st); err != nil {
			return fmt.Errorf("print: %w", err)
		}
		if !pause(ctx, every) {
			return nil
		}
	}
}

// watchTable draws over what was drawn before. What goes wrong after the first look is shown, and may pass.
func watchTable(ctx context.Context, w io.Writer, every time.Duration, look func() (*engine.GroupStatus, error)) error {
	const home, clearLine, clearRest, clearAll = "\x1b[H", "\x1b[K", "\x1b[J", "\x1b[2J"
	first := true
	for {
		st, err := look()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && first {
			return err
		}
		var b bytes.Buffer
		if err != nil {
			fmt.Fprintf(&b, "%s  %v\n\nStill trying; Ctrl-C ends.\n", time.Now().Format(time.TimeOnly), err)
		} else {
			if err := printStatus(&b, st, colors(w)); err != nil {
				return err
			}
			fmt.Fprintf(&b, "\n%s, every %v; Ctrl-C ends.\n", st.Time.Local().Format(time.TimeOnly), every)
		}
		screen := home
		if first {
			screen = clearAll + home
		}
		first = false
		screen += string(bytes.ReplaceAll(b.Bytes(), []byte("\n"), []byte(clearLine+"\n"))) + clearRest
		if _, err := io.WriteString(w, screen); err != nil {
			return fmt.Errorf("print: %w", err)
		}
		if !pause(ctx, every) {
			return nil
		}
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// printStatus prints the tables.
func printStatus(w io.Writer, st *engine.GroupStatus, color bool) error {
	var b bytes.Buffer
	state := st.State
	if color {
		state = map[string]text.Color{
			engine.GroupStable: text.FgGreen, engine.GroupRebalancing: text.FgYellow, engine.GroupEmpty: text.FgRed,
		}[st.State].Sprint(state)
	}
	fmt.Fprintf(&b, "%s  %s, %s, %s, lag %d\n", st.App, state, plural(len(st.Members), "member"),
		plural(len(st.Tasks), "task"), st.Lag)
	if st.UnfinishedReset {
		fmt.Fprintln(&b, "A reset was begun and not finished: no member starts before it is. Run the reset again.")
	}
	names := map[string]string{}
	if len(st.Members) > 0 {
		fmt.Fprintln(&b)
		t := newTable(&b, color, "member", "client", "host", "active", "standby", "warmup", "topology")
		for _, m := range st.Members {
			names[m.ID] = cmp.Or(m.Instance, m.ID)
			t.AppendRow(table.Row{names[m.ID], m.Client, m.Host, m.Active, m.Standby, m.Warmup, short(m.Fingerprint)})
		}
		t.Render()
	}
	if len(st.Tasks) > 0 {
		fmt.Fprintln(&b)
		t := newTable(&b, color, "task", "role", "member", "input", "committed", "end", "lag")
		for _, task := range st.Tasks {
			name, role, member := task.Name, "active", cmp.Or(names[task.Active], "-")
			for _, in := range task.Inputs {
				t.AppendRow(table.Row{name, role, member, in.Topic, number(in.Committed), number(in.End), number(in.Lag)})
				name, role, member = "", "", ""
			}
			for _, c := range task.Copies {
				t.AppendRow(table.Row{"", c.Role.String(), cmp.Or(names[c.Member], "-"), "", "", "", number(c.Lag)})
			}
		}
		t.Render()
	}
	_, err := w.Write(b.Bytes())
	return err
}

// short abbreviates a fingerprint.
func short(fingerprint string) string {
	return cmp.Or(fingerprint[:min(len(fingerprint), 8)], "-")
}
