package decoder

import (
	"math/rand/v2"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestCompany: searches that come, go, and choose for different times take every step
// exactly once, and nobody waits for one that is not about to take a step.
func TestCompany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ran, shared atomic.Int32
		c := &company{}
		c.run = func(all []*pass) {
			time.Sleep(time.Millisecond)
			for _, p := range all {
				p.suffix.hidden = append(p.suffix.hidden, float32(p.tokens[0]))
			}
			ran.Add(int32(len(all)))
			if len(all) > 1 {
				shared.Add(1)
			}
		}
		steps := 0
		var searches sync.WaitGroup
		for search := range 20 {
			rng := rand.New(rand.NewPCG(7, uint64(search)))
			n := 1 + rng.IntN(30)
			steps += n
			searches.Go(func() {
				time.Sleep(time.Duration(rng.IntN(50)) * time.Millisecond)
				c.enter()
				defer c.leave()
				for i := range n {
					time.Sleep(time.Duration(rng.IntN(300)) * time.Microsecond)
					p := &pass{suffix: new(suffix), tokens: make([]int32, 1+rng.IntN(2*few))}
					p.tokens[0] = int32(i)
					c.step(p)
					if len(p.suffix.hidden) != 1 || p.suffix.hidden[0] != float32(i) {
						t.Errorf("search %d step %d: ran %d times, with %v", search, i, len(p.suffix.hidden), p.suffix.hidden)
					}
				}
			})
		}
		searches.Wait() // who waits for ever is a deadlock, which the bubble reports
		if int(ran.Load()) != steps {
			t.Errorf("%d passes ran, want %d", ran.Load(), steps)
		}
		if shared.Load() == 0 {
			t.Error("no two passes ran together")
		}
		if c.members != 0 || len(c.waiting) != 0 {
			t.Errorf("%d members are left, %d wait", c.members, len(c.waiting))
		}
	})
}

// TestCompanyWaitsForMembersOnly: a step that is alone runs at once; one beside a member
// that chooses waits for it, and no longer than until it leaves.
func TestCompanyWaitsForMembersOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sizes []int
		c := &company{run: nil}
		c.run = func(all []*pass) { sizes = append(sizes, len(all)) }
		c.enter()
		c.step(&pass{tokens: make([]int32, 1)})
		c.enter() // another, which does not step
		done := make(chan struct{})
		go func() {
			c.step(&pass{tokens: make([]int32, 1)})
			close(done)
		}()
		synctest.Wait()
		select {
		case <-done:
			t.Fatal("the step did not wait for the other member")
		default:
		}
		c.leave()
		<-done
		c.leave()
		if want := []int{1, 1}; !reflect.DeepEqual(sizes, want) {
			t.Errorf("passes of %v, want %v", sizes, want)
		}
	})
}

// TestSideBySideAsAlone: searches that run at the same time write what each writes alone,
// to the last bit.
func TestSideBySideAsAlone(t *testing.T) {
	for _, n := range []Numbers{Float32, Int16, Int8} {
		t.Run(n.String(), func(t *testing.T) { sideBySideAsAlone(t, n, 0) })
		t.Run(n.String()+", experts", func(t *testing.T) { sideBySideAsAlone(t, n, 6) })
	}
}

func sideBySideAsAlone(t *testing.T, numbers Numbers, experts int) {
	const items = 300
	cb := testCodebook(t, items, 20)
	c, err := Preset("tiny", cb.Levels(), cb.Codes(), 20, 5)
	if err != nil {
		t.Fatal(err)
	}
	if c.Experts = experts; experts > 0 {
		c.Active = 2
	}
	w, err := NewWeights(c, 3)
	if err != nil {
		t.Fatal(err)
	}
	gen, err := NewGenerator(w, cb)
	if err != nil {
		t.Fatal(err)
	}
	gen = gen.In(numbers)
	type outcome struct {
		lists []List
		next  []Next
	}
	search := func(i int) (out outcome) {
		rng := rand.New(rand.NewPCG(5, uint64(i)))
		o := Options{Width: 1 + rng.IntN(40), Length: 1 + rng.IntN(5)}
		for range rng.IntN(15) {
			o.History = append(o.History, cb.ID(rng.Int32N(items)))
		}
		var err error
		switch i % 3 {
		case 0:
			out.next, err = gen.Next(o, 10)
		case 1:
			o.Temperature, o.Rand = 1, rng
			fallthrough
		default:
			out.lists, err = gen.Generate(o)
		}
		if err != nil {
			t.Error(err)
		}
		return out
	}
	alone, together := make([]outcome, 60), make([]outcome, 60)
	for i := range alone {
		alone[i] = search(i)
	}
	var sizes sync.Map
	run := gen.company.run
	gen.company.run = func(all []*pass) {
		sizes.Store(len(all), true)
		run(all)
	}
	for _, side := range []int{2, 12} { // searches at a time
		var wg sync.WaitGroup
		for first := range side {
			wg.Go(func() {
				for i := first; i < len(together); i += side {
					together[i] = search(i)
				}
			})
		}
		wg.Wait()
		for i := range alone {
			if !reflect.DeepEqual(together[i], alone[i]) {
				t.Fatalf("search %d among %d: %+v, alone %+v", i, side, together[i], alone[i])
			}
		}
	}
	shared := 0
	sizes.Range(func(size, _ any) bool { shared = max(shared, size.(int)); return true })
	t.Logf("up to %d passes together", shared)
	if shared < 2 {
		t.Error("no two passes ran together: nothing was tested")
	}
}

func TestSideBySide(t *testing.T) {
	for width, want := range map[int]int{1: 8, 4: 8, 8: 4, 16: 2, 17: 1, 32: 1, 1024: 1} {
		if got := SideBySide(width); got != want {
			t.Errorf("%d searches of width %d, want %d", got, width, want)
		}
	}
}
