// Package faults breaks applications on purpose and counts what is lost, repeated or out of order. It has tests only.
//
// The application under test counts the records of each key and writes every count. Its output, read committed, must be
// 1, 2, 3 and so on for each key, up to the number of records that went in: a record that is processed twice, lost, or
// on top of state that does not fit it shows there. Beside the output, the local state of each task is compared with
// its changelog, and the committed offsets with the input's end.
//
// Members run as processes of their own, made from the test binary, so that a kill is a kill. The tests use the embedded
// broker; with the build tag kafka they use a real one, and take longer. FAULTS_SECONDS sets how long the kill loops
// run, FAULTS_KILLS how often each point of the protocol is killed at. docs/reliability.md lists the tests.
package faults
