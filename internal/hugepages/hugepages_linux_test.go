package hugepages

import (
	"bufio"
	"bytes"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
)

// TestHeap: a small heap is left alone, a large one gets huge pages, where there are some,
// and everything in it stays what it was.
func TestHeap(t *testing.T) {
	if setting, err := os.ReadFile("/sys/kernel/mm/transparent_hugepage/enabled"); err != nil || !bytes.Contains(setting, []byte("[madvise]")) {
		t.Skipf("huge pages are not for who asks here: %s, %v", setting, err)
	}
	Heap()
	if state.advised != 0 {
		t.Error("huge pages were asked for a small heap")
	}
	parts := make([][]byte, 0, 700)
	for i := range cap(parts) {
		part := make([]byte, 1<<20)
		for j := 0; j < len(part); j += 4096 {
			part[j] = byte(i)
		}
		parts = append(parts, part)
	}
	before := huge(t)
	Heap()
	if state.advised == 0 {
		t.Error("none were asked for a large heap")
	}
	t.Logf("huge pages: %d MiB, before %d", huge(t)>>20, before>>20)
	for i, part := range parts {
		for j := 0; j < len(part); j += 4096 {
			if part[j] != byte(i) {
				t.Fatalf("byte %d of part %d has changed", j, i)
			}
		}
	}
	runtime.KeepAlive(parts)
}

func huge(t *testing.T) (sum int64) {
	t.Helper()
	data, err := os.ReadFile("/proc/self/smaps_rollup")
	if err != nil {
		t.Skip(err)
	}
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		if kib, ok := strings.CutPrefix(lines.Text(), "AnonHugePages:"); ok {
			n, err := strconv.ParseInt(strings.Fields(kib)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			sum += n << 10
		}
	}
	return sum
}
