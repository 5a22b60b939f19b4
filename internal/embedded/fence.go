package embedded

import (
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// A fence looks at a request before the cluster does. It answers nothing itself, because it could answer the request
// only as a whole: it sets a fault for the offending topic or partition of exactly this request, and the cluster
// answers the others as ever. The cluster handles one request at a time, so a fault that this request did not consume,
// because another came first, is taken away when the next one is looked at.
type fence struct {
	cluster *kfake.Cluster
	left    []*kfake.FaultHandle
}

func (f *fence) begin() {
	for _, h := range f.left {
		h.Remove()
	}
	f.left = f.left[:0]
}

func (f *fence) refuse(req kmsg.Request, fault kfake.Fault) {
	fault.Keys = []kmsg.Key{kmsg.Key(req.Key())}
	fault.When = func(r kmsg.Request) bool { return r == req }
	f.left = append(f.left, f.cluster.Fault(fault))
}

// fenceConfigs refuses topic configurations as Kafka does.
func fenceConfigs(c *kfake.Cluster) {
	f := &fence{cluster: c}
	on := func(key kmsg.Key, look func(kmsg.Request)) {
		c.ControlKey(int16(key), func(req kmsg.Request) (kmsg.Response, error, bool) {
			f.begin()
			look(req)
			return nil, nil, false
		})
	}
	on(kmsg.CreateTopics, func(req kmsg.Request) {
		create, ok := req.(*kmsg.CreateTopicsRequest)
		if !ok {
			return
		}
		for i := range create.Topics {
			t := &create.Topics[i]
			for _, kv := range t.Configs {
				if why := badTopicConfig(kv.Name, kv.Value); why != "" {
					f.refuse(req, kfake.Fault{Topic: t.Topic, Err: invalidConfig(why)})
					break
				}
			}
		}
	})
	on(kmsg.AlterConfigs, func(req kmsg.Request) {
		alter, ok := req.(*kmsg.AlterConfigsRequest)
		if !ok {
			return
		}
		for i := range alter.Resources {
			r := &alter.Resources[i]
			if r.ResourceType != kmsg.ConfigResourceTypeTopic {
				continue
			}
			for _, kv := range r.Configs {
				if why := badTopicConfig(kv.Name, kv.Value); why != "" {
					f.refuse(req, kfake.Fault{Resource: r.ResourceName, Err: invalidConfig(why)})
					break
				}
			}
		}
	})
	on(kmsg.IncrementalAlterConfigs, func(req kmsg.Request) {
		alter, ok := req.(*kmsg.IncrementalAlterConfigsRequest)
		if !ok {
			return
		}
		for i := range alter.Resources {
			r := &alter.Resources[i]
			if r.ResourceType != kmsg.ConfigResourceTypeTopic {
				continue
			}
			for _, kv := range r.Configs {
				value := kv.Value
				if kv.Op == kmsg.IncrementalAlterConfigOpDelete {
					if _, known := topicConfigs[kv.Name]; known {
						continue // a deletion carries no value
					}
				}
				if why := badTopicConfig(kv.Name, value); why != "" {
					f.refuse(req, kfake.Fault{Resource: r.ResourceName, Err: invalidConfig(why)})
					break
				}
			}
		}
	})
}

func invalidConfig(why string) *kerr.Error {
	e := *kerr.InvalidConfig
	e.Description = why
	return &e
}

// fenceNullKeys refuses records without a key in compacted topics.
func fenceNullKeys(c *kfake.Cluster) {
	f := &nullKeyFence{fence: fence{cluster: c}, compacted: make(map[topicRef]bool)}
	c.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
		if produce, ok := req.(*kmsg.ProduceRequest); ok {
			f.look(produce)
		}
		return nil, nil, false
	})
	// A topic's policy may change with these, so what is known of it is forgotten. The cluster runs one control after
	// another, never two at once, and applies the request before it looks at the next.
	for _, key := range []kmsg.Key{
		kmsg.CreateTopics, kmsg.DeleteTopics, kmsg.AlterConfigs, kmsg.IncrementalAlterConfigs,
	} {
		c.ControlKey(int16(key), func(kmsg.Request) (kmsg.Response, error, bool) {
			clear(f.compacted)
			return nil, nil, false
		})
	}
}

// topicRef is a topic as a produce request names it: by id since version 13, by name before.
type topicRef struct {
	name string
	id   [16]byte
}

type nullKeyFence struct {
	fence
	compacted map[topicRef]bool // bounded by the topics of the cluster; unknown ones are not kept
	scan      keyScanner
}

func (f *nullKeyFence) look(req *kmsg.ProduceRequest) {
	f.begin()
	for i := range req.Topics {
		t := &req.Topics[i]
		if !f.isCompacted(topicRef{t.Topic, t.TopicID}) {
			continue
		}
		name := t.Topic
		for j := range t.Partitions {
			p := &t.Partitions[j]
			if !f.scan.hasNullKey(p.Records) {
				continue
			}
			if name == "" {
				name = f.cluster.TopicIDInfo(t.TopicID).Topic
			}
			f.refuse(req, kfake.Fault{Topic: name, Partitions: []int32{p.Partition}, Err: errNullKey})
		}
	}
}

func (f *nullKeyFence) isCompacted(ref topicRef) bool {
	if is, known := f.compacted[ref]; known {
		return is
	}
	var info *kfake.TopicInfo
	if ref.name != "" {
		info = f.cluster.TopicInfo(ref.name)
	} else {
		info = f.cluster.TopicIDInfo(ref.id)
	}
	if info == nil {
		return false
	}
	policy := info.Configs["cleanup.policy"]
	is := policy != nil && strings.Contains(*policy, "compact")
	f.compacted[ref] = is
	return is
}

var errNullKey = func() *kerr.Error {
	e := *kerr.InvalidRecord
	e.Description = "a compacted topic does not take records without a key"
	return &e
}()
