//go:build linux || darwin

package app

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// peakRSS returns the largest resident memory of this process so far, in bytes.
func peakRSS() int64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	if runtime.GOOS == "darwin" {
		return u.Maxrss
	}
	return u.Maxrss << 10 // KiB there
}

// freeBytes returns how much may still be written to the disk of a folder.
func freeBytes(dir string) (free uint64, ok bool) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, false
	}
	return s.Bavail * uint64(s.Bsize), true
}
