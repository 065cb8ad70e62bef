package kernels

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// processor is the one that the caller's thread runs on; -1 if that can't be told.
func processor() int {
	var cpu uint32
	if _, _, errno := unix.RawSyscall(unix.SYS_GETCPU, uintptr(unsafe.Pointer(&cpu)), 0, 0); errno != 0 {
		return -1
	}
	return int(cpu)
}

// leave moves the caller's thread to another processor, if it is on that one. Linux likes to wake a thread where the one
// that wakes it runs, and may leave the two there for a while, taking turns: a search after a pause then takes longer than one
// after another. The thread may run where it might before, afterwards. If that is not allowed it stays.
func leave(taken int) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if taken < 0 || processor() != taken {
		return
	}
	var all unix.CPUSet
	if unix.SchedGetaffinity(0, &all) != nil || all.Count() < 2 {
		return
	}
	others := all
	others.Clear(taken)
	if unix.SchedSetaffinity(0, &others) == nil {
		_ = unix.SchedSetaffinity(0, &all)
	}
}
