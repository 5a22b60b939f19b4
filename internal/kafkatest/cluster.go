package kafkatest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// Cluster is a cluster of a test's own, of one broker or three on the loopback interface, which can be killed. Its
// brokers are numbered from 1. Its methods may be called by many goroutines, but not for the same broker.
type Cluster struct {
	script, dir string
	port        int
	brokers     int
	addrs       []string
}

// scriptTime bounds what the script does: the first start of all copies the broker's files from the network.
const scriptTime = 4 * time.Minute

// StartCluster starts a cluster of one broker or three and returns when all serve. Its data is in dir.
func StartCluster(dir string, brokers int) (*Cluster, error) {
	_, here, _, ok := runtime.Caller(0)
	if !ok {
		return nil, errors.New("kafkatest: the place of the script is not known")
	}
	c := &Cluster{script: filepath.Join(filepath.Dir(here), "kafka"), dir: dir, brokers: brokers}
	var err error
	if c.port, err = freeRange(2 * brokers); err != nil {
		return nil, err
	}
	err = c.Start()
	return c, err
}

// Start starts the brokers that do not run, and returns when all serve.
func (c *Cluster) Start() error {
	command := "start"
	if c.brokers > 1 {
		command = "start3"
	}
	out, err := c.do(command, c.dir, strconv.Itoa(c.port))
	if err == nil {
		c.addrs = strings.Split(out, ",")
	}
	return err
}

// Addrs returns the bootstrap addresses, broker 1 first.
func (c *Cluster) Addrs() []string { return c.addrs }

// Kill ends a broker with SIGKILL; node 0 means all.
func (c *Cluster) Kill(node int) error { return c.end("kill", node) }

// Stop ends a broker in good order; node 0 means all.
func (c *Cluster) Stop(node int) error { return c.end("stop", node) }

func (c *Cluster) end(command string, node int) error {
	args := []string{command, c.dir}
	if node > 0 {
		args = append(args, strconv.Itoa(node))
	}
	_, err := c.do(args...)
	return err
}

func (c *Cluster) do(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), scriptTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.script, args...)
	cmd.Env = os.Environ()
	if c.brokers > 1 && os.Getenv("KAFKA_HEAP") == "" {
		cmd.Env = append(cmd.Env, "KAFKA_HEAP=-Xms128m -Xmx512m")
	}
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		return "", fmt.Errorf("kafkatest: kafka %s: %w: %s", strings.Join(args, " "), err, complaint.String())
	}
	return strings.TrimSpace(out.String()), nil
}

// freeRange finds n neighbouring free ports below those that the system gives to outgoing connections, one of which
// might take a port before the broker does.
func freeRange(n int) (int, error) {
	free := func(port int) bool {
		l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
		return err == nil && l.Close() == nil
	}
next:
	for range 200 {
		port := 20000 + rand.IntN(10000)
		for i := range n {
			if !free(port + i) {
				continue next
			}
		}
		return port, nil
	}
	return 0, fmt.Errorf("kafkatest: no %d neighbouring ports are free", n)
}
