package cli

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"tailrace.dev/internal/embedded"
)

// binary builds command tailrace.
func binary(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("builds the program")
	}
	path := filepath.Join(t.TempDir(), "tailrace")
	if out, err := exec.Command("go", "build", "-o", path, "../cmd/tailrace").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

// TestDev runs the broker as a user does: it serves, keeps its data, refuses a second one in the same directory, and ends
// by either signal.
func TestDev(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("needs signals")
	}
	program, dir := binary(t), t.TempDir()
	run := func(code int, args ...string) string {
		t.Helper()
		var out bytes.Buffer
		cmd := exec.Command(program, args...)
		cmd.Stdout, cmd.Stderr = &out, &out
		err := cmd.Run()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		if got := cmd.ProcessState.ExitCode(); got != code {
			t.Fatalf("%v: exit code %d, want %d\n%s", args, got, code, out.String())
		}
		return out.String()
	}
	serve := func(args ...string) (addr string, end func(os.Signal)) {
		t.Helper()
		cmd := exec.Command(program, append([]string{"dev", "--port", "0", "--dir", dir, "-o", "json"}, args...)...)
		pipe, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill() }) // it has ended
		var at devOutput
		if err := json.NewDecoder(bufio.NewReader(pipe)).Decode(&at); err != nil || len(at.Brokers) != 1 || at.Dir != dir {
			t.Fatalf("%+v, %v", at, err)
		}
		return at.Brokers[0], func(sig os.Signal) {
			t.Helper()
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Errorf("after %v: %v", sig, err)
			}
		}
	}
	addr, end := serve("--topics", "orders:3,totals:1:compact")
	out := run(ExitBusy, "dev", "--port", "0", "--dir", dir)
	if !strings.Contains(out, addr) || !strings.Contains(out, dir) {
		t.Errorf("the second one does not say where the first is:\n%s", out)
	}
	_, port, _ := net.SplitHostPort(addr)
	if out := run(ExitFailure, "dev", "--port", port, "--memory"); !strings.Contains(out, "--port 0") {
		t.Errorf("a port that is taken:\n%s", out)
	}
	run(ExitNotFound, "status", "--app", "nobody", "--brokers", addr)
	end(os.Interrupt)
	run(ExitUnreachable, "status", "--app", "nobody", "--brokers", addr, "--timeout", "2s")

	// The data is there again.
	_, end = serve("--topics", "orders:3")
	end(syscall.SIGTERM)
	if out := run(ExitFailure, "dev", "--port", "0", "--dir", dir, "--topics", "orders:4"); !strings.Contains(out, "3 partitions") {
		t.Errorf("another number of partitions passes:\n%s", out)
	}
	run(ExitUsage, "dev", "--port", "x")
	run(ExitOK, "--help")
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if out := run(ExitOK, "completion", shell); len(out) < 100 {
			t.Errorf("completion %s: %q", shell, out)
		}
	}
	if out := run(ExitOK, "__complete", "reset", "--to", ""); !strings.Contains(out, "earliest\nlatest\n") {
		t.Errorf("completion of --to:\n%s", out)
	}
	if out := run(ExitOK, "__complete", "topology", "--output", ""); !strings.Contains(out, "mermaid\n") {
		t.Errorf("completion of --output:\n%s", out)
	}
}

// certificate makes a server's certificate for the loopback address, and writes it to a file.
func certificate(t *testing.T) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, path
}

// TestSecureConnection: TLS and SASL, right and wrong. The password is never printed.
func TestSecureConnection(t *testing.T) {
	const password = "planted-password-4711"
	cert, ca := certificate(t)
	server := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	b, err := embedded.Start(embedded.Options{Extra: []kfake.Opt{
		kfake.TLS(server), kfake.EnableSASL(), kfake.Superuser("SCRAM-SHA-256", "admin", password),
		kfake.Superuser("PLAIN", "plain", password),
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	secretFile := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(secretFile, []byte(password+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv(envUser, "admin")
	base := "status --app nobody --timeout 3s --brokers " + b.Addrs()[0]
	secure := base + " --ca " + ca
	for _, tt := range []struct{ args, user, password, want string }{
		{secure + " --sasl-mechanism scram-sha-256 --sasl-password-file " + secretFile, "admin", "", "exit code 4"},
		{secure + " --sasl-mechanism scram-sha-256 --sasl-password-file " + secretFile, "admin", "", "chmod it to 0600"},
		{secure + " --sasl-mechanism scram-sha-256", "admin", password, "exit code 4"},
		{secure + " --sasl-mechanism plain", "plain", password, "exit code 4"},
		{secure + " --sasl-mechanism scram-sha-256", "admin", password + "-wrong", "exit code 5"}, // Kafka says why: 6
		{base + " --tls --sasl-mechanism plain", "plain", password, "exit code 5"},                // the certificate is not trusted
		{base + " --sasl-mechanism plain", "plain", password, "warning: SASL without TLS"},
		{secure + " --sasl-mechanism oauthbearer", "admin", "", "set " + envToken},
		{base + " --ca " + secretFile, "admin", "", "no certificate"},
	} {
		t.Setenv(envUser, tt.user)
		t.Setenv(envPassword, tt.password)
		out := execute(t.Context(), Tailrace(), strings.Fields(tt.args))
		if !strings.Contains(out, tt.want) {
			t.Errorf("%s: want %q:\n%s", tt.args, tt.want, out)
		}
		if strings.Contains(out, password) {
			t.Errorf("the password is printed:\n%s", out)
		}
	}
}
