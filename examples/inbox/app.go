package main

import (
	"net"
	"strconv"

	"github.com/spf13/cobra"

	"tailrace.dev/cli"
	"tailrace.dev/processor"
)

// newApp makes the application.
func newApp(c processor.Config) (*processor.App, error) {
	topology, err := processor.Build(Build)
	if err != nil {
		return nil, err
	}
	return processor.New(application, topology, c)
}

// tool is the command line for looking at the application and setting it back. Without --brokers it looks at the broker
// of a run on this machine.
func tool() *cobra.Command {
	return cli.Command(func() (*processor.App, error) {
		return newApp(processor.Config{Brokers: []string{net.JoinHostPort("127.0.0.1", strconv.Itoa(brokerPort))}})
	})
}
