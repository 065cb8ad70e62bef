// Package ops makes gorgonia operations out of the float32 kernels.
//
// gorgonia's part is the expression graph, its differentiation and what a solver
// is; the arithmetic is in internal/kernels, and a [Machine] runs the graph. A node costs gorgonia a few
// microseconds, so operations are coarse: one for a matrix product, one for a
// whole attention layer. A [Machine] gives each operation the place of its output,
// which is overwritten when nobody reads it any more, in the next run at the latest.
//
// The tensors of activations have a fixed capacity of rows; how many of them are
// in use is a property of the batch, which the kernels read through a pointer.
// Rows beyond it hold nothing that anyone reads.
package ops

import (
	"encoding/binary"
	"fmt"
	"hash"
	"hash/fnv"
	"slices"
	"sync/atomic"

	"github.com/chewxy/hm"
	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// Forward computes out from the inputs; it must write or clear all that is read
// of out.
type Forward func(out []float32, in [][]float32)

// Derivative returns, for input i, the node of the loss's gradient at it, given
// the node of the gradient at the output; nil if the input has none.
type Derivative func(in gorgonia.Nodes, out, grad *gorgonia.Node) gorgonia.Nodes

var counter atomic.Uint64

// op implements gorgonia.Op and gorgonia.SDOp.
type op struct {
	name    string
	id      uint64 // keeps gorgonia from merging two operations of one name
	dims    []int  // of each input
	shape   tensor.Shape
	forward Forward
	diff    Derivative
	inputs  gorgonia.Nodes
	light   bool        // see recomputed
	over    []int       // see overlay
	passes  func() bool // see passing
	fixed   []int       // see fixed
	out     *tensor.Dense
	in      [][]float32
}

// Apply adds an operation with the given output shape to the graph of its
// inputs. A nil diff makes it the end of differentiation.
func Apply(name string, shape tensor.Shape, forward Forward, diff Derivative, inputs ...*gorgonia.Node) *gorgonia.Node {
	o := &op{
		name: name, id: counter.Add(1), shape: shape, forward: forward, diff: diff, inputs: inputs,
		in: make([][]float32, len(inputs)),
	}
	for _, n := range inputs {
		o.dims = append(o.dims, n.Dims())
	}
	return gorgonia.Must(gorgonia.ApplyOp(o, inputs...))
}

// overlay says that n's result may lie where one of the given inputs does, if nobody reads that later:
// the operation writes no element of out before it has read what it needs of the inputs there.
func overlay(n *gorgonia.Node, inputs ...int) *gorgonia.Node {
	n.Op().(*op).over = inputs
	return n
}

// passing says that n's value is that of its first input, and need not be copied, in runs in which when says so.
func passing(n *gorgonia.Node, when func() bool) *gorgonia.Node {
	n.Op().(*op).passes = when
	return n
}

// fixed says that n has no gradient at the given inputs, which it only comes after.
func fixed(n *gorgonia.Node, inputs ...int) *gorgonia.Node {
	n.Op().(*op).fixed = inputs
	return n
}

// light marks a node whose result takes little work, next to the memory that it takes.
func light(n *gorgonia.Node) *gorgonia.Node {
	n.Op().(*op).light = true
	return n
}

// recomputed returns a node for a derivative that reads n: n itself or, if it is light, one that
// computes it again, so that nothing is kept of it from the forward to the backward pass.
func recomputed(n *gorgonia.Node) *gorgonia.Node {
	if o, ok := n.Op().(*op); ok && o.light {
		return Apply(o.name+" again", o.shape, o.forward, nil, o.inputs...)
	}
	return n
}

func (o *op) Arity() int { return len(o.dims) }

func (o *op) Type() hm.Type {
	types := make([]hm.Type, 0, len(o.dims)+1)
	for _, d := range append(o.dims[:len(o.dims):len(o.dims)], len(o.shape)) {
		types = append(types, gorgonia.TensorType{Dims: d, Of: tensor.Float32})
	}
	return hm.NewFnType(types...)
}

func (o *op) InferShape(...gorgonia.DimSizer) (tensor.Shape, error) { return o.shape.Clone(), nil }

func (o *op) Do(in ...gorgonia.Value) (gorgonia.Value, error) {
	if o.out == nil { // another machine than ours
		o.out = tensor.New(tensor.WithShape(o.shape...), tensor.Of(tensor.Float32))
	}
	for i, v := range in {
		data, ok := v.Data().([]float32)
		if !ok {
			return nil, fmt.Errorf("%s: input %d is %T, want []float32", o.name, i, v.Data())
		}
		o.in[i] = data
	}
	o.forward(o.out.Data().([]float32), o.in)
	return o.out, nil
}

func (o *op) ReturnsPtr() bool     { return true }
func (o *op) CallsExtern() bool    { return false }
func (o *op) OverwritesInput() int { return -1 }
func (o *op) String() string       { return fmt.Sprintf("%s#%d", o.name, o.id) }

func (o *op) WriteHash(h hash.Hash) {
	_ = binary.Write(h, binary.LittleEndian, o.id) // a hash never fails
}

func (o *op) Hashcode() uint32 {
	h := fnv.New32a()
	o.WriteHash(h)
	return h.Sum32()
}

// DiffWRT implements gorgonia.SDOp.
func (o *op) DiffWRT(inputs int) []bool {
	d := make([]bool, inputs)
	for i := range d {
		d[i] = o.diff != nil && !slices.Contains(o.fixed, i)
	}
	return d
}

// SymDiff implements gorgonia.SDOp.
func (o *op) SymDiff(in gorgonia.Nodes, out, grad *gorgonia.Node) (gorgonia.Nodes, error) {
	if o.diff == nil {
		return nil, fmt.Errorf("%s has no derivative", o.name)
	}
	return o.diff(in, out, grad), nil
}
