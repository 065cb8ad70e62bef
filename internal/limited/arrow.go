package limited

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	flatbuffers "github.com/google/flatbuffers/go"
)

// arrowMagic begins and ends an Arrow IPC file.
var arrowMagic = []byte("ARROW1")

// Places of fields in the tables of Arrow's Flatbuffers (format/File.fbs, Schema.fbs).
const (
	footerSchema, footerDictionaries, footerBatches, footerMetadata = 6, 8, 10, 12
	schemaFields, schemaMetadata                                    = 6, 8
	fieldChildren, fieldMetadata                                    = 14, 16
	blockBytes                                                      = 24 // offset int64, metadata int32, padding, body int64
	maxNesting                                                      = 64
)

// CheckArrow refuses an Arrow IPC file whose footer speaks of more than the file holds:
// Arrow's reader takes the lengths in it for what to allocate.
func CheckArrow(f io.ReaderAt, size int64) error {
	damaged := errors.New("the footer is damaged")
	tail := make([]byte, 4+len(arrowMagic))
	if size < int64(2*len(arrowMagic)+len(tail)) {
		return fmt.Errorf("it has %d bytes and is no Arrow IPC file", size)
	}
	if _, err := f.ReadAt(tail, size-int64(len(tail))); err != nil {
		return err
	}
	length := int64(binary.LittleEndian.Uint32(tail))
	if !bytes.Equal(tail[4:], arrowMagic) || length < 8 || length > size-int64(len(tail)) {
		return fmt.Errorf("it does not end like an Arrow IPC file; %w", damaged)
	}
	buf := make([]byte, length)
	if _, err := f.ReadAt(buf, size-int64(len(tail))-length); err != nil {
		return err
	}
	footer := flatbuffers.Table{Bytes: buf, Pos: flatbuffers.GetUOffsetT(buf)}
	// vector returns where a table's vector begins, and its length; it lies in the buffer.
	vector := func(t flatbuffers.Table, field flatbuffers.VOffsetT, width int) (at flatbuffers.UOffsetT, n int, err error) {
		o := flatbuffers.UOffsetT(t.Offset(field))
		if o == 0 {
			return 0, 0, nil
		}
		at, n = t.Vector(o), t.VectorLen(o)
		if int64(at)+int64(n)*int64(width) > length {
			return 0, 0, damaged
		}
		return at, n, nil
	}
	left := length / 4 // a field takes more; what is shared may be walked often
	var fields func(t flatbuffers.Table, field flatbuffers.VOffsetT, depth int) error
	fields = func(t flatbuffers.Table, field flatbuffers.VOffsetT, depth int) error {
		at, n, err := vector(t, field, 4)
		if left -= int64(n); err != nil || depth > maxNesting || left < 0 {
			return errors.Join(err, damaged)
		}
		for i := range n {
			child := flatbuffers.Table{Bytes: buf, Pos: t.Indirect(at + flatbuffers.UOffsetT(4*i))}
			if _, _, err := vector(child, fieldMetadata, 4); err != nil {
				return err
			}
			if err := fields(child, fieldChildren, depth+1); err != nil {
				return err
			}
		}
		return nil
	}
	o := flatbuffers.UOffsetT(footer.Offset(footerSchema))
	if o == 0 {
		return damaged
	}
	schema := flatbuffers.Table{Bytes: buf, Pos: footer.Indirect(o + footer.Pos)}
	if err := fields(schema, schemaFields, 0); err != nil {
		return err
	}
	_, _, err := vector(schema, schemaMetadata, 4)
	if _, _, err2 := vector(footer, footerMetadata, 4); err != nil || err2 != nil {
		return errors.Join(err, err2)
	}
	for _, blocks := range []flatbuffers.VOffsetT{footerDictionaries, footerBatches} {
		at, n, err := vector(footer, blocks, blockBytes)
		if err != nil {
			return err
		}
		for i := range n {
			block := buf[int(at)+i*blockBytes:]
			offset, body := int64(binary.LittleEndian.Uint64(block)), int64(binary.LittleEndian.Uint64(block[16:]))
			metadata := int64(int32(binary.LittleEndian.Uint32(block[8:])))
			if offset < 0 || metadata < 0 || body < 0 || offset > size || metadata > size || body > size || offset+metadata+body > size {
				return fmt.Errorf("record batch %d lies outside of the file; %w", i, damaged)
			}
		}
	}
	return nil
}
