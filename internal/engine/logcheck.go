package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

// changelogs returns the names of all changelog topics of the program.
func (p *Program) changelogs() []string {
	var names []string
	for _, sub := range p.Subs {
		for _, st := range sub.Stores {
			if st.Changelog != "" {
				names = append(names, st.Changelog)
			}
		}
	}
	return names
}

// recheckChangelogs looks for changelogs that were deleted, made anew, or set to lose rows while the application runs.
// Then it stops: what is on disk may be the only copy, and each commit would make it harder to repair. details are those of
// the changelogs.
func (s *session) recheckChangelogs(ctx context.Context, details kadm.TopicDetails) error {
	names := s.e.p.changelogs()
	for _, topic := range names {
		d, ok := details[topic]
		lost := &Error{
			Kind: ErrStateLoss, Topic: topic, Partition: -1,
			Hint: "local state may be the only copy of the rows: restore the topic, or start with AcceptStateLoss to begin " +
				"with an empty store",
		}
		switch {
		case !ok:
			continue
		case errors.Is(d.Err, kerr.UnknownTopicOrPartition):
			lost.Detail = "it was deleted while the application runs"
			return lost
		case d.Err == nil && d.ID != s.layout.ids[topic]:
			lost.Detail = "it was deleted and created again while the application runs"
			return lost
		}
	}
	if len(names) == 0 {
		return nil
	}
	resources, err := s.adm.DescribeTopicConfigs(ctx, names...)
	if err != nil {
		return nil // a check is lost, and made again
	}
	for _, sub := range s.e.p.Subs {
		for _, st := range sub.Stores {
			r, err := resources.On(st.Changelog, nil)
			if st.Changelog == "" || err != nil || r.Err != nil {
				continue
			}
			i := slices.IndexFunc(r.Configs, func(c kadm.Config) bool { return c.Key == "cleanup.policy" })
			want := st.Config["cleanup.policy"]
			if i < 0 || want == "" || samePolicy(r.Configs[i].MaybeValue(), want) {
				continue
			}
			return &Error{
				Kind: ErrTopicConfig, Topic: st.Changelog, Partition: -1,
				Detail: fmt.Sprintf("cleanup.policy was changed to %q and must be %q", r.Configs[i].MaybeValue(), want),
				Hint: "set it back with kafka-configs.sh before the broker deletes rows; what it has deleted by now is not in " +
					"the topic any more, and local state may be the only copy",
			}
		}
	}
	return nil
}
