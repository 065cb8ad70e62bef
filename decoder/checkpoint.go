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

// Decode reads what Encode wrote.
func Decode(files map[string][]byte, config json.RawMessage) (*Weights, *semanticid.Codebook, error) {
	var c Config
	if err := json.Unmarshal(config, &c); err != nil {
		return nil, nil, fmt.Errorf("decode checkpoint: configuration: %w", err)
	}
	f, err := safetensors.Parse(files[FileWeights])
	if err != nil {
		return nil, nil, fmt.Errorf("decode checkpoint: %s: %w", FileWeights, err)
	}
	w, err := LoadWeights(c, f.Tensors)
	if err != nil {
		return nil, nil, err
	}
	cb, err := semanticid.Read(files[FileItems], files[FileCodebook])
	if err != nil {
		return nil, nil, err
	}
	if cb.Levels() != c.Levels || cb.Codes() != c.Codes {
		return nil, nil, fmt.Errorf("decode checkpoint: the decoder speaks %d levels of %d codes, the codebook %d of %d", c.Levels, c.Codes, cb.Levels(), cb.Codes())
	}
	return w, cb, nil
}
