package kernels

import (
	"runtime"
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

// TestLanes: each lane runs once, at the same time as the others if there are processors, and what it splits is done,
// by itself if each has one.
func TestLanes(t *testing.T) {
	for _, processors := range []int{1, 2, 5} {
		func() {
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(processors))
			for _, n := range []int{1, 2, 3} {
				ran := make([]atomic.Int32, n)
				var parts atomic.Int32
				var begun, ended sync.WaitGroup
				begun.Add(n)
				ended.Add(n)
				Lanes(n, func(i int) {
					ran[i].Add(1)
					begun.Done()
					if processors > 1 {
						begun.Wait() // for ever, if they came one after the other
					}
					var atOnce, most atomic.Int32
					Parallel(10, func(int) {
						parts.Add(1)
						most.Store(max(most.Load(), atOnce.Add(1)))
						time.Sleep(100 * time.Microsecond) // others could come
						atOnce.Add(-1)
					})
					if processors <= n && most.Load() > 1 {
						t.Errorf("%d processors for %d lanes, and a lane has %d", processors, n, most.Load())
					}
					if ended.Done(); processors > 1 {
						ended.Wait() // who is done leaves its processor to others
					}
				})
				for i := range ran {
					if ran[i].Load() != 1 {
						t.Errorf("lane %d of %d ran %d times", i, n, ran[i].Load())
					}
				}
				if int(parts.Load()) != 10*n || lanes.Load() != 0 {
					t.Errorf("%d lanes did %d parts, and %d are said to run", n, parts.Load(), lanes.Load())
				}
			}
		}()
	}
}

// TestLastLane: what the last lane splits is done by all processors.
func TestLastLane(*testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	Lanes(2, func(i int) {
		if i == 1 {
			return
		}
		for lanes.Load() > 1 {
			runtime.Gosched()
		}
		var both sync.WaitGroup
		both.Add(2)
		Parallel(2, func(int) {
			both.Done()
			both.Wait() // for ever, if they came one after the other
		})
	})
}
