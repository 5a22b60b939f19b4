package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"tailrace.dev/internal/engine"
)

// topologyOutput is what topology prints as JSON.
type topologyOutput struct {
	App string `json:"application"`
	engine.Description
}

func (e *env) topology() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "topology", Args: noArgs,
		Short: "Show the operators, topics and stores of the application",
		Long: `Show the operators, topics and stores of the application, as text, as a flowchart for Mermaid or
in the language of Graphviz.`,
	}
	cmd.Example = e.who("topology") + "\n" + e.who("topology") + " --output dot | dot -Tsvg > topology.svg"
	if e.own == nil {
		cmd.Long += " It is the topology that the process which started last has recorded."
	}
	outputFlag(cmd, &output, "text", "mermaid", "dot", "json")
	e.appFlag(cmd)
	if e.own == nil {
		e.conn.flags(cmd, false)
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		t, err := e.target(cmd)
		if err != nil {
			return err
		}
		out := topologyOutput{App: t.id}
		if t.app != nil {
			topology := t.app.Topology()
			out.Description = engine.Description{
				Fingerprint: topology.Fingerprint(), Text: topology.String(), Mermaid: topology.Mermaid(), DOT: topology.DOT(),
			}
		} else {
			a, err := e.conn.open(cmd, t)
			if err != nil {
				return err
			}
			defer a.Close()
			if out.Description, err = a.Description(cmd.Context(), t.id); err != nil {
				return err
			}
		}
		text := map[string]string{"text": out.Text, "mermaid": out.Mermaid, "dot": out.DOT}[output]
		switch {
		case output == "json":
			return printJSON(cmd.OutOrStdout(), out)
		case text == "":
			return fmt.Errorf("the topology is too large to be recorded as %s: run the command of the application's own binary",
				output)
		}
		_, err = fmt.Fprint(cmd.OutOrStdout(), text)
		return err
	}
	return cmd
}
