package holdout

import (
	"fmt"
	"testing"
)

func TestShare(t *testing.T) {
	for _, percent := range []int{0, 10, 50, 100} {
		n := 0
		for i := range 20_000 {
			user := fmt.Sprint("user-", i)
			if Contains(user, percent) {
				n++
				if !Contains(user, percent+1) {
					t.Fatalf("%s left when the share grew", user)
				}
			}
		}
		if share := float64(n) / 200; share < float64(percent)-1 || share > float64(percent)+1 {
			t.Errorf("asked for %d %%, got %.1f %%", percent, share)
		}
	}
}
