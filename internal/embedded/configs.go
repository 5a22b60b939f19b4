package embedded

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// configKind tells which values a topic configuration takes.
type configKind struct {
	check func(string) bool
	want  string
}

func whole(from, to int64) configKind {
	return configKind{
		func(s string) bool {
			n, err := strconv.ParseInt(s, 10, 64)
			return err == nil && n >= from && n <= to
		},
		fmt.Sprintf("a whole number from %d to %d", from, to),
	}
}

func oneOf(words ...string) configKind {
	return configKind{func(s string) bool { return slices.Contains(words, s) }, "one of " + strings.Join(words, ", ")}
}

// listOf takes a comma-separated list of the words, which may be empty.
func listOf(words ...string) configKind {
	return configKind{
		func(s string) bool {
			return s == "" || !slices.ContainsFunc(strings.Split(s, ","), func(w string) bool {
				return !slices.Contains(words, strings.TrimSpace(w))
			})
		},
		"a list of " + strings.Join(words, ", "),
	}
}

const (
	maxInt32 = 1<<31 - 1
	maxInt64 = 1<<63 - 1
)

var (
	anyText  = configKind{func(string) bool { return true }, "text"}
	boolean  = oneOf("true", "false")
	fraction = configKind{
		func(s string) bool {
			f, err := strconv.ParseFloat(s, 64)
			return err == nil && f >= 0 && f <= 1
		},
		"a number from 0 to 1",
	}
)

// topicConfigs are the topic configurations of Kafka 4.3. A test compares them with a real broker.
var topicConfigs = map[string]configKind{
	"cleanup.policy":                          listOf("compact", "delete"),
	"compression.gzip.level":                  whole(-1, 9),
	"compression.lz4.level":                   whole(1, 17),
	"compression.type":                        oneOf("uncompressed", "zstd", "lz4", "snappy", "gzip", "producer"),
	"compression.zstd.level":                  whole(-131072, 22),
	"delete.retention.ms":                     whole(0, maxInt64),
	"file.delete.delay.ms":                    whole(0, maxInt64),
	"flush.messages":                          whole(1, maxInt64),
	"flush.ms":                                whole(0, maxInt64),
	"follower.replication.throttled.replicas": anyText,
	"index.interval.bytes":                    whole(0, maxInt32),
	"leader.replication.throttled.replicas":   anyText,
	"local.retention.bytes":                   whole(-2, maxInt64),
	"local.retention.ms":                      whole(-2, maxInt64),
	"max.compaction.lag.ms":                   whole(1, maxInt64),
	"max.message.bytes":                       whole(0, maxInt32),
	"message.timestamp.after.max.ms":          whole(0, maxInt64),
	"message.timestamp.before.max.ms":         whole(0, maxInt64),
	"message.timestamp.type":                  oneOf("CreateTime", "LogAppendTime"),
	"min.cleanable.dirty.ratio":               fraction,
	"min.compaction.lag.ms":                   whole(0, maxInt64),
	"min.insync.replicas":                     whole(1, maxInt32),
	"preallocate":                             boolean,
	"remote.log.copy.disable":                 boolean,
	"remote.log.delete.on.disable":            boolean,
	"remote.storage.enable":                   boolean,
	"retention.bytes":                         whole(-1, maxInt64),
	"retention.ms":                            whole(-1, maxInt64),
	"segment.bytes":                           whole(1<<20, maxInt32),
	"segment.index.bytes":                     whole(4, maxInt32),
	"segment.jitter.ms":                       whole(0, maxInt64),
	"segment.ms":                              whole(1, maxInt64),
	"unclean.leader.election.enable":          boolean,
}

// badTopicConfig says why Kafka would refuse the configuration, or nothing.
func badTopicConfig(name string, value *string) string {
	kind, known := topicConfigs[name]
	switch {
	case !known:
		return fmt.Sprintf("unknown topic config %q", name)
	case value == nil:
		return fmt.Sprintf("topic config %q has no value", name)
	case !kind.check(*value):
		return fmt.Sprintf("topic config %q is %q: must be %s", name, *value, kind.want)
	}
	return ""
}
