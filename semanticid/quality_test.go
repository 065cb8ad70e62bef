package semanticid

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"
)

// TestQuality: figures of a codebook that can be counted by hand.
func TestQuality(t *testing.T) {
	x := []float32{0, 0, 0, 2, 10, 0, 10, 2} // two pairs
	cb, err := Build(t.Context(), items(4), x, 2, Config{Levels: 2, Codes: 2, Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	q := cb.Quality(x)
	if q[0].Distortion != 1 || q[1].Distortion != 0 || q[0].Share != 1./26 || q[0].Smallest != 2 || q[0].Largest != 2 || q[0].Entropy != 1 || q[0].Prefixes != 2 || q[1].Prefixes != 4 {
		t.Errorf("quality %+v", q)
	}
	attributes := func(item string) []string {
		return map[string][]string{"item0": {"a", "b"}, "item1": {"a"}, "item2": {"c"}, "item3": {"d"}}[item]
	}
	if p := cb.Purity(1, attributes); p != 3./4 {
		t.Errorf("purity %v", p)
	}
	if p := cb.Purity(2, attributes); p != 0 { // no prefix has two items
		t.Errorf("purity of whole IDs %v", p)
	}
}

// TestBeauty builds the codebook of the Amazon Beauty items from the sequences alone
// and holds its codes against the items' attributes, which it has not seen.
func TestBeauty(t *testing.T) {
	const folder = "../../shared/data/amazon-beauty/"
	read := func(name string) *gzip.Reader {
		f, err := os.Open(folder + name)
		if err != nil {
			t.Skipf("the Amazon Beauty data are not there: %v", err)
		}
		t.Cleanup(func() { f.Close() })
		gz, err := gzip.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		return gz
	}
	e := NewEmbedder(32, 5, 1)
	for lines := bufio.NewScanner(read("sequences.txt.gz")); lines.Scan(); {
		seq := strings.Fields(lines.Text())[1:]
		e.Add(seq[:len(seq)-2]) // nothing of a user's last two items
	}
	var numbers map[string][]int
	if err := json.NewDecoder(read("item_attributes.json.gz")).Decode(&numbers); err != nil {
		t.Fatal(err)
	}
	attributes := func(item string) (out []string) {
		for _, n := range numbers[item] {
			out = append(out, fmt.Sprint(n))
		}
		return out
	}
	x, err := e.Embed()
	if err != nil {
		t.Fatal(err)
	}
	names := e.Items()
	cb, err := Build(t.Context(), names, x, e.Dim, Config{Levels: 3, Codes: 256, Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range cb.Quality(x) {
		t.Logf("%+v", q)
		if q.Largest-q.Smallest > 1 || q.Entropy < math.Log2(256)-0.01 {
			t.Errorf("level %d is not balanced", q.Level)
		}
	}
	// The control: the same IDs, given to items at random.
	random := cb.Shuffled(1)
	for codes := 1; codes <= 2; codes++ {
		ours, chance := cb.Purity(codes, attributes), random.Purity(codes, attributes)
		t.Logf("%d codes: purity %.3f, random IDs %.3f", codes, ours, chance)
		if codes == 1 && ours < 1.25*chance {
			t.Errorf("the first code says little about attributes: purity %.3f, random IDs have %.3f", ours, chance)
		}
	}
}
