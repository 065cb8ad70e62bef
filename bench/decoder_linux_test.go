package bench

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"onerec/decoder"
	"onerec/internal/kernels"
	"onerec/internal/ops"
	"onerec/semanticid"
)

// decoderShape is one size at which training steps are compared.
type decoderShape struct {
	name   string
	config decoder.Config
	rows   int
}

// decoderShapes have rows of 128 tokens: 31 items of 3 codes with their separators.
func decoderShapes() []decoderShape {
	const rowTokens = 128
	return []decoderShape{
		{"d128x4", decoder.Config{Layers: 4, Dim: 128, Heads: 4, Hidden: 352, Levels: 3, Codes: 340, MaxLen: rowTokens}, 16},
		{"d256x4", decoder.Config{Layers: 4, Dim: 256, Heads: 8, Hidden: 704, Levels: 3, Codes: 340, MaxLen: rowTokens}, 16},
		{"experts", decoder.Config{Layers: 4, Dim: 128, Heads: 4, Hidden: 176, Levels: 3, Codes: 340, MaxLen: rowTokens, Experts: 8, Active: 2}, 16},
		{"d512x8", decoder.Config{Layers: 8, Dim: 512, Heads: 8, Hidden: 1408, Levels: 3, Codes: 8332, MaxLen: rowTokens}, 16},
	}
}

// batchOf draws rows of full length whose every code is predicted.
func (s decoderShape) batchOf(r *rand.Rand) (*decoder.Batch, error) {
	b := decoder.NewBatch(1)
	for range s.rows {
		items := make([]decoder.Item, s.config.MaxItems())
		for i := range items {
			items[i] = make(decoder.Item, s.config.Levels)
			for l := range items[i] {
				items[i][l] = uint16(r.IntN(s.config.Codes))
			}
		}
		if err := b.Add(s.config, decoder.Row{History: items[:len(items)-8], Session: items[len(items)-8:]}); err != nil {
			return nil, err
		}
	}
	b.Close()
	return b, nil
}

// BenchmarkDecoderStep makes training steps: forward, backward, AdamW.
func BenchmarkDecoderStep(b *testing.B) {
	for _, s := range decoderShapes() {
		b.Run(s.name, func(b *testing.B) {
			r := rand.New(rand.NewPCG(1, 2))
			batch, err := s.batchOf(r)
			if err != nil {
				b.Fatal(err)
			}
			w, err := decoder.NewWeights(s.config, 1)
			if err != nil {
				b.Fatal(err)
			}
			g, err := decoder.NewGraph(w, batch.Tokens())
			if err != nil {
				b.Fatal(err)
			}
			solver := ops.NewSolver(1e-3, 0.01)
			for b.Loop() {
				if _, err := g.Step(batch, nil, decoder.Dropout{}, solver); err != nil {
					b.Fatal(err)
				}
			}
			seconds := b.Elapsed().Seconds() / float64(b.N)
			b.ReportMetric(float64(batch.Tokens())/seconds, "tokens/s")
			b.ReportMetric(s.config.FLOPs(batch.Tokens())/seconds/1e9, "GFLOP/s")
		})
	}
}

// BenchmarkGemmPeak is the speed of the matrix product at shapes that suit it.
func BenchmarkGemmPeak(b *testing.B) {
	for _, n := range []int{512, 1024} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			r := rand.New(rand.NewPCG(1, 2))
			x, y, z := make([]float32, n*n), make([]float32, n*n), make([]float32, n*n)
			for i := range x {
				x[i], y[i] = r.Float32(), r.Float32()
			}
			for b.Loop() {
				kernels.Gemm(false, false, n, n, n, 1, x, n, y, n, 0, z, n)
			}
			b.ReportMetric(2*float64(n*n*n)*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
		})
	}
}

var (
	torchPython = flag.String("torch-python", "python3", "the Python of BenchmarkDecoderPeers: pip install torch numpy")
	peerSeconds = flag.Float64("peer-seconds", 10, "how long each side of BenchmarkDecoderPeers is measured, in each turn")
)

// measured is what one side of a comparison found.
type measured struct {
	TokensPerS float64 `json:"tokens_per_s"`
	RequestsPS float64 `json:"requests_per_s"`
	P50        float64 `json:"p50_ms"`
	P99        float64 `json:"p99_ms"`
	PeakMiB    float64 `json:"peak_mib"`
	GFLOPS     float64 `json:"gflops"`
	Best       string  `json:"best"`
	// BFloat16 is the peer's requests/s in those numbers.
	BFloat16 float64 `json:"bfloat16_per_s"`
}

// childEnv tells a process of the test binary what to measure: ours runs in a process of
// its own, like the peer, so that their peaks of memory can be compared.
const childEnv = "BENCH_DECODER_CHILD"

// side is a process that measures one side of a comparison, once when it starts and then whenever it is its turn.
type side struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	errs *strings.Builder
}

// peer starts a peer. What it measures first warms it up, and it chooses by it.
func peer(b *testing.B, args ...string) *side {
	b.Helper()
	return newSide(b, exec.CommandContext(b.Context(), *torchPython, append([]string{"decoder/peer.py"}, args...)...))
}

func ours(b *testing.B, what string) *side {
	b.Helper()
	cmd := exec.CommandContext(b.Context(), os.Args[0], "-test.run", "^TestDecoderChild$", fmt.Sprintf("-peer-seconds=%v", *peerSeconds))
	cmd.Env = append(os.Environ(), childEnv+"="+what)
	if strings.HasPrefix(what, "step") {
		cmd.Env = append(cmd.Env, "GOGC=25") // as train sets it
	}
	return newSide(b, cmd)
}

func newSide(b *testing.B, cmd *exec.Cmd) *side {
	b.Helper()
	s := &side{cmd: cmd, errs: new(strings.Builder)}
	cmd.Stderr = s.errs
	var err error
	if s.in, err = cmd.StdinPipe(); err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = s.in.Close()
		_ = cmd.Wait() // it has said all that is asked, and the context's end may kill it
	})
	s.out = bufio.NewReader(out)
	s.read(b)
	return s
}

func (s *side) read(b *testing.B) (m measured) {
	b.Helper()
	line, err := s.out.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &m)
	}
	if err != nil {
		b.Fatalf("%v: %v: %s%s", s.cmd.Args, err, line, s.errs)
	}
	return m
}

// turn has it measure while the others wait.
func (s *side) turn(b *testing.B) measured {
	b.Helper()
	if _, err := io.WriteString(s.in, "\n"); err != nil {
		b.Fatalf("%v: %v: %s", s.cmd.Args, err, s.errs)
	}
	return s.read(b)
}

// turns has every side measure -peer-runs times, one after the other. It returns what each found, turn by turn.
func turns(b *testing.B, sides ...*side) [][]measured {
	b.Helper()
	found := make([][]measured, len(sides))
	for range *peerRuns {
		for i, s := range sides {
			found[i] = append(found[i], s.turn(b))
		}
	}
	return found
}

// middle returns the median of what was found.
func middle[M any](found []M, value func(M) float64) float64 {
	values := make([]float64, len(found))
	for i, m := range found {
		values[i] = value(m)
	}
	slices.Sort(values)
	return values[len(values)/2]
}

// times is how many times theirs ours is: the ratio in each turn, in order of size. What a neighbour takes of the machine
// for a minute it takes of both sides of a turn.
type times []float64

func timesOf[M any](our, their []M, value func(M) float64) times {
	t := make(times, len(our))
	for i := range our {
		t[i] = value(our[i]) / value(their[i])
	}
	slices.Sort(t)
	return t
}

func (t times) median() float64 { return t[len(t)/2] }

func (t times) String() string {
	return fmt.Sprintf("%.2f times (%.2f to %.2f in %d turns)", t.median(), t[0], t[len(t)-1], len(t))
}

// What the generation benchmark asks: histories of 256 items, 128 beams; all of them, or the best 10 items.
const (
	askLevels, askCodes, askHistory, askBeams = 3, 256, 256, 128
	askItems, askBest                         = 12_101, 10
)

var askShape = decoder.Config{Layers: 4, Dim: 128, Heads: 4, Hidden: 352, Levels: askLevels, Codes: askCodes, MaxLen: 2 + (askHistory+1)*(askLevels+1)}

// TestDecoderChild measures what BenchmarkDecoderPeers asks it to; alone it does nothing.
func TestDecoderChild(t *testing.T) {
	what := os.Getenv(childEnv)
	if what == "" {
		t.Skip("it is a part of BenchmarkDecoderPeers")
	}
	var work func() error
	units := 0.0
	r := rand.New(rand.NewPCG(1, 2))
	kind, arg, _ := strings.Cut(what, " ")
	kind, narrow := strings.CutSuffix(kind, "16")
	switch kind {
	case "step":
		for _, s := range decoderShapes() {
			if s.name != arg {
				continue
			}
			batch, err := s.batchOf(r)
			if err != nil {
				t.Fatal(err)
			}
			w, err := decoder.NewWeights(s.config, 1)
			if err != nil {
				t.Fatal(err)
			}
			g, err := decoder.NewGraph(w, batch.Tokens())
			if err != nil {
				t.Fatal(err)
			}
			solver := ops.NewSolver(1e-3, 0.01)
			units = float64(batch.Tokens())
			work = func() error {
				_, err := g.Step(batch, nil, decoder.Dropout{}, solver)
				return err
			}
		}
	case "generate", "next":
		batch, err := strconv.Atoi(arg)
		if err != nil {
			t.Fatal(err)
		}
		const dim = 16
		x, names := make([]float32, askItems*dim), make([]string, askItems)
		for i := range x {
			x[i] = float32(r.NormFloat64())
		}
		for i := range names {
			names[i] = strconv.Itoa(i)
		}
		cb, err := semanticid.Build(t.Context(), names, x, dim, semanticid.Config{Levels: askLevels, Codes: askCodes, Seed: 1})
		if err != nil {
			t.Fatal(err)
		}
		w, err := decoder.NewWeights(askShape, 1)
		if err != nil {
			t.Fatal(err)
		}
		gen, err := decoder.NewGenerator(w, cb)
		if err != nil {
			t.Fatal(err)
		}
		if narrow {
			gen = gen.In(decoder.Int16)
		}
		asked := make([]decoder.Options, batch)
		for i := range asked {
			asked[i] = decoder.Options{Length: 1, Width: askBeams}
			for range askHistory {
				asked[i].History = append(asked[i].History, cb.ID(int32(r.IntN(askItems))))
			}
		}
		units = float64(batch)
		work = func() error {
			errs := make([]error, batch)
			kernels.Parallel(batch, func(i int) {
				if kind == "next" {
					_, errs[i] = gen.Next(asked[i], askBest)
				} else {
					_, errs[i] = gen.Generate(asked[i])
				}
			})
			for _, err := range errs {
				if err != nil {
					return err
				}
			}
			return nil
		}
	case "peak":
		const n = 1024
		x, y, z := make([]float32, n*n), make([]float32, n*n), make([]float32, n*n)
		for i := range x {
			x[i], y[i] = r.Float32(), r.Float32()
		}
		work = func() error {
			kernels.Gemm(false, false, n, n, n, 1, x, n, y, n, 0, z, n)
			return nil
		}
		units = 2 * n * n * n / 1e9
	}
	if work == nil {
		t.Fatalf("%q is nothing to measure", what)
	}
	for turns := bufio.NewScanner(os.Stdin); ; {
		var times []float64
		for end := time.Now().Add(time.Duration(*peerSeconds * float64(time.Second))); time.Now().Before(end) || len(times) < 4; {
			begun := time.Now()
			if err := work(); err != nil {
				t.Fatal(err)
			}
			times = append(times, time.Since(begun).Seconds())
		}
		times = times[1:] // the first warms up
		slices.Sort(times)
		median := times[len(times)/2]
		m := measured{TokensPerS: units / median, RequestsPS: units / median, GFLOPS: units / median, P50: 1e3 * median, P99: 1e3 * times[len(times)*99/100], PeakMiB: peakMiB(t, os.Getpid())}
		out, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println(string(out))
		if !turns.Scan() {
			return
		}
	}
}

// BenchmarkDecoderPeers measures our training step and our generation beside PyTorch's on
// the same model, in turn, and both against the speed of the matrix product, OpenBLAS' and
// ours. PyTorch may choose: eager or compiled, one thread or all. Generation is measured in narrower numbers,
// too, ours and PyTorch's. Run with -benchtime 1x.
func BenchmarkDecoderPeers(b *testing.B) {
	seconds := fmt.Sprint(*peerSeconds)
	args := func(what string, c decoder.Config, more ...any) []string {
		out := []string{what}
		for _, n := range append([]any{c.Layers, c.Dim, c.Heads, c.Hidden}, more...) {
			out = append(out, fmt.Sprint(n))
		}
		return out
	}
	for _, s := range decoderShapes() {
		b.Run("step/"+s.name, func(b *testing.B) {
			for b.Loop() {
				c := s.config
				found := turns(b, ours(b, "step "+s.name), peer(b, args("step", c, c.Vocab(), c.MaxLen, s.rows, seconds, c.Experts, c.Active)...),
					peer(b, "peak", "1024", "2"), ours(b, "peak"))
				our, their, blas, gemm := found[0], found[1], found[2], found[3]
				speed := func(m measured) float64 { return m.TokensPerS }
				memory := func(m measured) float64 { return m.PeakMiB }
				peak := func(m measured) float64 { return m.GFLOPS }
				ratio, a := timesOf(our, their, speed), middle(our, speed)
				flops := s.config.FLOPs(1) * a / 1e9
				b.Logf("%s: %.0f tokens/s, PyTorch %.0f (%s): %v; peak memory %.0f and %.0f MiB: %.2f; %.0f GFLOP/s are %.0f %% of OpenBLAS' %.0f, our product %.0f",
					s.name, a, middle(their, speed), their[0].Best, ratio, middle(our, memory), middle(their, memory), middle(our, memory)/middle(their, memory), flops, 100*flops/middle(blas, peak), middle(blas, peak), middle(gemm, peak))
				b.ReportMetric(ratio.median(), "times-PyTorch")
			}
		})
	}
	for _, batch := range []int{1, 8} {
		b.Run(fmt.Sprint("generate/", batch), func(b *testing.B) {
			for b.Loop() {
				kinds := []struct{ name, what string }{
					{"all beams", "generate"}, {"the best 10", "next"}, {"all beams in int16", "generate16"}, {"the best 10 in int16", "next16"},
				}
				sides := []*side{peer(b, args("generate", askShape, askLevels, askCodes, askHistory, askBeams, batch, seconds)...)}
				for _, kind := range kinds {
					sides = append(sides, ours(b, fmt.Sprint(kind.what, " ", batch)))
				}
				found := turns(b, sides...)
				their := found[0]
				speed := func(m measured) float64 { return m.RequestsPS }
				narrow := their[0].BFloat16
				b.Logf("batch %d, PyTorch: %.2f requests/s (p50 %.0f ms, p99 %.0f ms), in bfloat16 %.2f", batch, middle(their, speed),
					middle(their, func(m measured) float64 { return m.P50 }), middle(their, func(m measured) float64 { return m.P99 }), narrow)
				for i, kind := range kinds {
					our := found[i+1]
					ratio := timesOf(our, their, speed)
					b.Logf("batch %d, %s: %.2f requests/s (p50 %.0f ms, p99 %.0f ms), %v PyTorch, %.2f times it in bfloat16", batch, kind.name, middle(our, speed),
						middle(our, func(m measured) float64 { return m.P50 }), middle(our, func(m measured) float64 { return m.P99 }), ratio, middle(our, speed)/narrow)
					b.ReportMetric(ratio.median(), strings.ReplaceAll(kind.name, " ", "-")+"-times-PyTorch")
				}
			}
		})
	}
}
