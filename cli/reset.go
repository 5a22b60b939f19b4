package cli

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"tailrace.dev/internal/engine"
)

// resetOutput is what reset prints as JSON: the plan, and whether it was carried out.
type resetOutput struct {
	*engine.ResetPlan
	DryRun bool `json:"dryRun"`
	Done   bool `json:"done"`
}

// resetFlags are the flags of reset.
type resetFlags struct {
	to       string
	topics   []string
	stateDir string
	dryRun   bool
	force    bool
	yes      bool
	output   string
}

func (e *env) reset() *cobra.Command {
	var f resetFlags
	cmd := &cobra.Command{
		Use: "reset", Args: noArgs,
		Short: "Set the application back, so that it processes its input again",
		Long: `Set the application back: what it has derived is removed, and its inputs are read again from where
--to says. After a reset to earliest the application computes what it would compute if it ran for the
first time.

It deletes the repartition topics and changelogs, which the application makes anew, and the state on
this machine; state on other machines is dropped when the application starts there. It keeps the input
and output topics, and the topics that end in "-effects": the ids of effects that were made in the world,
so that they are not made again.

It is refused while members run. It asks before it changes anything. If it is interrupted, the
application does not start until the same command has been run again and has completed it.`,
	}
	cmd.Example = strings.Join([]string{
		e.who("reset") + " --to earliest --dry-run",
		e.who("reset") + " --to time=2026-01-31T08:00:00Z --topic orders --topic payments:0,3",
		e.who("reset") + " --to duration=36h --yes",
	}, "\n")
	outputFlag(cmd, &f.output, "table", "json")
	fl := cmd.Flags()
	fl.StringVar(&f.to, "to", "", "where to read `from`: earliest, latest, offset=N, time=RFC3339 or duration=D before now")
	fl.StringArrayVar(&f.topics, "topic", nil, "set the offsets of this input only, as `topic` or topic:partition,…; "+
		"may be repeated. Default: all inputs")
	dir := "`directory` of local state, as in Config.StateDir; default: the application's"
	if e.own == nil {
		dir = "`directory` of local state, as in Config.StateDir; default: tailrace in the user's state directory"
	}
	fl.StringVar(&f.stateDir, "state-dir", "", dir)
	fl.BoolVar(&f.dryRun, "dry-run", false, "print what would be done, and do nothing")
	fl.BoolVar(&f.force, "force", false, "remove members that run; they stop")
	fl.BoolVarP(&f.yes, "yes", "y", false, "do not ask")
	_ = cmd.RegisterFlagCompletionFunc("to", cobra.FixedCompletions( // the flag exists
		[]string{"earliest", "latest", "offset=", "time=", "duration="}, cobra.ShellCompDirectiveNoSpace|cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.MarkFlagDirname("state-dir") // the flag exists
	e.appFlag(cmd)
	e.conn.flags(cmd, e.own != nil)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return e.runReset(cmd, f) }
	return cmd
}

func (e *env) runReset(cmd *cobra.Command, f resetFlags) error {
	to, err := parseTarget(cmd, f.to, time.Now())
	if err != nil {
		return err
	}
	only, err := parseTopics(cmd, f.topics)
	if err != nil {
		return err
	}
	t, err := e.target(cmd)
	if err != nil {
		return err
	}
	if f.stateDir != "" {
		t.stateDir = filepath.Join(f.stateDir, t.id)
	}
	a, err := e.conn.open(cmd, t)
	if err != nil {
		return err
	}
	defer a.Close()
	plan, err := a.PlanReset(cmd.Context(), engine.ResetSpec{
		App: t.id, Known: t.known, To: to, Only: only, StateDir: t.stateDir,
	})
	if err != nil {
		return err
	}
	out, result := cmd.OutOrStdout(), resetOutput{ResetPlan: plan, DryRun: f.dryRun}
	if f.output == "table" {
		if err := printPlan(out, plan, f.force, colors(out)); err != nil {
			return err
		}
	}
	if f.dryRun {
		if f.output == "json" {
			return printJSON(out, result)
		}
		fmt.Fprintln(out, "\nDry run: nothing was changed.")
		return nil
	}
	if err := refuse(plan, f.force); err != nil {
		return err
	}
	if !f.yes {
		if err := confirm(cmd, plan); err != nil {
			return err
		}
	}
	progress := func(_, what string) { fmt.Fprintln(out, what) }
	if f.output == "json" {
		progress = nil
	} else {
		fmt.Fprintln(out)
	}
	// Half a reset is worse than one that takes some seconds after Ctrl-C: only its start can be cancelled.
	if err := a.Reset(context.WithoutCancel(cmd.Context()), plan, engine.ResetOptions{Force: f.force, Progress: progress}); err != nil {
		return err
	}
	result.Done = true
	if f.output == "json" {
		return printJSON(out, result)
	}
	fmt.Fprintf(out, "Done. Start the application; it reads its inputs from %s.\n", plan.To)
	return nil
}

// parseTarget reads --to.
func parseTarget(cmd *cobra.Command, s string, now time.Time) (engine.ResetTarget, error) {
	const forms = "give earliest, latest, offset=N, time=2026-01-31T08:00:00Z or duration=36h"
	kind, value, has := strings.Cut(s, "=")
	switch {
	case s == "":
		return engine.ResetTarget{}, usage(cmd, "where to? Give --to: %s", strings.TrimPrefix(forms, "give "))
	case s == "earliest":
		return engine.ResetTarget{Kind: engine.ResetEarliest}, nil
	case s == "latest":
		return engine.ResetTarget{Kind: engine.ResetLatest}, nil
	case kind == "offset" && has:
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil || n < 0 {
			return engine.ResetTarget{}, usage(cmd, "--to offset is %q: give a number from 0", value)
		}
		return engine.ResetTarget{Kind: engine.ResetOffset, Offset: n}, nil
	case kind == "time" && has:
		at, err := time.Parse(time.RFC3339, value)
		if err != nil {
			return engine.ResetTarget{}, usage(cmd, "--to time is %q: give it as 2026-01-31T08:00:00Z or with an offset like +01:00", value)
		}
		return engine.ResetTarget{Kind: engine.ResetTime, Time: at}, nil
	case kind == "duration" && has:
		d, err := time.ParseDuration(value)
		if err != nil || d <= 0 {
			return engine.ResetTarget{}, usage(cmd, "--to duration is %q: give something like 90m or 36h", value)
		}
		return engine.ResetTarget{Kind: engine.ResetTime, Time: now.Add(-d)}, nil
	}
	return engine.ResetTarget{}, usage(cmd, "--to is %q: %s", s, forms)
}

// parseTopics reads --topic. Nil means all.
func parseTopics(cmd *cobra.Command, args []string) (map[string][]int32, error) {
	if len(args) == 0 {
		return nil, nil
	}
	only := map[string][]int32{}
	whole := map[string]bool{}
	for _, arg := range args {
		topic, list, some := strings.Cut(arg, ":")
		if topic == "" {
			return nil, usage(cmd, "--topic is %q: give topic or topic:partition", arg)
		}
		if !some {
			whole[topic] = true
			continue
		}
		for p := range strings.SplitSeq(list, ",") {
			n, err := strconv.ParseInt(p, 10, 32)
			if err != nil || n < 0 {
				return nil, usage(cmd, "--topic is %q: %q is no partition", arg, p)
			}
			only[topic] = append(only[topic], int32(n))
		}
	}
	for topic := range whole {
		only[topic] = nil
	}
	return only, nil
}

// printPlan prints exactly what would be done, in the order in which it would be.
func printPlan(w io.Writer, p *engine.ResetPlan, force, color bool) error {
	var b strings.Builder
	fmt.Fprintf(&b, "Reset of %s to %s\n\n", p.App, p.To)
	if p.Unfinished {
		fmt.Fprintln(&b, "An earlier reset was begun and not finished; this one completes it.")
		fmt.Fprintln(&b)
	}
	t := newTable(&b, color, "do", "what", "partition", "from", "to")
	for _, m := range p.Members {
		do := "refuse: runs"
		if force {
			do = "remove member"
		}
		name := m.Instance
		if name == "" {
			name = m.ID
		}
		t.AppendRow(table.Row{do, name + " at " + m.Host, "", "", ""})
	}
	if p.InUse != "" && !force {
		t.AppendRow(table.Row{"refuse: in use", p.InUse, "", "", ""})
	}
	for _, topic := range p.Delete {
		t.AppendRow(table.Row{"delete topic", topic, "", "", ""})
	}
	for _, dir := range p.Tasks {
		t.AppendRow(table.Row{"remove state", filepath.Join(p.StateDir, filepath.FromSlash(dir)), "", "", ""})
	}
	for _, o := range p.Offsets {
		t.AppendRow(table.Row{"set offset", o.Topic, o.Partition, number(o.From), o.To})
	}
	for _, topic := range p.Keep {
		t.AppendRow(table.Row{"keep topic", topic, "", "", ""})
	}
	for _, topic := range p.Unknown {
		t.AppendRow(table.Row{"leave alone", topic + " (not known as this application's)", "", "", ""})
	}
	t.Render()
	_, err := io.WriteString(w, b.String())
	return err
}

// refuse tells early what the reset would refuse anyway, before anybody is asked.
func refuse(p *engine.ResetPlan, force bool) error {
	if force {
		return nil
	}
	if len(p.Members) > 0 {
		return fmt.Errorf("%w: %s of %s. Stop them first; one that was stopped keeps its place until its session times out, "+
			"45 s by default. --force removes them", engine.ErrMembersRun, plural(len(p.Members), "member"), p.App)
	}
	if p.InUse != "" {
		return fmt.Errorf("%w: %s. Stop it first", engine.ErrStateLocked, p.InUse)
	}
	return nil
}

// confirm asks. Where nobody can answer, the answer is no.
func confirm(cmd *cobra.Command, p *engine.ResetPlan) error {
	in := cmd.InOrStdin()
	if !isTerminal(in) {
		return fmt.Errorf("%w: nobody is there to ask; give --yes", errUnconfirmed)
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "\nReset %s? [y/N] ", p.App)
	answer, err := bufio.NewReader(io.LimitReader(in, 100)).ReadString('\n')
	if a := strings.ToLower(strings.TrimSpace(answer)); (err == nil || err == io.EOF) && (a == "y" || a == "yes") {
		return nil
	}
	return fmt.Errorf("%w: nothing was changed", errUnconfirmed)
}
