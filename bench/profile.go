package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
	"runtime/trace"
)

// startProfile starts the profiles that the environment asks for. The returned function ends them and writes them out.
func startProfile() (end func() error, err error) {
	var ends []func() error
	end = func() error {
		var errs []error
		for _, f := range ends {
			errs = append(errs, f())
		}
		return errors.Join(errs...)
	}
	open := func(variable string, start func(f *os.File) error, stop func(f *os.File) error) error {
		path := os.Getenv(variable)
		if path == "" {
			return nil
		}
		f, err := os.Create(path)
		if err != nil {
			return fmt.Errorf("bench: %s: %w", variable, err)
		}
		if err := start(f); err != nil {
			return errors.Join(fmt.Errorf("bench: %s: %w", variable, err), f.Close())
		}
		ends = append(ends, func() error { return errors.Join(stop(f), f.Close()) })
		return nil
	}
	err = errors.Join(
		open("BENCH_CPUPROFILE", func(f *os.File) error { return pprof.StartCPUProfile(f) },
			func(*os.File) error { pprof.StopCPUProfile(); return nil }),
		open("BENCH_TRACE", func(f *os.File) error { return trace.Start(f) },
			func(*os.File) error { trace.Stop(); return nil }),
		open("BENCH_MEMPROFILE", func(*os.File) error { return nil },
			func(f *os.File) error {
				runtime.GC()
				return pprof.Lookup("allocs").WriteTo(f, 0)
			}),
	)
	if err != nil {
		return nil, errors.Join(err, end())
	}
	return end, nil
}
