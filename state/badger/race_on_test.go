//go:build race

package badger

// raceDetector makes the tests that only look at files do less: they are slow under it and hold no races.
const raceDetector = true
