package closedloop

import (
	"os"
	"testing"
	"fmt"
)

func TestTry(t *testing.T) {
	c := DefaultConfig()
	c.World.Users, c.World.Items = 800, 800
	c.Rounds = []int{1,3}
	r, err := Loop(t.Context(), c, 1, func(stage, unit string, done, total int) { if done==total || done%500==0 { fmt.Println(stage, done, total) } })
	if err != nil { t.Fatal(err) }
	for _, o := range r.Rounds { fmt.Println(o.Accepted, o.Why, o.Before, o.After) }
	Print(os.Stdout, []*Run{r})
}
