package kernels

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// linger is how long a worker looks for more work before it sleeps: the pieces of a training
// step follow each other within microseconds, and to wake a thread takes longer.
const linger = 100 * time.Microsecond

// job is one call of Parallel.
type job struct {
	fn   func(i int)
	n    int64
	next atomic.Int64 // the next i
	done atomic.Int64 // calls that have returned
	end  chan struct{}
	on   int // the processor that it was begun on, if a worker slept then; see leave
}

// work calls fn until nothing is left to begin.
func (j *job) work() {
	for i := j.next.Add(1) - 1; i < j.n; i = j.next.Add(1) - 1 {
		j.fn(int(i))
		if j.done.Add(1) == j.n {
			close(j.end)
		}
	}
}

// pool are the workers, which are there from the start. They help with one job at a time;
// calls of Parallel that find them with another make goroutines of their own.
var pool struct {
	job    atomic.Pointer[job]
	asleep atomic.Int64
	wake   chan struct{}
}

func init() {
	workers := max(1, runtime.NumCPU()-1)
	pool.wake = make(chan struct{}, workers)
	for range workers {
		go func() {
			for {
				for idle := time.Now(); time.Since(idle) < linger; runtime.Gosched() {
					if j := pool.job.Load(); j != nil && j.next.Load() < j.n {
						j.work()
						idle = time.Now()
					}
				}
				pool.asleep.Add(1)
				if j := pool.job.Load(); j == nil || j.next.Load() >= j.n {
					<-pool.wake
					if j := pool.job.Load(); j != nil {
						leave(j.on)
					}
				}
				pool.asleep.Add(-1)
			}
		}()
	}
}

// Parallel calls fn(0) to fn(n-1), on as many goroutines as there are
// processors, and returns when all have. The calls must not share what they
// write.
func Parallel(n int, fn func(i int)) {
	workers := min(n, runtime.GOMAXPROCS(0)/int(max(1, lanes.Load())))
	if workers <= 1 {
		for i := range n {
			fn(i)
		}
		return
	}
	j := &job{fn: fn, n: int64(n), end: make(chan struct{}), on: -1}
	if pool.asleep.Load() > 0 {
		j.on = processor()
	}
	if !pool.job.CompareAndSwap(nil, j) {
		var wg sync.WaitGroup
		for range workers - 1 {
			wg.Go(j.work)
		}
		j.work()
		wg.Wait()
		return
	}
	for range min(int64(workers-1), pool.asleep.Load()) {
		select {
		case pool.wake <- struct{}{}:
		default: // as many as there are have been woken
		}
	}
	j.work()
	pool.job.Store(nil)
	for begun := time.Now(); j.done.Load() < j.n; {
		if time.Since(begun) > linger {
			<-j.end
			return
		}
		runtime.Gosched()
	}
}

// lanes is how many lanes run.
var lanes atomic.Int64

// Lanes calls fn(0) to fn(n-1) side by side, for long work that calls Parallel itself: each has its
// share of the processors, and none waits for another before it is done, as the processors that share
// the pieces of one kernel do after each. While one lane multiplies matrices, another may well do something else.
// Those that are done first leave their processors to the others.
func Lanes(n int, fn func(i int)) {
	if runtime.GOMAXPROCS(0) == 1 || n == 1 {
		for i := range n {
			fn(i)
		}
		return
	}
	lanes.Add(int64(n))
	run := func(i int) {
		defer lanes.Add(-1)
		fn(i)
	}
	var wg sync.WaitGroup
	for i := 1; i < n; i++ {
		wg.Go(func() { run(i) })
	}
	run(0)
	wg.Wait()
}
