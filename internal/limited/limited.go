// Package limited keeps damaged Arrow files from taking all memory: they ask for any amount.
package limited

import (
	"fmt"

	"github.com/apache/arrow/go/v17/arrow/memory"
)

// Allocator refuses to allocate more than Limit bytes at once, by a panic, which a reader turns into an error: the
// interface has no other way.
type Allocator struct {
	memory.Allocator
	Limit int
}

func (a Allocator) check(size int) {
	if size < 0 || size > a.Limit {
		panic(fmt.Sprintf("it asks for %d bytes at once", size))
	}
}

// Allocate implements memory.Allocator.
func (a Allocator) Allocate(size int) []byte {
	a.check(size)
	return a.Allocator.Allocate(size)
}

// Reallocate implements memory.Allocator.
func (a Allocator) Reallocate(size int, b []byte) []byte {
	a.check(size)
	return a.Allocator.Reallocate(size, b)
}
