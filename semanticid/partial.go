package semanticid

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/gob"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// partialFile is what a build keeps in its folder until it is finished.
const partialFile = "levels.partial"

type partialState struct {
	Input string // hash of what is built over and how
	Partial
}

// BuildIn is Build, keeping each finished level in the folder dir, which exists, so that a
// build that was stopped, or killed, goes on after the last one. It tells with how many
// levels it began. What belongs to another input is not used.
func BuildIn(ctx context.Context, dir string, items []string, x []float32, dim int, cfg Config) (cb *Codebook, began int, err error) {
	path, input := filepath.Join(dir, partialFile), hashInput(items, x, dim, cfg)
	switch s, err := readPartial(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, 0, fmt.Errorf("resume build: %s: %w; remove it to begin anew", path, err)
	case s.Input == input:
		cfg.Resume = &s.Partial
	}
	began = cfg.Resume.levels()
	then := cfg.OnLevel
	cfg.OnLevel = func(p *Partial) error {
		if p.levels() < cfg.Levels { // after the last one nothing is left to do
			if err := writePartial(path, partialState{input, *p}); err != nil {
				return fmt.Errorf("keep what is finished: %w", err)
			}
		}
		if then != nil {
			return then(p)
		}
		return nil
	}
	if cb, err = Build(ctx, items, x, dim, cfg); err != nil {
		return nil, began, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, began, fmt.Errorf("remove what was kept: %w", err)
	}
	return cb, began, nil
}

func hashInput(items []string, x []float32, dim int, cfg Config) string {
	h := sha256.New()
	warm := ""
	if cfg.Warm != nil {
		warm = cfg.Warm.Version()
	}
	fmt.Fprintln(h, len(items), dim, cfg.Levels, cfg.Codes, cfg.Headroom, cfg.Seed, warm)
	for _, item := range items {
		fmt.Fprintf(h, "%d:%s", len(item), item)
	}
	_ = binary.Write(h, binary.LittleEndian, x) // a hash never fails
	return hex.EncodeToString(h.Sum(nil))
}

func readPartial(path string) (s partialState, err error) {
	f, err := os.Open(path)
	if err != nil {
		return s, err
	}
	defer f.Close()
	if err := gob.NewDecoder(f).Decode(&s); err != nil {
		return s, fmt.Errorf("it is damaged: %w", err)
	}
	return s, nil
}

func writePartial(path string, s partialState) error {
	return WriteFile(path, func(f *os.File) error { return gob.NewEncoder(f).Encode(s) })
}

// WriteFile writes a file that appears whole or not at all.
func WriteFile(path string, write func(*os.File) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return err
	}
	err = errors.Join(write(f), f.Chmod(0o644), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
