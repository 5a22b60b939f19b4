package engine

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/oauth"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"
)

// The kinds of errors of an Admin, beside those of Run.
var (
	// ErrUnreachable: no broker answers.
	ErrUnreachable = errors.New("no broker answers")
	// ErrUnknownApp: the cluster knows nothing of an application.
	ErrUnknownApp = errors.New("nothing is known of the application")
	// ErrMembersRun: what was asked for needs an application without members.
	ErrMembersRun = errors.New("members of the application run")
	// ErrBadReset: a reset was asked for that cannot be made.
	ErrBadReset = errors.New("the reset cannot be made")
)

// Secret is a text that is not shown: it renders as a placeholder.
type Secret string

// String implements fmt.Stringer, and hides the text.
func (Secret) String() string { return "[not shown]" }

// GoString implements fmt.GoStringer, and hides the text.
func (Secret) GoString() string { return "[not shown]" }

// MarshalText hides the text from encoders.
func (Secret) MarshalText() ([]byte, error) { return []byte("[not shown]"), nil }

// SASL says how a client proves who it is.
type SASL struct {
	// Mechanism is one of plain, scram-sha-256, scram-sha-512 and oauthbearer.
	Mechanism string
	// User and Password belong to the first three, Token to the last.
	User     string
	Password Secret
	Token    Secret
}

// Mechanisms returns the names that SASL.Mechanism may have.
func Mechanisms() []string { return []string{"plain", "scram-sha-256", "scram-sha-512", "oauthbearer"} }

func (s *SASL) mechanism() (sasl.Mechanism, error) {
	switch s.Mechanism {
	case "plain":
		return plain.Auth{User: s.User, Pass: string(s.Password)}.AsMechanism(), nil
	case "scram-sha-256":
		return scram.Auth{User: s.User, Pass: string(s.Password)}.AsSha256Mechanism(), nil
	case "scram-sha-512":
		return scram.Auth{User: s.User, Pass: string(s.Password)}.AsSha512Mechanism(), nil
	case "oauthbearer":
		return oauth.Auth{Token: string(s.Token)}.AsMechanism(), nil
	}
	return nil, fmt.Errorf("engine: unknown SASL mechanism %q: take one of %s", s.Mechanism, strings.Join(Mechanisms(), ", "))
}

// AdminSettings say how an Admin reaches the cluster.
type AdminSettings struct {
	Brokers []string
	// Kafka are options of the client, which come before what follows.
	Kafka []kgo.Opt
	// TLS is used when it is set.
	TLS *tls.Config
	// SASL is used when it is set.
	SASL *SASL
	// Timeout bounds each question to the cluster. Default: 10 s.
	Timeout time.Duration
}

// Admin looks at applications from outside and resets them. It is no member of any group. It is safe for concurrent use.
type Admin struct {
	cl       *kgo.Client
	adm      *kadm.Client
	readOpts []kgo.Opt // of further clients, which read
	timeout  time.Duration
	now      func() time.Time
	// at runs before each step of a reset; for tests.
	at func(step string) error
}

// OpenAdmin connects to a cluster. An error that is ErrUnreachable says that no broker answered in time.
func OpenAdmin(ctx context.Context, s AdminSettings) (*Admin, error) {
	if s.Timeout <= 0 {
		s.Timeout = adminTimeout
	}
	opts := append([]kgo.Opt{}, s.Kafka...)
	opts = append(opts, kgo.SeedBrokers(s.Brokers...), kgo.ClientID("tailrace"), kgo.MetadataMinAge(50*time.Millisecond),
		kgo.RetryTimeout(s.Timeout), kgo.ConnIdleTimeout(time.Minute), kgo.ProducerLinger(0))
	if s.TLS != nil {
		opts = append(opts, kgo.DialTLSConfig(s.TLS))
	}
	if s.SASL != nil {
		m, err := s.SASL.mechanism()
		if err != nil {
			return nil, err
		}
		opts = append(opts, kgo.SASL(m))
	}
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		return nil, fmt.Errorf("engine: make the client: %w", err)
	}
	a := &Admin{
		cl: cl, adm: kadm.NewClient(cl), timeout: s.Timeout, now: time.Now,
		readOpts: append(opts, kgo.ConsumeResetOffset(kgo.NoResetOffset())),
	}
	pingCtx, cancel := context.WithTimeout(ctx, s.Timeout)
	defer cancel()
	if err := cl.Ping(pingCtx); err != nil {
		cl.Close()
		if denied := authError(err, "", "connect"); denied != nil {
			return nil, denied
		}
		return nil, &Error{
			Kind: ErrUnreachable, Partition: -1, Detail: strings.Join(s.Brokers, ", "), Err: err,
			Hint: "check the addresses, and whether the brokers want TLS or SASL",
		}
	}
	return a, nil
}

// Close ends the connections.
func (a *Admin) Close() { a.cl.Close() }

// within bounds one question.
func (a *Admin) within(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, a.timeout)
}

// Description returns the description that the application's last started process has recorded. An error that is
// ErrUnknownApp says that there is none.
func (a *Admin) Description(ctx context.Context, app string) (Description, error) {
	ctx, cancel := a.within(ctx)
	defer cancel()
	d, ok, err := RecordedDescription(ctx, a.readOpts, app)
	switch {
	case err != nil:
		return d, a.unanswered(ctx, err)
	case !ok:
		return d, unknownApp(app, "no topology is recorded in topic "+ControlTopic(app))
	}
	return d, nil
}

func unknownApp(app, detail string) error {
	return &Error{
		Kind: ErrUnknownApp, Partition: -1, Detail: fmt.Sprintf("%q: %s", app, detail),
		Hint: "check the id and the brokers; an application is known once it has started",
	}
}

// unanswered makes ErrUnreachable of an error that came because time ran out, and ErrNotAuthorized of a denial.
func (a *Admin) unanswered(ctx context.Context, err error) error {
	var typed *Error
	if err == nil || errors.As(err, &typed) {
		return err
	}
	if denied := authError(err, "", "look at the application"); denied != nil {
		return denied
	}
	var auth *kadm.AuthError
	if errors.As(err, &auth) {
		return &Error{Kind: ErrNotAuthorized, Partition: -1, Err: err, Hint: "grant the principal that operation"}
	}
	if ctx.Err() != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return &Error{
			Kind: ErrUnreachable, Partition: -1, Detail: fmt.Sprintf("no answer within %v", a.timeout), Err: err,
			Hint: "try again, or give it more time",
		}
	}
	return err
}

// AppTopics are the topics of a sub-topology, as an application knows them.
type AppTopics struct {
	// Name is that of the sub-topology.
	Name string
	// Sources are its inputs; those that are Internal too are repartition topics.
	Sources []string
	// Internal are the topics that the engine made for it: repartition topics that it reads, and changelogs.
	Internal []string
	// Stores are the names of its stores.
	Stores []string
}

// effectsSuffix ends the names of topics that a reset keeps: ids of effects that were made in the world.
const effectsSuffix = "-effects"

// appTopics makes one list of what the records of an application say of its topics.
func (s *shape) appTopics() []AppTopics {
	if s == nil {
		return nil
	}
	var subs []AppTopics
	for _, sub := range s.Subs {
		t := AppTopics{Name: sub.Name}
		for _, src := range sub.Sources {
			t.Sources = append(t.Sources, src.Topic)
			if src.Internal {
				t.Internal = append(t.Internal, src.Topic)
			}
		}
		for _, st := range sub.Stores {
			t.Stores = append(t.Stores, st.Name)
			if st.Changelog != "" {
				t.Internal = append(t.Internal, st.Changelog)
			}
		}
		subs = append(subs, t)
	}
	return subs
}

// recorded is what the control topic says of an application.
type recorded struct {
	control *control
	shape   *shape // nil: none
	mark    *resetMark
}

func (a *Admin) recorded(ctx context.Context, app string) (*recorded, error) {
	c, err := readControl(ctx, a.adm, a.readOpts[:len(a.readOpts):len(a.readOpts)], app)
	if err != nil {
		return nil, err
	}
	r := &recorded{control: c}
	if r.mark, err = decodeResetMark(c.values[controlReset]); err != nil {
		return nil, err
	}
	if r.shape, err = decodeShape(c.values[controlShape]); err != nil {
		return nil, err
	}
	if r.shape == nil && r.mark != nil {
		r.shape = r.mark.Shape
	}
	return r, nil
}

// group describes the group of an application. A group that does not exist is nil.
func (a *Admin) group(ctx context.Context, app string) (*kadm.DescribedGroup, error) {
	groups, err := a.adm.DescribeGroups(ctx, app)
	if err != nil {
		return nil, fmt.Errorf("engine: describe group %q: %w", app, err)
	}
	g, ok := groups[app]
	if !ok || errors.Is(g.Err, kerr.GroupIDNotFound) || g.Err == nil && g.State == "Dead" {
		return nil, nil
	}
	if g.Err != nil {
		if denied := authError(g.Err, "", "describe group "+app); denied != nil {
			return nil, denied
		}
		return nil, fmt.Errorf("engine: describe group %q: %w", app, g.Err)
	}
	return &g, nil
}
