//go:build !linux && !darwin

package app

// peakRSS is not known here.
func peakRSS() int64 { return 0 }

// freeBytes is not known here.
func freeBytes(string) (free uint64, ok bool) { return 0, false }
