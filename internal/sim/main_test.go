package sim

import (
	"flag"
	"testing"
)

// The runs in virtual time wait for the disk most of their time: more of them at once do not need more cores.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "6"); err != nil {
		panic(err)
	}
	m.Run()
}
