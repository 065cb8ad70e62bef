package kernels

import (
	"runtime"
	"sync"
	"sync/atomic"
)

// Parallel calls fn(0) to fn(n-1), on as many goroutines as there are
// processors, and returns when all have. The calls must not share what they
// write.
func Parallel(n int, fn func(i int)) {
	workers := min(n, runtime.GOMAXPROCS(0))
	if workers <= 1 {
		for i := range n {
			fn(i)
		}
		return
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
				fn(int(i))
			}
		})
	}
	wg.Wait()
}
