package decoder

import (
	"bytes"
	"encoding/json"
	"fmt"

	"onerec/internal/safetensors"
	"onerec/semanticid"
)

// Names of a decoder's files in a checkpoint.
const (
	FileWeights  = "decoder.safetensors"
	FileCodebook = "codebook.parquet"
	FileItems    = "items.parquet"
)

// Files lists them: what Decode reads.
func Files() []string { return []string{FileWeights, FileCodebook, FileItems} }

// Encode returns a decoder and the codebook that it speaks as the files of a
// checkpoint, and its configuration for the manifest.
func Encode(w *Weights, cb *semanticid.Codebook) (files map[string][]byte, config json.RawMessage, err error) {
	config, err = json.Marshal(w.Config)
	if err != nil {
		return nil, nil, fmt.Errorf("encode decoder: %w", err)
	}
	var weights, codebook, items bytes.Buffer
	if err := safetensors.Write(&weights, safetensors.File{Tensors: w.Tensors(), Metadata: map[string]string{"config": string(config)}}); err != nil {
		return nil, nil, fmt.Errorf("encode decoder: %w", err)
	}
	if err := cb.WriteCentroids(&codebook); err != nil {
		return nil, nil, err
	}
	if err := cb.WriteItems(&items); err != nil {
		return nil, nil, err
	}
	return map[string][]byte{FileWeights: weights.Bytes(), FileCodebook: codebook.Bytes(), FileItems: items.Bytes()}, config, nil
}

// Decode reads what Encode wrote. The weights lie in the bytes of their file where the machine
// allows it, see [safetensors.Parse].
func Decode(files map[string][]byte, config json.RawMessage) (*Weights, *semanticid.Codebook, error) {
	w, err := DecodeWeights(files, config)
	if err != nil {
		return nil, nil, err
	}
	cb, err := semanticid.Read(files[FileItems], files[FileCodebook])
	if err != nil {
		return nil, nil, err
	}
	if err := w.Config.speaks(cb.Levels(), cb.Codes()); err != nil {
		return nil, nil, fmt.Errorf("decode checkpoint: %w", err)
	}
	return w, cb, nil
}

// DecodeWeights reads the decoder alone, for whoever has its codebook.
func DecodeWeights(files map[string][]byte, config json.RawMessage) (*Weights, error) {
	var c Config
	if err := json.Unmarshal(config, &c); err != nil {
		return nil, fmt.Errorf("decode checkpoint: configuration: %w", err)
	}
	f, err := safetensors.Parse(files[FileWeights])
	if err != nil {
		return nil, fmt.Errorf("decode checkpoint: %s: %w", FileWeights, err)
	}
	return LoadWeights(c, f.Tensors)
}

// speaks says whether a codebook's codes are the decoder's.
func (c Config) speaks(levels, codes int) error {
	if levels != c.Levels || codes != c.Codes {
		return fmt.Errorf("the decoder speaks %d levels of %d codes, the codebook %d of %d", c.Levels, c.Codes, levels, codes)
	}
	return nil
}
