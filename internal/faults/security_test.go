//go:build unix

package faults

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"tailrace.dev/processor"
	"tailrace.dev/serde"
	"tailrace.dev/state"
)

// certificate makes a certificate of its own authority for the loopback interface.
func certificate(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "broker"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(parsed)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

// TestBrokerAuthentication runs over TLS with each mechanism, and is refused, within seconds and with a reason, with a
// wrong password and by an authority that it does not know. Credentials without TLS are warned of.
func TestBrokerAuthentication(t *testing.T) {
	t.Parallel()
	cert, pool := certificate(t)
	const user, secret = "app", "correct horse"
	mechanisms := map[string]func(pass string) sasl.Mechanism{
		"PLAIN":         func(pass string) sasl.Mechanism { return plain.Auth{User: user, Pass: pass}.AsMechanism() },
		"SCRAM-SHA-256": func(pass string) sasl.Mechanism { return scram.Auth{User: user, Pass: pass}.AsSha256Mechanism() },
		"SCRAM-SHA-512": func(pass string) sasl.Mechanism { return scram.Auth{User: user, Pass: pass}.AsSha512Mechanism() },
	}
	for name, mechanism := range mechanisms {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			trusted := kgo.DialTLSConfig(&tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12})
			good := []kgo.Opt{trusted, kgo.SASL(mechanism(secret))}
			c := newSecured(t, 1, good, kfake.EnableSASL(), kfake.TLS(&tls.Config{Certificates: []tls.Certificate{cert}}),
				kfake.User(name, user, secret))
			f := c.feeder(5)
			f.send(20)
			run := func(opts ...kgo.Opt) *local {
				s := c.setup(t.TempDir(), nil)
				s.config.Kafka = append(s.config.Kafka, opts...)
				return s.run(t)
			}
			l := run(good...)
			c.settle(20 * time.Second)
			if n := l.logs.FilterMessageSnippet("without TLS").Len(); n != 0 {
				t.Error("it warned of credentials without TLS, over TLS")
			}
			l.stop()
			c.mustBeExact(f)

			// The embedded broker hangs up without a word; the same with the answer that Kafka gives is below.
			denied := run(trusted, kgo.SASL(mechanism("wrong")))
			until(t, 15*time.Second, "word of the broker", func() bool { return loggedText(denied, "is a broker there") })
			if denied.state() == "running" {
				t.Error("it runs with a wrong password")
			}
			denied.cancel()
			_ = denied.end(20 * time.Second) // however it took that
			refuse := c.broker.Cluster().Fault(kfake.Fault{
				Keys: []kmsg.Key{kmsg.SASLAuthenticate}, Err: kerr.SaslAuthenticationFailed, Count: -1,
			})
			err := run(good...).end(15 * time.Second)
			mustName(t, err, processor.ErrNotAuthorized, "SASL")
			refuse.Remove()
			stranger := run(kgo.DialTLSConfig(&tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}),
				kgo.SASL(mechanism(secret)))
			until(t, 15*time.Second, "word of the certificate", func() bool {
				return stranger.ended() || loggedText(stranger, "certificate")
			})
			stranger.cancel()
			_ = stranger.end(20 * time.Second) // however it took that
		})
	}
	t.Run("without TLS", func(t *testing.T) {
		t.Parallel()
		open := kgo.SASL(plain.Auth{User: user, Pass: secret}.AsMechanism())
		c := newSecured(t, 1, []kgo.Opt{open}, kfake.EnableSASL(), kfake.User("PLAIN", user, secret))
		s := c.setup(t.TempDir(), nil)
		s.config.Kafka = append(s.config.Kafka, open)
		l := s.run(t)
		l.waitRunning(20 * time.Second)
		if n := l.logs.FilterMessageSnippet("without TLS").Len(); n != 1 {
			t.Errorf("it warned %d times of credentials without TLS, want once", n)
		}
		l.stop()
	})
}

func loggedText(l *local, text string) bool {
	for _, e := range l.logs.All() {
		if strings.Contains(fmt.Sprint(e.Message, e.ContextMap()), text) {
			return true
		}
	}
	return false
}

// journal is a log at its finest, with everything else that comes out of an application.
type journal struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(p)
}

// Sync implements zapcore.WriteSyncer.
func (j *journal) Sync() error { return nil }

func (j *journal) has(secret string) (where string, ok bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	text := j.b.Bytes()
	for _, form := range []string{
		secret, hex.EncodeToString([]byte(secret)), strings.ToUpper(hex.EncodeToString([]byte(secret))),
		base64.StdEncoding.EncodeToString([]byte(secret)), fmt.Sprintf("%v", []byte(secret)),
		strings.TrimRight(base64.StdEncoding.EncodeToString([]byte(secret))[:len(secret)], "="),
	} {
		if i := bytes.Index(text, []byte(form)); i >= 0 {
			return string(text[max(0, i-200):min(len(text), i+200)]), true
		}
	}
	return "", false
}

// TestSecretsStayOut plants a password, a payload and a row, lets everything go wrong that can while logs are at their
// finest, and looks for them in all that comes out: logs, errors, events, the configuration as text, the handler.
func TestSecretsStayOut(t *testing.T) {
	t.Parallel()
	const password, payload, key = "pa55-W0rd-of-the-br0ker", "the-pAyl0ad-of-a-rec0rd-2f9c", "a-user's-k3y-81ba"
	login := kgo.SASL(plain.Auth{User: "app", Pass: password}.AsMechanism())
	c := newSecured(t, 1, []kgo.Opt{login}, kfake.EnableSASL(), kfake.User("PLAIN", "app", password))
	j := &journal{}
	encoder := zap.NewDevelopmentEncoderConfig()
	log := zap.New(zapcore.NewTee(
		zapcore.NewCore(zapcore.NewJSONEncoder(encoder), j, zapcore.DebugLevel),
		zapcore.NewCore(zapcore.NewConsoleEncoder(encoder), j, zapcore.DebugLevel)))
	dir := t.TempDir()
	store := state.KeyValue("secrets", serde.String, serde.String)
	dead := c.app + "-dead"
	c.topic(dead, 1, nil)
	topology, err := secretsTopology(c.in, c.out, store)
	if err != nil {
		t.Fatal(err)
	}
	config := memberConfig(c.addrs, dir)
	config.Kafka = append(config.Kafka, login)
	config.Log = log
	config.Events = processor.Events{
		Aborted: func(err error) { fmt.Fprintln(j, "aborted", err) },
		Rebuilt: func(err error) { fmt.Fprintln(j, "rebuilt", err) },
	}
	run := func(change func(*processor.Config), until func(*processor.App) bool) {
		t.Helper()
		cfg := config
		if change != nil {
			change(&cfg)
		}
		app, err := processor.New(c.app, topology, cfg)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(j, app.Config(), fmt.Sprintf("%v %+v", app.Config(), app.Config()))
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- app.Run(ctx) }()
		for began := time.Now(); time.Since(began) < 4*time.Second && !until(app) && len(done) == 0; {
			time.Sleep(10 * time.Millisecond)
		}
		for _, path := range []string{"/livez", "/readyz", "/metrics", "/status", "/topology"} {
			answer := httptest.NewRecorder()
			app.Handler().ServeHTTP(answer, httptest.NewRequest(http.MethodGet, path, nil))
			fmt.Fprintln(j, answer.Body.String())
		}
		cancel()
		fmt.Fprintln(j, "ended with", <-done)
	}
	send := func(records ...*kgo.Record) {
		t.Helper()
		for _, r := range records {
			r.Topic = c.in
		}
		if err := c.cl.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	record := func(value string) *kgo.Record { return &kgo.Record{Key: []byte(key), Value: []byte(value)} }
	caughtUp := func(*processor.App) bool { return c.processed(c.app, c.in) }
	ends := func(*processor.App) bool { return false }

	send(record("good " + payload))
	run(nil, caughtUp)
	// What cannot be decoded, what the program fails at, what is too large; with and without a policy.
	bad := []*kgo.Record{record("!decode " + payload), record("!panic " + payload), record("!error " + payload)}
	for _, r := range bad {
		send(r)
		run(nil, ends)
		run(func(c *processor.Config) {
			c.OnDecodeError, c.OnProcessError = processor.DeadLetter(dead), processor.DeadLetter(dead)
		}, caughtUp)
	}
	send(record("!large " + payload))
	run(nil, ends)
	run(func(c *processor.Config) { c.OnProcessError = processor.Skip() }, caughtUp)
	// Refused by the broker, and fenced.
	fake := c.broker.Cluster()
	for _, code := range []*kerr.Error{kerr.InvalidRecord, kerr.InvalidProducerEpoch, kerr.CorruptMessage} {
		fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: c.out, Err: code, Count: 2})
		send(record("good " + payload))
		run(nil, caughtUp)
	}
	// Damaged files: the database's errors hold what it found in them.
	damaged := 0
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) == ".vlog" {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if i := bytes.Index(b, []byte(payload)); i >= 0 {
			damaged++
			b[i]++
			return os.WriteFile(path, b, 0o600)
		}
		return nil
	})
	if err != nil || damaged == 0 {
		t.Fatalf("no file holds the payload: %v", err)
	}
	run(nil, caughtUp)
	send(record("good " + payload))
	run(nil, caughtUp)
	// A wrong password.
	run(func(cfg *processor.Config) {
		cfg.Kafka = append(cfg.Kafka[:0:0], kgo.SASL(plain.Auth{User: "app", Pass: password + "-wrong"}.AsMechanism()))
	}, ends)

	for what, secret := range map[string]string{"password": password, "payload": payload} {
		if where, ok := j.has(secret); ok {
			t.Errorf("the %s comes out: …%s…", what, where)
		}
	}
	if _, ok := j.has("panic"); !ok || j.b.Len() < 10_000 {
		t.Errorf("the journal has %d bytes, and not what went wrong", j.b.Len())
	}
	t.Logf("%d bytes of journal", j.b.Len())
}

// TestDirectoriesArePrivate looks at the rights of all that is on disk, and refuses directories of tasks that are links.
func TestDirectoriesArePrivate(t *testing.T) {
	t.Parallel()
	c := newFake(t, 2)
	f := c.feeder(10)
	s := c.setup(filepath.Join(t.TempDir(), "state"), nil)
	l := s.run(t)
	f.send(50)
	c.settle(20 * time.Second)
	seen := 0
	err := filepath.WalkDir(s.config.StateDir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return nil // files come and go
		}
		want := fs.FileMode(0o600)
		if d.IsDir() {
			want = 0o700
		}
		if mode := info.Mode().Perm(); mode&^want != 0 {
			t.Errorf("%s has mode %o, want %o", path, mode, want)
		}
		seen++
		return nil
	})
	if err != nil || seen < 8 {
		t.Errorf("looked at %d files: %v", seen, err)
	}
	l.stop()
	elsewhere := t.TempDir()
	task := filepath.Join(s.config.StateDir, c.app, c.in, "0")
	if err := errors.Join(os.RemoveAll(task), os.Symlink(elsewhere, task)); err != nil {
		t.Fatal(err)
	}
	f.send(10)
	err = s.run(t).end(20 * time.Second)
	if !errors.Is(err, processor.ErrStateDir) || !strings.Contains(fmt.Sprint(err), "not a directory") {
		t.Errorf("with a link in place of a task's directory it ended with %v", err)
	}
	if entries, err := os.ReadDir(elsewhere); err != nil || len(entries) > 0 {
		t.Errorf("it wrote through the link: %v %v", entries, err)
	}
}

// TestNamesStayInside refuses names that lead out of the state directory, or are none of a topic.
func TestNamesStayInside(t *testing.T) {
	t.Parallel()
	c := newFake(t, 1)
	s := c.setup(t.TempDir(), nil)
	for _, name := range []string{
		"", ".", "..", "../x", "a/b", `a\b`, "a\x00b", "/etc", "~", "a b", "ä", "a\nb", strings.Repeat("a", 250), "%2e%2e",
	} {
		if _, err := processor.New(name, s.topology, s.config); err == nil {
			t.Errorf("application id %q is accepted", name)
		}
		if _, err := countTopology(name, c.out, nil); err == nil {
			t.Errorf("topic %q is accepted", name)
		}
		for which, change := range map[string]func(*processor.Config){
			"instance":      func(c *processor.Config) { c.InstanceID = name },
			"transactional": func(c *processor.Config) { c.TransactionalID = name },
		} {
			config := s.config
			change(&config)
			if _, err := processor.New(c.app, s.topology, config); err == nil && name != "" {
				t.Errorf("%s id %q is accepted", which, name)
			}
		}
		if err := state.CheckName("store", name); err == nil {
			t.Errorf("store %q is accepted", name)
		}
	}
}

// TestEmbeddedStaysHome looks for the embedded broker on no other than the loopback interface, and requires that it is
// not chosen because configured brokers cannot be reached.
func TestEmbeddedStaysHome(t *testing.T) {
	t.Parallel()
	c := newFake(t, 1)
	s := c.setup(t.TempDir(), nil)
	s.config.Brokers = nil
	s.config.Embedded.Dir = filepath.Join(t.TempDir(), "broker")
	var addrs []string
	told := make(chan struct{})
	s.config.Events.Embedded = func(a []string) { addrs = a; close(told) }
	l := s.run(t)
	select {
	case <-told:
	case <-time.After(20 * time.Second):
		t.Fatal("no embedded broker was started")
	}
	for _, addr := range addrs {
		host, port, err := net.SplitHostPort(addr)
		if err != nil || !net.ParseIP(host).IsLoopback() {
			t.Errorf("the embedded broker is at %s", addr)
		}
		others, err := net.InterfaceAddrs()
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range others {
			ip, ok := o.(*net.IPNet)
			if !ok || ip.IP.IsLoopback() || ip.IP.IsLinkLocalUnicast() {
				continue
			}
			if conn, err := net.DialTimeout("tcp", net.JoinHostPort(ip.IP.String(), port), time.Second); err == nil {
				_ = conn.Close()
				t.Errorf("the embedded broker can be reached at %s", ip.IP)
			}
		}
	}
	if info, err := os.Stat(s.config.Embedded.Dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("its directory: %v %v", info, err)
	}
	if !loggedText(l, "not for production") {
		t.Error("it did not say that it is not for production")
	}
	l.stop()

	away := c.setup(t.TempDir(), nil)
	away.config.Brokers = []string{"127.0.0.1:1"}
	away.config.Events.Embedded = func(a []string) { t.Errorf("an embedded broker was started at %v", a) }
	l = away.run(t)
	until(t, 20*time.Second, "word of the brokers", func() bool { return loggedText(l, "is a broker there") })
	l.stop()
}
