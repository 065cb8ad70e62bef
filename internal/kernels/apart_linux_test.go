package kernels

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// TestLeave: a thread leaves a processor that is taken, and no other, and may run wherever it might before.
func TestLeave(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, after unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		t.Skipf("threads can't be told where to run: %v", err)
	}
	if before.Count() < 2 {
		t.Skip("there is one processor")
	}
	for cpu := range 1024 {
		if before.IsSet(cpu) {
			var one unix.CPUSet
			one.Set(cpu)
			err, at := unix.SchedSetaffinity(0, &one), processor()
			if back := unix.SchedSetaffinity(0, &before); err != nil || back != nil || at != cpu {
				t.Skipf("told to run on processor %d, a thread is on %d: %v", cpu, at, err)
			}
			break
		}
	}
	left := 0
	for range 100 {
		at := processor()
		if at < 0 || !before.IsSet(at) {
			t.Fatalf("on processor %d, which is none of its %d", at, before.Count())
		}
		leave(at)
		if processor() != at {
			left++
		}
	}
	leave(-1)
	if err := unix.SchedGetaffinity(0, &after); err != nil || after != before {
		t.Errorf("may run on %d processors, before on %d: %v", after.Count(), before.Count(), err)
	}
	if left < 50 { // it may be moved back
		t.Errorf("left %d of 100 times", left)
	}
}
