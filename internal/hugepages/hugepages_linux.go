package hugepages

import (
	"bufio"
	"bytes"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

const (
	size     = 2 << 20 // of a huge page
	collapse = 25      // MADV_COLLAPSE, Linux 6.1 and later: what is there already becomes huge now
)

// advise looks for private, anonymous, writable memory of more than a huge page, which in a
// Go program is the heap.
func advise() {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return // without it nothing is lost but speed
	}
	for lines := bufio.NewScanner(bytes.NewReader(maps)); lines.Scan(); {
		var from, to uintptr
		var access, offset, device string
		var inode int
		if n, _ := fmt.Sscanf(lines.Text(), "%x-%x %s %s %s %d", &from, &to, &access, &offset, &device, &inode); n < 6 || access != "rw-p" || inode != 0 || bytes.ContainsRune(lines.Bytes(), '[') && !bytes.Contains(lines.Bytes(), []byte("[anon: Go: heap]")) {
			continue
		}
		begin := from
		from = (max(from, state.done[from]) + size - 1) &^ (size - 1)
		to &^= size - 1
		if from >= to {
			continue
		}
		// Either may fail; then pages stay small.
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_HUGEPAGE)
		for at := from; at < to; at += size { // one by one: what can't become huge ends a longer call
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, at, size, collapse)
		}
		state.done[begin] = to
	}
}
