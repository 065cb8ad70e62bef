package kernels

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestParallel: each call is made once, whoever calls at the same time, also from within
// another, and after the workers went to sleep.
func TestParallel(t *testing.T) {
	var wg sync.WaitGroup
	for caller := range 4 {
		wg.Go(func() {
			for round := range 300 {
				n := (caller*7 + round) % 40
				calls := make([]atomic.Int32, n)
				Parallel(n, func(i int) {
					calls[i].Add(1)
					if round%50 == 0 {
						var inner atomic.Int32
						Parallel(5, func(int) { inner.Add(1) })
						if inner.Load() != 5 {
							t.Errorf("%d of 5 calls within another were made", inner.Load())
						}
					}
				})
				for i := range calls {
					if calls[i].Load() != 1 {
						t.Errorf("call %d of %d was made %d times", i, n, calls[i].Load())
					}
				}
				if round%100 == 0 {
					time.Sleep(3 * linger)
				}
			}
		})
	}
	wg.Wait()
}
