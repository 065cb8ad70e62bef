package snapshots

import (
	"sync"

	"github.com/klauspost/compress/zstd"
	parquetzstd "github.com/parquet-go/parquet-go/compress/zstd"
)

// codec compresses pages by zstd. It looks for repetitions only as far as that is quick,
// since encodings and dictionaries have taken most of them away, but codes every byte by
// its frequency, which parquet-go's codec leaves when it finds no repetition: ids in
// hexadecimal digits repeat nothing and take half of the bytes.
type codec struct {
	parquetzstd.Codec // for decoding
	encoders          sync.Pool
}

func newCodec() *codec {
	return &codec{encoders: sync.Pool{New: func() any {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest),
			zstd.WithAllLitEntropyCompression(true), zstd.WithZeroFrames(true), zstd.WithEncoderCRC(false)) // pages have a checksum of their own
		if err != nil {
			panic("the options of zstd are wrong: " + err.Error())
		}
		return e
	}}}
}

// Encode implements parquet-go's compress.Codec.
func (c *codec) Encode(dst, src []byte) ([]byte, error) {
	e := c.encoders.Get().(*zstd.Encoder)
	defer c.encoders.Put(e)
	return e.EncodeAll(src, dst[:0]), nil
}

// pages is the codec of all files.
var pages = newCodec()
