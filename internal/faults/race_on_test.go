//go:build race

package faults

// raceDetector tells that memory and speed are not those of the program.
const raceDetector = true
