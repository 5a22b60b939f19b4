package badger

import (
	"testing"

	"go.uber.org/goleak"

	"tailrace.dev/state"
	"tailrace.dev/state/statetest"
)

func TestMain(m *testing.M) { childMain(m) }

func TestConformance(t *testing.T) {
	defer goleak.VerifyNone(t)
	statetest.Run(t, func(t testing.TB) (state.Backend, func() state.Backend) {
		dir := t.TempDir()
		b := mustOpen(t, dir, testOptions())
		return b, func() state.Backend {
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
			b = mustOpen(t, dir, testOptions())
			return b
		}
	})
}

// testOptions has what makes tests fast.
func testOptions() Options {
	return Options{MemTableBytes: minMemTableBytes, NoSync: true}
}

func mustOpen(t testing.TB, dir string, opts Options) *Backend {
	t.Helper()
	b, err := Open(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
