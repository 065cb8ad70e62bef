package bench

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"onerec/semanticid"
)

// embeddings draws n rows of a mixture with as many centres as a catalogue has kinds,
// some frequent, most rare.
func embeddings(n, dim, centres int, seed uint64) []float32 {
	r := rand.New(rand.NewPCG(seed, 1))
	zipf := rand.NewZipf(r, 1.3, 10, uint64(centres-1))
	c := make([]float32, centres*dim)
	for i := range c {
		c[i] = float32(r.NormFloat64())
	}
	x := make([]float32, n*dim)
	for i := range n {
		at := int(zipf.Uint64()) * dim
		for j := range dim {
			x[i*dim+j] = c[at+j] + 0.7*float32(r.NormFloat64())
		}
	}
	return x
}

// resetPeak makes peakMiB begin anew.
func resetPeak(b *testing.B) {
	debug.FreeOSMemory()
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkSemanticIDs builds codebooks of 3 levels over catalogues of 10 thousand to 1
// million items, and with 256 to 1,024 codes. Run with -benchtime 1x.
func BenchmarkSemanticIDs(b *testing.B) {
	const dim, levels = 128, 3
	for _, size := range []struct{ n, codes int }{{10_000, 256}, {100_000, 256}, {100_000, 512}, {100_000, 1024}, {1_000_000, 1024}} {
		b.Run(fmt.Sprintf("%dx%d", size.n, size.codes), func(b *testing.B) {
			x := embeddings(size.n, dim, 2000, 7)
			names := make([]string, size.n)
			for i := range names {
				names[i] = fmt.Sprintf("item-%07d", i)
			}
			resetPeak(b)
			for b.Loop() {
				start, level := time.Now(), -1
				cfg := semanticid.Config{Levels: levels, Codes: size.codes, Seed: 1}
				if testing.Verbose() {
					cfg.Progress = func(l, iteration int, distortion float64) {
						if l != level {
							level = l
						}
						b.Logf("level %d iteration %d: distortion %.3f after %.1f s", l+1, iteration, distortion, time.Since(start).Seconds())
					}
				}
				if _, err := semanticid.Build(context.Background(), names, x, dim, cfg); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(size.n)*float64(b.N)/b.Elapsed().Seconds(), "items/s")
			b.ReportMetric(peakMiB(b, os.Getpid()), "MiB-at-most") // the embeddings are part of it
		})
	}
}

// peersPython is a Python with k-means-constrained, faiss-cpu and numpy.
var peersPython = flag.String("peers-python", "python3", "the Python of BenchmarkSemanticIDsPeers: pip install k-means-constrained faiss-cpu numpy")

// BenchmarkSemanticIDsPeers builds 3 levels of 256 codes of the same embeddings with ours,
// with k-means-constrained (balanced, an exact minimum-cost flow in each iteration) and
// with faiss (not balanced: a bound), one after the other. Run with -benchtime 1x.
func BenchmarkSemanticIDsPeers(b *testing.B) {
	const dim, codes, levels = 128, 256, 3
	beauty := beautyEmbeddings(b, dim)
	for _, set := range []struct {
		name  string
		x     []float32
		peers []string
	}{
		{"beauty", beauty, []string{"constrained", "faiss"}},
		{"synthetic", embeddings(100_000, dim, 2000, 7), []string{"faiss", "constrained"}},
	} {
		if set.x == nil {
			b.Log("the Amazon Beauty data are not there")
			continue
		}
		n := len(set.x) / dim
		names := make([]string, n)
		for i := range names {
			names[i] = strconv.Itoa(i)
		}
		file := filepath.Join(b.TempDir(), "x.f32")
		var raw bytes.Buffer
		if err := binary.Write(&raw, binary.LittleEndian, set.x); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(file, raw.Bytes(), 0o600); err != nil {
			b.Fatal(err)
		}
		b.Run(set.name+"/onerec", func(b *testing.B) {
			for b.Loop() {
				cb, err := semanticid.Build(b.Context(), names, set.x, dim, semanticid.Config{Levels: levels, Codes: codes, Seed: 1})
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				for i, q := range cb.Quality(set.x) {
					p := cb.Price()[i]
					b.Logf("onerec, level %d: distortion %.6f; %.6f before %d items got other codes so that IDs are unique", q.Level, q.Distortion, p.Before, p.Moved)
				}
				b.StartTimer()
			}
		})
		for _, peer := range set.peers {
			b.Run(set.name+"/"+peer, func(b *testing.B) {
				for b.Loop() {
					out, err := exec.CommandContext(b.Context(), *peersPython, "semanticid/peers.py", peer, file, strconv.Itoa(n), strconv.Itoa(dim), strconv.Itoa(codes), strconv.Itoa(levels)).CombinedOutput()
					if err != nil {
						b.Fatalf("%v: %s", err, out)
					}
					b.Logf("%s, by level, seconds and distortion:\n%s", peer, out)
				}
			})
		}
	}
}

// beautyEmbeddings learns embeddings of the Amazon Beauty items from the training part
// of the sequences; nil if the data are not there.
func beautyEmbeddings(b *testing.B, dim int) []float32 {
	f, err := os.Open("../../shared/data/amazon-beauty/sequences.txt.gz")
	if err != nil {
		return nil
	}
	defer f.Close()
	gz, err := gzip.NewReader(f)
	if err != nil {
		b.Fatal(err)
	}
	e := semanticid.NewEmbedder(dim, 5, 1)
	for lines := bufio.NewScanner(gz); lines.Scan(); {
		items := strings.Fields(lines.Text())[1:]
		e.Add(items[:len(items)-2])
	}
	x, err := e.Embed()
	if err != nil {
		b.Fatal(err)
	}
	return x
}
