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
	return processor.New(AppID, topology, c)
}

// newPartitioned makes the partitioned form, which is another application.
func newPartitioned(c processor.Config) (*processor.App, error) {
	topology, err := processor.Build(BuildPartitioned)
	if err != nil {
		return nil, err
	}
	return processor.New(PartitionedAppID, topology, c)
}

// tool is the command line for looking at the application and setting it back. Without --brokers it looks at the broker
// of a run on this machine.
func tool() *cobra.Command {
	var split bool
	root := cli.Command(func() (*processor.App, error) {
		c := processor.Config{Brokers: []string{net.JoinHostPort("127.0.0.1", strconv.Itoa(brokerPort))}}
		if split {
			return newPartitioned(c)
		}
		return newApp(c)
	})
	root.PersistentFlags().BoolVar(&split, "partitioned", false, "the partitioned form")
	return root
}
