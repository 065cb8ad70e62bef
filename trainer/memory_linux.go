package trainer

import (
	"bufio"
	"bytes"
	"os"
	"strconv"
	"strings"
)

// availableMemory is how many bytes this process may still take: what the machine has left,
// or its control group; 0 if nobody knows.
func availableMemory() int64 {
	available := int64(0)
	if data, err := os.ReadFile("/proc/meminfo"); err == nil {
		for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
			if kib, ok := strings.CutPrefix(lines.Text(), "MemAvailable:"); ok {
				if n, err := strconv.ParseInt(strings.Fields(kib)[0], 10, 64); err == nil {
					available = n << 10
				}
			}
		}
	}
	number := func(path string) (int64, bool) {
		data, err := os.ReadFile(path)
		if err != nil {
			return 0, false
		}
		n, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64) // "max" is no limit
		return n, err == nil
	}
	limit, ok := number("/sys/fs/cgroup/memory.max")
	used, known := number("/sys/fs/cgroup/memory.current")
	if ok && known && (available == 0 || limit-used < available) {
		return max(1, limit-used)
	}
	return available
}
