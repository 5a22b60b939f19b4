package badger

import (
	"os"
	"testing"
)

func childMain(m *testing.M) { os.Exit(m.Run()) }
