package processor

import "slices"

// InternalTopics returns the broker's names of the topics that an application makes for a sub-topology: the
// repartition topics that it reads and the changelogs of its stores, in order. Those of stores of effects, which a reset
// keeps, end in "-effects".
func (t *Topology) InternalTopics(app, sub string) []string {
	s := t.sub(sub)
	if s == nil {
		return nil
	}
	var names []string
	for _, n := range s.sources {
		if n.internal != nil {
			names = append(names, n.brokerTopic(app))
		}
	}
	followed := t.Followed(app, sub)
	for _, st := range s.stores {
		if !slices.ContainsFunc(followed, func(f Followed) bool { return f.Store == st.Name() }) {
			names = append(names, StoreTopic(app, st))
		}
	}
	slices.Sort(names)
	return names
}

// DefaultStateDir returns the directory in which local state is kept where Config.StateDir is empty; an application's
// own is the one in it that has the name of its id.
func DefaultStateDir() (string, error) { return defaultStateDir() }
