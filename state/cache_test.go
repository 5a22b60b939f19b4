package state

import (
	"fmt"
	"testing"
	"time"
)

// total is what the cache holds, by its own measure.
func (c *objectCache[V]) total() (n, bytes int) {
	for _, gen := range []map[string]*object[V]{c.young, c.old} {
		for _, o := range gen {
			n++
			bytes += o.bytes
		}
	}
	return n, bytes
}

func TestCacheIsBounded(t *testing.T) {
	const limit = 10_000
	c := objectCache[int]{limit: limit}
	for i := range 10_000 {
		c.put(fmt.Append(nil, i), i, 0, 30)
		if _, bytes := c.total(); bytes > limit {
			t.Fatalf("after %d values the cache holds %d bytes, limit %d", i, bytes, limit)
		}
	}
	if o := c.get([]byte("9999")); o == nil || o.value != 9999 {
		t.Fatal("the newest value is gone")
	}
	if o := c.get([]byte("0")); o != nil {
		t.Fatal("the oldest value is still there")
	}
}

// Values that grow must turn the cache over as new ones do.
func TestCacheIsBoundedWhenValuesGrow(t *testing.T) {
	const limit, largest = 10_000, 500 + 100
	c := objectCache[int]{limit: limit}
	for size := range 500 {
		for i := range 50 {
			c.put(fmt.Append(nil, i), i, 0, size)
			if _, bytes := c.total(); bytes > limit+largest {
				t.Fatalf("with values of %d bytes the cache holds %d bytes, limit %d", size, bytes, limit)
			}
		}
	}
}

func TestCacheKeepsOneValueBeyondItsLimit(t *testing.T) {
	c := objectCache[int]{limit: 1000}
	for i := range 10 {
		c.put([]byte{byte(i)}, i, 0, 5000)
		if n, _ := c.total(); n > 2 {
			t.Fatalf("the cache holds %d values that are larger than it", n)
		}
	}
}

func TestCacheKeepsWhatIsAskedFor(t *testing.T) {
	c := objectCache[int]{limit: 4000}
	c.put([]byte("hot"), 1, 7, 10)
	for i := range 1000 {
		c.put(fmt.Append(nil, i), i, 0, 10)
		if o := c.get([]byte("hot")); o == nil || o.value != 1 || o.timeMillis != 7 {
			t.Fatalf("after %d others the hot value is %+v", i, o)
		}
	}
}

func TestCacheLends(t *testing.T) {
	c := objectCache[*int]{limit: 4000}
	v, key := 1, []byte("k")
	c.put(key, &v, 5, 10)
	got, millis, ok := c.take(key)
	if !ok || got != &v || millis != 5 {
		t.Fatalf("take: %v %d %t", got, millis, ok)
	}
	if c.get(key) != nil {
		t.Fatal("the cache hands out a value that is lent")
	}
	if _, _, ok := c.take(key); ok {
		t.Fatal("the cache lends a value twice")
	}
	c.put(key, &v, 6, 10)
	if o := c.get(key); o == nil || o.value != &v || o.timeMillis != 6 {
		t.Fatalf("given back: %+v", o)
	}
	c.take(key)
	c.drop(key)
	if c.get(key) != nil || c.size != 0 {
		t.Fatalf("dropped while lent: %+v, %d bytes", c.get(key), c.size)
	}
}

func TestCacheSize(t *testing.T) {
	c := objectCache[int]{limit: 2000}
	for i := range 500 {
		k := fmt.Append(nil, i%37)
		switch i % 5 {
		case 0, 1, 2:
			c.put(k, i, 0, i%90)
		case 3:
			c.take(k)
		case 4:
			c.evict(string(k))
		}
		young := 0
		for _, o := range c.young {
			young += o.bytes
		}
		if young != c.size {
			t.Fatalf("step %d: the young generation has %d bytes, counted %d", i, young, c.size)
		}
		for k := range c.young {
			if _, both := c.old[k]; both {
				t.Fatalf("step %d: %q is in both generations", i, k)
			}
		}
	}
}

func TestFlatTypes(t *testing.T) {
	type point struct {
		X, Y int
		Name string
		At   time.Time
		Arr  [3]float64
	}
	type node struct{ Next *node }
	flat := map[string]bool{
		"int64":  KeyValue[string, int64]("x", nil, nil).flat,
		"string": KeyValue[string, string]("x", nil, nil).flat,
		"struct": KeyValue[string, point]("x", nil, nil).flat,
		"empty":  KeyValue[string, struct{}]("x", nil, nil).flat,
	}
	shared := map[string]bool{
		"slice":     KeyValue[string, []byte]("x", nil, nil).flat,
		"map":       KeyValue[string, map[string]int]("x", nil, nil).flat,
		"pointer":   KeyValue[string, *int]("x", nil, nil).flat,
		"any":       KeyValue[string, any]("x", nil, nil).flat,
		"in struct": KeyValue[string, struct{ L []int }]("x", nil, nil).flat,
		"in array":  KeyValue[string, [2]*int]("x", nil, nil).flat,
		"recursive": KeyValue[string, node]("x", nil, nil).flat,
		"func":      KeyValue[string, func()]("x", nil, nil).flat,
		"chan":      KeyValue[string, chan int]("x", nil, nil).flat,
	}
	for name, is := range flat {
		if !is {
			t.Errorf("%s: copies of it share nothing", name)
		}
	}
	for name, is := range shared {
		if is {
			t.Errorf("%s: copies of it share memory", name)
		}
	}
}
