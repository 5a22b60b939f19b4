// Generate writes random cases for the conformance tests: a topology and what goes in, without what comes out. The
// real Kafka Streams adds that; see make conformance-random. The same seed gives the same cases.
//
// Rules that Kafka Streams itself breaks by accident are not worth copying, so the cases avoid them; each place says
// which.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
)

func main() {
	count := flag.Int("n", 300, "how many cases")
	seed := flag.Uint64("seed", 1, "where the random numbers start")
	ops := flag.String("ops", "", "only these operations, separated by commas")
	loose := flag.Bool("loose", false, "also cases in which Kafka Streams breaks its rules")
	out := flag.String("out", "", "the directory to write to, made if need be")
	flag.Parse()
	if err := generate(*out, *ops, *count, *seed, *loose); err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

// object is a JSON object.
type object = map[string]any

// testCase is one file.
type testCase struct {
	Name    string   `json:"name"`
	Origin  string   `json:"origin"`
	Compare string   `json:"compare"`
	Spec    object   `json:"spec"`
	Inputs  []object `json:"inputs"`
}

func generate(dir, ops string, count int, seed uint64, loose bool) error {
	if dir == "" {
		return fmt.Errorf("name the directory to write to: -out DIR")
	}
	chosen := operations
	if ops != "" {
		chosen = nil
		for _, name := range strings.Split(ops, ",") {
			found := false
			for _, o := range operations {
				if o.name == name {
					chosen, found = append(chosen, o), true
				}
			}
			if !found {
				return fmt.Errorf("there is no operation %q", name)
			}
		}
	}
	total := 0
	for _, o := range chosen {
		total += o.weight
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for i := range count {
		// Each case has its own numbers, so that a case of a seed stays the same when others are added behind it.
		g := &gen{Rand: rand.New(rand.NewPCG(seed, uint64(i))), loose: loose}
		n := g.IntN(total)
		o := chosen[0]
		for _, o = range chosen {
			if n -= o.weight; n < 0 {
				break
			}
		}
		c := testCase{Origin: "random", Compare: "sequence", Spec: object{"op": o.name}}
		c.Name = fmt.Sprintf("random_%s_%d_%04d", strings.ReplaceAll(o.name, "-", "_"), seed, i)
		if g.chance(20) { // not all times are near the epoch, where windows are cut off
			g.start = pick[int64](g, 1_000, 86_400_000, 1_700_000_000_123)
			g.newest = g.start
		}
		o.make(g, &c)
		b, err := json.MarshalIndent(c, "", " ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, c.Name+".json"), b, 0o644); err != nil {
			return err
		}
	}
	return nil
}
