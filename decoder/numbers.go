package decoder

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"onerec/internal/kernels"
)

// Numbers are those in which a [Generator] makes its products: with the weights, and of attention.
// All else it does in float32, and log probabilities are summed in float64.
type Numbers int

const (
	// Float32 is what the model was trained in.
	Float32 Numbers = iota
	// Int16 takes half the memory and, by instruction, makes twice the products. Both sides of a product are
	// rounded to 16 bits with a factor for each row. That costs less than rounding the weights alone to TF32
	// (TestInt16LosesLittle). A search still finds the same in whatever company it runs and whatever of
	// the past is kept, to the last bit. Training and log probabilities for DPO stay in float32.
	Int16
	// Int8 is Int16 with the layers' weights, and what they are multiplied by, rounded to 8 bits, with a factor for each row. It is quicker
	// where the processor multiplies bytes (AVX-512 VNNI), and costs log probabilities a few times what rounding the weights alone to
	// bfloat16 does.
	Int8
)

var numbersNames = []string{"float32", "int16", "int8"}

func (n Numbers) String() string { return numbersNames[n] }

// NumbersNames lists the names of numbers.
func NumbersNames() []string { return slices.Clone(numbersNames) }

// ParseNumbers returns those of a name.
func ParseNumbers(name string) (Numbers, error) {
	if i := slices.Index(numbersNames, name); i >= 0 {
		return Numbers(i), nil
	}
	return 0, fmt.Errorf("numbers are %s, not %q", strings.Join(numbersNames, " or "), name)
}

// layer lays a linear layer's weights (out x in) out.
func (n Numbers) layer(out, in int, w []float32) kernels.Shared {
	if n == Int8 {
		return kernels.NewPacked8(out, in, w, in)
	}
	return n.weights(out, in, w)
}

// weights lays a matrix like a linear layer's (out x in) out.
func (n Numbers) weights(out, in int, w []float32) kernels.Shared {
	if n != Float32 {
		return kernels.NewPacked16(out, in, w, in)
	}
	return kernels.NewPacked(true, out, in, w, in)
}

// keys lays one head's keys (tokens x hd, rows ld apart) out.
func (n Numbers) keys(tokens, hd int, k []float32, ld int) kernels.Leading {
	if n != Float32 {
		return kernels.NewPanels16(tokens, hd, k, ld, keyScale(hd))
	}
	return kernels.NewPanels(true, tokens, hd, k, ld, keyScale(hd))
}

// values lays one head's values (tokens x hd, rows ld apart) out.
func (n Numbers) values(tokens, hd int, v []float32, ld int) kernels.Values {
	if n != Float32 {
		return kernels.NewValues16(hd, tokens, v, ld)
	}
	return kernels.NewPanels(false, hd, tokens, v, ld, 1)
}

// moreKeys is keys of tokens of which the first from are laid out before.
func (n Numbers) moreKeys(before kernels.Leading, from, tokens, hd int, k []float32, ld int) kernels.Leading {
	if n != Float32 {
		first, _ := before.(kernels.Panels16)
		return first.WithColumns(from, tokens, hd, k, ld, keyScale(hd))
	}
	first, _ := before.(kernels.Panels)
	return first.WithColumns(from, tokens, hd, k, ld, keyScale(hd))
}

// moreValues is values of tokens of which the first from are laid out before.
func (n Numbers) moreValues(before kernels.Values, from, tokens, hd int, v []float32, ld int) kernels.Values {
	if n != Float32 {
		first, _ := before.(kernels.Values16)
		return first.WithRows(from, hd, tokens, v, ld)
	}
	first, _ := before.(kernels.Panels)
	return first.WithRows(from, hd, tokens, v, ld)
}

func keyScale(hd int) float32 { return float32(1 / math.Sqrt(float64(hd))) }
