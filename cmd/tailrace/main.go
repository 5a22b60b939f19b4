// Command tailrace is the tool of whoever runs applications made with Tailrace: it shows them, sets them back, and runs
// a broker for development.
//
//	tailrace dev
//	tailrace status --app inbox --brokers localhost:9092 --watch
//
// docs/cli.md describes it.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"tailrace.dev/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := cli.Execute(ctx, cli.Tailrace(), os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
