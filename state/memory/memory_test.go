package memory_test

import (
	"testing"

	"tailrace.dev/state"
	"tailrace.dev/state/memory"
	"tailrace.dev/state/statetest"
)

func TestConformance(t *testing.T) {
	statetest.Run(t, func(testing.TB) (state.Backend, func() state.Backend) { return memory.New(), nil })
}
