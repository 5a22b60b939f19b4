// Package conformance replays what the real Kafka Streams does. Each file in testdata holds a topology, in words that
// the tests map to the public API, the records that go in, and what Apache Kafka Streams 4.3.1 was seen to give out
// for them, one input at a time. It has tests only.
//
// CONFORMANCE_DIR names another directory of such files to replay instead, by its absolute path and with all its
// folders:
//
//	CONFORMANCE_DIR=/some/cases go test -v -run Conformance ./internal/conformance
//
// The last line of the test tells how many passed and failed; go test shows it with -v, or when one has failed. A case
// that cannot be said in the public API, or read, has failed.
package conformance
