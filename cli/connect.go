package cli

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tailrace.dev/internal/engine"
)

// The environment variables of the connection.
const (
	envBrokers  = "TAILRACE_BROKERS"
	envUser     = "TAILRACE_SASL_USER"
	envPassword = "TAILRACE_SASL_PASSWORD"
	envToken    = "TAILRACE_SASL_TOKEN"
)

const defaultTimeout = 10 * time.Second

// connection is how the brokers are reached, by flags and environment.
type connection struct {
	brokers       []string
	tls           bool
	ca, cert, key string
	mechanism     string
	userFile      string
	passwordFile  string
	tokenFile     string
	timeout       time.Duration
}

// flags adds the flags of the connection to a command. own tells that the program knows the brokers itself.
func (c *connection) flags(cmd *cobra.Command, own bool) {
	f := cmd.Flags()
	brokers := "seed `brokers` host:port,… of the cluster; default: " + envBrokers
	if own {
		brokers += ", or else the application's own"
	}
	f.StringSliceVar(&c.brokers, "brokers", nil, brokers)
	f.BoolVar(&c.tls, "tls", false, "use TLS, 1.2 at least")
	f.StringVar(&c.ca, "ca", "", "PEM `file` with the certificates to trust instead of the system's; implies --tls")
	f.StringVar(&c.cert, "cert", "", "PEM `file` with the client's certificate; implies --tls")
	f.StringVar(&c.key, "key", "", "PEM `file` with the key that belongs to --cert")
	f.StringVar(&c.mechanism, "sasl-mechanism", "", "`mechanism` of SASL: "+strings.Join(engine.Mechanisms(), ", "))
	f.StringVar(&c.userFile, "sasl-user-file", "", "`file` with the user's name; default: "+envUser)
	f.StringVar(&c.passwordFile, "sasl-password-file", "", "`file` with the password; default: "+envPassword)
	f.StringVar(&c.tokenFile, "sasl-token-file", "", "`file` with the token of oauthbearer; default: "+envToken)
	f.DurationVar(&c.timeout, "timeout", defaultTimeout, "how long to wait for an answer of the brokers")
	_ = cmd.RegisterFlagCompletionFunc("sasl-mechanism", // the flag exists
		cobra.FixedCompletions(engine.Mechanisms(), cobra.ShellCompDirectiveNoFileComp))
}

// open connects.
func (c *connection) open(cmd *cobra.Command, t *target) (*engine.Admin, error) {
	s := engine.AdminSettings{Timeout: c.timeout}
	if c.timeout <= 0 {
		return nil, usage(cmd, "--timeout is %v: give a positive duration", c.timeout)
	}
	if t.app != nil {
		s.Brokers, s.Kafka = t.app.Config().Brokers, t.app.Config().Kafka
	}
	if env := os.Getenv(envBrokers); env != "" {
		s.Brokers = strings.Split(env, ",")
	}
	if len(c.brokers) > 0 {
		s.Brokers = c.brokers
	}
	s.Brokers = slices.DeleteFunc(slices.Clone(s.Brokers), func(b string) bool { return strings.TrimSpace(b) == "" })
	if len(s.Brokers) == 0 {
		return nil, usage(cmd, "which brokers? Give --brokers or set %s", envBrokers)
	}
	for i, b := range s.Brokers {
		s.Brokers[i] = strings.TrimSpace(b)
	}
	var err error
	if s.TLS, err = c.tlsConfig(cmd); err != nil {
		return nil, err
	}
	if s.SASL, err = c.sasl(cmd); err != nil {
		return nil, err
	}
	if s.SASL != nil && s.TLS == nil {
		fmt.Fprintln(cmd.ErrOrStderr(), "warning: SASL without TLS: whoever sees the network sees the credentials; use --tls")
	}
	a, err := engine.OpenAdmin(cmd.Context(), s)
	if err != nil && cmd.Context().Err() != nil {
		return nil, context.Canceled
	}
	return a, err
}

func (c *connection) tlsConfig(cmd *cobra.Command) (*tls.Config, error) {
	if !c.tls && c.ca == "" && c.cert == "" && c.key == "" {
		return nil, nil
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.ca != "" {
		pem, err := os.ReadFile(c.ca)
		if err != nil {
			return nil, fmt.Errorf("--ca: %w", err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("--ca: %s holds no certificate in PEM form", c.ca)
		}
	}
	if (c.cert == "") != (c.key == "") {
		return nil, usage(cmd, "--cert and --key belong together")
	}
	if c.cert != "" {
		pair, err := tls.LoadX509KeyPair(c.cert, c.key)
		if err != nil {
			return nil, fmt.Errorf("--cert and --key: %w", err)
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	return conf, nil
}

// sasl reads who we are. Secrets come from files or the environment, never from the command line, which other users of
// the machine can see.
func (c *connection) sasl(cmd *cobra.Command) (*engine.SASL, error) {
	if c.mechanism == "" {
		if c.userFile+c.passwordFile+c.tokenFile != "" {
			return nil, usage(cmd, "--sasl-mechanism is missing: give %s", strings.Join(engine.Mechanisms(), ", "))
		}
		return nil, nil
	}
	s := &engine.SASL{Mechanism: strings.ToLower(c.mechanism)}
	if !slices.Contains(engine.Mechanisms(), s.Mechanism) {
		return nil, usage(cmd, "--sasl-mechanism is %q: give %s", c.mechanism, strings.Join(engine.Mechanisms(), ", "))
	}
	if s.Mechanism == "oauthbearer" {
		token, err := secret(cmd, "token", c.tokenFile, envToken)
		s.Token = engine.Secret(token)
		return s, err
	}
	user, errUser := secret(cmd, "user", c.userFile, envUser)
	password, errPassword := secret(cmd, "password", c.passwordFile, envPassword)
	s.User, s.Password = user, engine.Secret(password)
	return s, errors.Join(errUser, errPassword)
}

// secret reads a credential from a file, or else from the environment.
func secret(cmd *cobra.Command, what, file, env string) (string, error) {
	if file == "" {
		v := os.Getenv(env)
		if v == "" {
			return "", usage(cmd, "no SASL %s: give --sasl-%s-file or set %s", what, what, env)
		}
		return v, nil
	}
	info, err := os.Stat(file)
	if err != nil {
		return "", fmt.Errorf("--sasl-%s-file: %w", what, err)
	}
	if what != "user" && info.Mode().Perm()&0o077 != 0 {
		fmt.Fprintf(cmd.ErrOrStderr(), "warning: others on this machine can read %s: chmod it to 0600\n", file)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("--sasl-%s-file: %w", what, err)
	}
	return cmp.Or(strings.TrimRight(string(b), "\r\n"), os.Getenv(env)), nil
}
