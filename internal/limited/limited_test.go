package limited

import (
	"testing"

	"github.com/apache/arrow/go/v17/arrow/memory"
)

func TestAllocator(t *testing.T) {
	a := Allocator{memory.DefaultAllocator, 100}
	b := a.Reallocate(100, a.Allocate(10))
	if len(b) != 100 {
		t.Errorf("%d bytes", len(b))
	}
	a.Free(b)
	for _, size := range []int{101, -1} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%d bytes were allocated", size)
				}
			}()
			a.Allocate(size)
		}()
	}
}
