// Package sim runs the commit, restore and rebalance protocol of the engine against faults that no test would think of,
// in two ways.
//
// The model simulation (Run) is exact: one goroutine, no clock, no I/O. Real tasks over real topologies and real state
// layers are driven by model members, which take the steps of the protocol one at a time, in the engine's order and with
// the engine's own decisions (package engine, rules.go), against a model broker. A generator seeded by one number
// chooses who takes the next step, and which fault comes when. The same seed gives the same run, byte by byte.
//
// The virtual-time simulation (RunNet) is real code all the way down: the engine, its Kafka client, an in-process broker
// and the local database, in a bubble of testing/synctest, with faults at the engine's seams and in the broker. The
// scheduler of the runtime has a part in it, so that a seed makes the same plan but not the same run.
//
// Both end by letting everything heal and drain, and compare what came out with a fold of the input from scratch, by
// code that has nothing in common with the operators.
package sim
