// Package conformance replays what the real Kafka Streams does. Each file in testdata holds a topology, in words that
// the tests map to the public API, the records that go in, and what Apache Kafka Streams 4.3.1 was seen to give out
// for them, one input at a time. It has tests only.
//
// CONFORMANCE_DIR names another directory of such files to replay instead, with its folder "random" if it has one.
package conformance
