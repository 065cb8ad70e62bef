// Package safetensors reads and writes named tensors in the safetensors format
// (https://github.com/huggingface/safetensors), which Python opens without
// running code: eight bytes with the header's length, a JSON header, raw
// little-endian data.
package safetensors

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"unsafe"
)

// Tensor is a named float32 array.
type Tensor struct {
	Name  string
	Shape []int
	Data  []float32
}

// File is what a safetensors file holds; every tensor is F32.
type File struct {
	Tensors  []Tensor
	Metadata map[string]string
}

const maxHeader = 16 << 20

type info struct {
	DType   string `json:"dtype"`
	Shape   []int  `json:"shape"`
	Offsets [2]int `json:"data_offsets"`
}

// Write writes f.
func Write(w io.Writer, f File) error {
	header := make(map[string]any, len(f.Tensors)+1)
	if len(f.Metadata) > 0 {
		header["__metadata__"] = f.Metadata
	}
	at := 0
	for _, t := range f.Tensors {
		if _, dup := header[t.Name]; dup {
			return fmt.Errorf("write safetensors: two tensors are named %q", t.Name)
		}
		if n, ok := size(t.Shape); !ok || n != len(t.Data) {
			return fmt.Errorf("write safetensors: tensor %q has shape %v and %d values", t.Name, t.Shape, len(t.Data))
		}
		header[t.Name] = info{"F32", t.Shape, [2]int{at, at + 4*len(t.Data)}}
		at += 4 * len(t.Data)
	}
	text, err := json.Marshal(header) // keys in order: the same content gives the same bytes
	if err != nil {
		return fmt.Errorf("write safetensors: %w", err)
	}
	for len(text)%8 != 0 {
		text = append(text, ' ')
	}
	if err := binary.Write(w, binary.LittleEndian, uint64(len(text))); err != nil {
		return fmt.Errorf("write safetensors: %w", err)
	}
	if _, err := w.Write(text); err != nil {
		return fmt.Errorf("write safetensors: %w", err)
	}
	for _, t := range f.Tensors {
		if err := binary.Write(w, binary.LittleEndian, t.Data); err != nil {
			return fmt.Errorf("write safetensors: tensor %q: %w", t.Name, err)
		}
	}
	return nil
}

// Parse reads a whole file. It checks every length before it allocates. Where the machine and
// the place of data allow it the tensors lie in data, which must not change any more; else
// they are copies.
func Parse(data []byte) (File, error) {
	if len(data) < 8 {
		return File{}, errors.New("read safetensors: shorter than its first eight bytes")
	}
	n := binary.LittleEndian.Uint64(data)
	if n > maxHeader || n > uint64(len(data)-8) {
		return File{}, fmt.Errorf("read safetensors: a header of %d bytes in a file of %d", n, len(data))
	}
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(data[8:8+n], &raw); err != nil {
		return File{}, fmt.Errorf("read safetensors: header: %w", err)
	}
	body := data[8+n:]
	var f File
	starts := make(map[string]int)
	for name, msg := range raw {
		if name == "__metadata__" {
			if err := json.Unmarshal(msg, &f.Metadata); err != nil {
				return File{}, fmt.Errorf("read safetensors: metadata: %w", err)
			}
			continue
		}
		var i info
		if err := json.Unmarshal(msg, &i); err != nil {
			return File{}, fmt.Errorf("read safetensors: tensor %q: %w", name, err)
		}
		count, ok := size(i.Shape)
		if i.DType != "F32" || !ok || i.Offsets[0] < 0 || i.Offsets[1] > len(body) || i.Offsets[1]-i.Offsets[0] != 4*count {
			return File{}, fmt.Errorf("read safetensors: tensor %q: dtype %s, shape %v and offsets %v do not fit %d bytes", name, i.DType, i.Shape, i.Offsets, len(body))
		}
		starts[name] = i.Offsets[0]
		f.Tensors = append(f.Tensors, Tensor{name, i.Shape, floats(body[i.Offsets[0]:i.Offsets[1]])})
	}
	slices.SortFunc(f.Tensors, func(a, b Tensor) int { return starts[a.Name] - starts[b.Name] })
	end := 0
	for _, t := range f.Tensors { // tensors may not overlap: the file bounds what is allocated
		if starts[t.Name] != end {
			return File{}, fmt.Errorf("read safetensors: tensor %q starts at %d, want %d", t.Name, starts[t.Name], end)
		}
		end += 4 * len(t.Data)
	}
	if end != len(body) {
		return File{}, fmt.Errorf("read safetensors: %d bytes are left over", len(body)-end)
	}
	return f, nil
}

var littleEndian = binary.NativeEndian.Uint16([]byte{1, 0}) == 1

// floats returns little-endian values, without copying them if it can.
func floats(b []byte) []float32 {
	n := len(b) / 4
	if first := unsafe.Pointer(unsafe.SliceData(b)); littleEndian && n > 0 && uintptr(first)%4 == 0 {
		return unsafe.Slice((*float32)(first), n)
	}
	out := make([]float32, n)
	for i := range out {
		out[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
	}
	return out
}

// size returns the number of elements of a shape, false if it is negative or
// absurd.
func size(shape []int) (int, bool) {
	n := 1
	for _, d := range shape {
		if d < 0 || d > 1<<31 || (d > 0 && n > (1<<31)/d) {
			return 0, false
		}
		n *= d
	}
	return n, true
}
