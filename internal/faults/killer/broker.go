//go:build unix

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// broker is a Kafka of our own.
type broker struct {
	script, dir, port string
	addrs             []string
}

// brokerTime bounds what the script does.
const brokerTime = 3 * time.Minute

func startBroker(ctx context.Context, script, dir string, port int) (*broker, error) {
	b := &broker{script: script, dir: dir, port: strconv.Itoa(port)}
	out, err := b.do(ctx, "start", b.dir, b.port)
	if err != nil {
		return nil, err
	}
	b.addrs = strings.Split(out, ",")
	return b, nil
}

func (b *broker) do(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, brokerTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, b.script, args...)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	// The broker inherits neither: waiting for their ends would be waiting for its end.
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		return "", fmt.Errorf("killer: %s %s: %w: %s", b.script, strings.Join(args, " "), err, complaint.String())
	}
	return strings.TrimSpace(out.String()), nil
}

// kill ends the broker with SIGKILL.
func (b *broker) kill() error {
	_, err := b.do(context.Background(), "kill", b.dir)
	return err
}

// mend starts the broker if it does not run, and waits until it serves.
func (b *broker) mend() error {
	_, err := b.do(context.Background(), "start", b.dir, b.port)
	return err
}

func (b *broker) stop() error {
	_, err := b.do(context.Background(), "stop", b.dir)
	return err
}
