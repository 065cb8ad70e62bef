// Package nextitem trains and tests next-item models under the protocol of the
// literature, leave-one-out: of each user's sequence the last item is the test, the one
// before it the validation, and the rest is training data. All items are ranked; none are
// sampled.
package nextitem

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Limits of a file of sequences.
const (
	maxLine  = 1 << 26 // bytes
	maxUsers = 50_000_000
)

// Data are users' sequences of items.
type Data struct {
	Items     []string  // by index
	Sequences [][]int32 // of each user, in time order
	// Attributes of an item; nil: there are none.
	Attributes func(item string) []string
}

// Read reads lines of a user and then their items in time order, separated by spaces.
// Users with fewer than three items can't be split and are left out; skipped counts them.
func Read(in io.Reader) (d *Data, skipped int, err error) {
	d = new(Data)
	index := make(map[string]int32)
	lines := bufio.NewScanner(in)
	lines.Buffer(make([]byte, 0, 1<<20), maxLine)
	for n := 1; lines.Scan(); n++ {
		fields := strings.Fields(lines.Text())
		switch {
		case len(fields) == 0:
			continue
		case len(fields) == 1:
			return nil, 0, fmt.Errorf("read sequences: line %d holds a user and no item", n)
		case n > maxUsers:
			return nil, 0, fmt.Errorf("read sequences: there are more than %d users", maxUsers)
		case len(fields) < 4:
			skipped++
			continue
		}
		sequence := make([]int32, 0, len(fields)-1)
		for _, item := range fields[1:] {
			i, ok := index[item]
			if !ok {
				i = int32(len(d.Items))
				index[item] = i
				d.Items = append(d.Items, item)
			}
			sequence = append(sequence, i)
		}
		d.Sequences = append(d.Sequences, sequence)
	}
	if err := lines.Err(); err != nil {
		return nil, 0, fmt.Errorf("read sequences: %w", err)
	}
	if len(d.Sequences) == 0 {
		return nil, 0, errors.New("read sequences: no user has three items")
	}
	return d, skipped, nil
}

// training is what a model may learn of a user, validation and test what it is asked, and
// with which items before.

func training(sequence []int32) []int32 { return sequence[:len(sequence)-2] }

func validation(sequence []int32) (before []int32, want int32) {
	return sequence[:len(sequence)-2], sequence[len(sequence)-2]
}

func test(sequence []int32) (before []int32, want int32) {
	return sequence[:len(sequence)-1], sequence[len(sequence)-1]
}
