package snapshots

import (
	"bytes"
	"encoding/hex"
	"math/rand/v2"
	"testing"

	parquetzstd "github.com/parquet-go/parquet-go/compress/zstd"
	"pgregory.net/rapid"
)

// TestCodec: what is compressed is read back, by parquet-go's own codec too, whatever was in
// the buffers before.
func TestCodec(t *testing.T) {
	other := &parquetzstd.Codec{}
	rapid.Check(t, func(t *rapid.T) {
		src := rapid.SliceOf(rapid.Byte()).Draw(t, "page")
		packed, err := newCodec().Encode([]byte("what was there"), src)
		if err != nil {
			t.Fatal(err)
		}
		for _, decode := range []func(dst, src []byte) ([]byte, error){pages.Decode, other.Decode} {
			if got, err := decode([]byte("and here"), packed); err != nil || !bytes.Equal(got, src) {
				t.Fatalf("%x came back as %x, %v", src, got, err)
			}
		}
	})
}

// TestCodecHalvesDigits: hexadecimal digits that repeat nothing take half a byte each.
func TestCodecHalvesDigits(t *testing.T) {
	random := make([]byte, 1<<16)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(random)
	digits := hex.AppendEncode(nil, random)
	packed, err := pages.Encode(nil, digits)
	if err != nil {
		t.Fatal(err)
	}
	if most := len(random) + len(random)/50; len(packed) > most {
		t.Errorf("%d digits take %d bytes, want %d at most", len(digits), len(packed), most)
	}
}
