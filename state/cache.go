package state

// defaultCacheBytes bounds the decoded objects of one store of one task, by the size of their rows.
const defaultCacheBytes = 8 << 20

// objectCache keeps decoded values by row key, so that a hot value is not decoded at each record. It is two
// generations of a map: when the young one is full it becomes the old one, and what is not asked for until the next
// turn goes. What it holds is never what is committed or queried: those are the bytes of the rows.
type objectCache[V any] struct {
	limit      int
	size       int // of the young generation
	young, old map[string]*object[V]
}

type object[V any] struct {
	key        string
	value      V
	timeMillis int64
	bytes      int
	lent       bool // its value is with the owner that take made
}

func (c *objectCache[V]) get(key []byte) *object[V] {
	o := c.find(key)
	if o == nil || o.lent {
		return nil
	}
	return o
}

func (c *objectCache[V]) find(key []byte) *object[V] {
	if o, ok := c.young[string(key)]; ok {
		return o
	}
	if o, ok := c.old[string(key)]; ok {
		delete(c.old, o.key)
		c.add(o)
		return o
	}
	return nil
}

// take returns the value and lends it to the caller: until the next put, the cache does not know the key.
func (c *objectCache[V]) take(key []byte) (v V, timeMillis int64, ok bool) {
	o := c.get(key)
	if o == nil {
		return v, 0, false
	}
	v = o.value
	var zero V
	o.value, o.lent = zero, true
	return v, o.timeMillis, true
}

// put returns the key as the cache keeps it, for others to share.
func (c *objectCache[V]) put(key []byte, v V, timeMillis int64, rowBytes int) string {
	size := len(key) + rowBytes + layerEntryOverhead
	if o := c.find(key); o != nil {
		c.size += size - o.bytes
		o.value, o.timeMillis, o.bytes, o.lent = v, timeMillis, size, false
		if c.size > c.limit/2 {
			c.turn() // values grow, too
		}
		return o.key
	}
	o := &object[V]{key: string(key), value: v, timeMillis: timeMillis, bytes: size}
	c.add(o)
	return o.key
}

func (c *objectCache[V]) add(o *object[V]) {
	if c.size+o.bytes > c.limit/2 {
		c.turn()
	}
	if c.young == nil {
		c.young = make(map[string]*object[V])
	}
	c.young[o.key] = o
	c.size += o.bytes
}

// turn makes the young generation the old one.
func (c *objectCache[V]) turn() { c.old, c.young, c.size = c.young, nil, 0 }

func (c *objectCache[V]) drop(key []byte) {
	if o, ok := c.young[string(key)]; ok {
		c.size -= o.bytes
		delete(c.young, string(key))
	}
	delete(c.old, string(key))
}

// evict forgets a key whose newest write was undone.
func (c *objectCache[V]) evict(key string) { c.drop(bytesOf(key)) }
