package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"onerec/decoder"
	"onerec/internal/app"
	"onerec/internal/progress"
	"onerec/semanticid"
)

func (c *cli) semanticid() *cobra.Command {
	parent := &cobra.Command{Use: "semanticid", Short: "Build, extend and inspect codebooks of semantic IDs", GroupID: "tools", Args: cobra.NoArgs, RunE: help}
	var embeddings, out string
	cfg := semanticid.Config{}
	build := c.command(&cobra.Command{
		Use: "build", Short: "Build a codebook from a file of embeddings",
		Long: `Builds a codebook by residual balanced k-means and writes it into the folder
--out as ` + decoder.FileItems + ` (item_id, semantic_id) and ` + decoder.FileCodebook + ` (level, code, centroid).

--embeddings is Parquet (.parquet) or Arrow IPC (.arrow, .feather, .ipc) with the
columns item_id (string) and embedding (fixed-size list of float32).`,
		Example: "  onerec semanticid build --embeddings items.parquet --out codebook --levels 3 --codes 256",
	}, nil, func(cmd *cobra.Command, _ *app.App, _ []string) error {
		e, err := semanticid.ReadEmbeddings(cmd.Context(), embeddings)
		if err != nil {
			return err
		}
		p := progress.New(os.Stderr)
		cfg.Progress = func(level, iteration int, distortion float64) {
			p.Update(fmt.Sprintf("level %d of %d", level+1, cfg.Levels), fmt.Sprintf("iterations, distortion %.4g", distortion), iteration, 0)
		}
		cb, err := semanticid.Build(cmd.Context(), e.Items, e.X, e.Dim, cfg)
		p.Done()
		if err != nil {
			return err
		}
		if err := writeCodebook(cb, out); err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "%d codes were changed so that IDs are unique\n", cb.Moved())
		return c.printQuality(cmd.OutOrStdout(), cb, e)
	})
	build.Flags().IntVar(&cfg.Levels, "levels", 3, "codes of an ID")
	build.Flags().IntVar(&cfg.Codes, "codes", 0, "values of a code; 0: the least with which the catalogue can double")
	build.Flags().Uint64Var(&cfg.Seed, "seed", 1, "seed; the same seed and file give the same codebook on any machine of the same kind, with any number of threads")

	var codebook, attributes string
	read := func(cmd *cobra.Command) (*semanticid.Codebook, *semanticid.Embeddings, error) {
		cb, err := readCodebook(codebook)
		if err != nil {
			return nil, nil, err
		}
		e, err := semanticid.ReadEmbeddings(cmd.Context(), embeddings)
		return cb, e, err
	}
	inspect := c.command(&cobra.Command{
		Use: "inspect", Short: "Print what each level of a codebook is worth",
		Long: `Prints for each level the sizes of its codes, their entropy, and, for the items
in --embeddings, the distortion: the mean squared distance of an item from what
its codes so far say. PREFIXES counts the different prefixes; at the last level
there are as many as items, for IDs are unique.`,
	}, nil, func(cmd *cobra.Command, _ *app.App, _ []string) error {
		cb, e, err := read(cmd)
		if err != nil {
			return err
		}
		if attributes == "" {
			return c.printQuality(cmd.OutOrStdout(), cb, e)
		}
		of, err := readAttributes(attributes)
		if err != nil {
			return err
		}
		random := cb.Shuffled(1)
		var purity []levelPurity
		for codes := 1; codes < cb.Levels(); codes++ {
			purity = append(purity, levelPurity{codes, cb.Purity(codes, of), random.Purity(codes, of)})
		}
		return c.printQuality(cmd.OutOrStdout(), cb, e, purity...)
	})
	inspect.Flags().StringVar(&attributes, "attributes", "", "JSON file of items' attributes, {\"item\": [1, 2]}: print how pure codes are in them, beside random IDs")

	assign := c.command(&cobra.Command{
		Use: "assign", Short: "Give new items IDs in a codebook, moving none",
		Long: `Gives the items of --embeddings that the codebook does not know the nearest code
path that is free, and writes the longer codebook into the folder --out. Prints
how much farther new items are from their codes than old ones: when that share
grows, build the codebook anew.`,
	}, nil, func(cmd *cobra.Command, _ *app.App, _ []string) error {
		cb, e, err := read(cmd)
		if err != nil {
			return err
		}
		drift, err := cb.AssignAll(e)
		if err != nil {
			return err
		}
		if err := writeCodebook(cb, out); err != nil {
			return err
		}
		if c.json {
			return printJSON(cmd.OutOrStdout(), drift)
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d new items of %d; distortion %.4g, of the %d old ones in the file %.4g; %.1f %% had to leave their nearest codes\n",
			drift.New, cb.Len(), drift.NewDistortion, drift.Old, drift.OldDistortion, 100*drift.Displaced)
		return err
	})

	export := c.command(&cobra.Command{Use: "export", Short: "Print a codebook's items as JSON lines: item_id, semantic_id"}, nil, func(cmd *cobra.Command, _ *app.App, _ []string) error {
		cb, err := readCodebook(codebook)
		if err != nil {
			return err
		}
		enc := json.NewEncoder(cmd.OutOrStdout())
		for i := range int32(cb.Len()) {
			if err := enc.Encode(struct {
				Item string   `json:"item_id"`
				ID   []uint16 `json:"semantic_id"`
			}{cb.Item(i), cb.ID(i)}); err != nil {
				return err
			}
		}
		return nil
	})
	for _, cmd := range []*cobra.Command{build, inspect, assign} {
		cmd.Flags().StringVar(&embeddings, "embeddings", "", "file of item embeddings, Parquet or Arrow IPC (required)")
		cmd.Flags().BoolVar(&c.json, "json", false, "print JSON")
		_ = cmd.MarkFlagRequired("embeddings") // it is defined above
	}
	for _, cmd := range []*cobra.Command{build, assign} {
		cmd.Flags().StringVar(&out, "out", "", "folder for the codebook; it is created (required)")
		_ = cmd.MarkFlagRequired("out")
	}
	for _, cmd := range []*cobra.Command{inspect, assign, export} {
		cmd.Flags().StringVar(&codebook, "codebook", "", "folder of a codebook, or of a checkpoint's version (required)")
		_ = cmd.MarkFlagRequired("codebook")
	}
	parent.AddCommand(build, assign, inspect, export)
	return parent
}

func readCodebook(dir string) (*semanticid.Codebook, error) {
	items, err := os.ReadFile(filepath.Join(dir, decoder.FileItems))
	if err != nil {
		return nil, fmt.Errorf("read codebook: %w", err)
	}
	centroids, err := os.ReadFile(filepath.Join(dir, decoder.FileCodebook))
	if err != nil {
		return nil, fmt.Errorf("read codebook: %w", err)
	}
	return semanticid.Read(items, centroids)
}

func writeCodebook(cb *semanticid.Codebook, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("write codebook: %w", err)
	}
	for name, write := range map[string]func(io.Writer) error{decoder.FileItems: cb.WriteItems, decoder.FileCodebook: cb.WriteCentroids} {
		f, err := os.CreateTemp(dir, ".tmp-*")
		if err != nil {
			return fmt.Errorf("write codebook: %w", err)
		}
		err = errors.Join(write(f), f.Chmod(0o644), f.Close())
		if err == nil {
			err = os.Rename(f.Name(), filepath.Join(dir, name))
		}
		if err != nil {
			return fmt.Errorf("write codebook: %w", errors.Join(err, os.Remove(f.Name())))
		}
	}
	return nil
}

// levelPurity is the share of items that have the commonest attribute of their prefix.
type levelPurity struct {
	Codes  int     `json:"codes"` // of the prefix
	Purity float64 `json:"purity"`
	Random float64 `json:"random"` // of the same IDs, given to items at random
}

// readAttributes reads a JSON object of lists by item.
func readAttributes(path string) (func(item string) []string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read attributes: %w", err)
	}
	var by map[string][]any
	if err := json.Unmarshal(data, &by); err != nil {
		return nil, fmt.Errorf("read attributes %s: want {\"item\": [attribute, ...]}: %w", path, err)
	}
	return func(item string) (out []string) {
		for _, a := range by[item] {
			out = append(out, fmt.Sprint(a))
		}
		return out
	}, nil
}

// printQuality prints a codebook's levels, measured on the embeddings of its items.
func (c *cli) printQuality(w io.Writer, cb *semanticid.Codebook, e *semanticid.Embeddings, purity ...levelPurity) error {
	x, err := cb.Align(e)
	if err != nil {
		return err
	}
	quality := cb.Quality(x)
	if c.json {
		return printJSON(w, map[string]any{"version": cb.Version(), "items": cb.Len(), "codes": cb.Codes(), "levels": quality, "purity": purity})
	}
	fmt.Fprintf(w, "codebook %s: %d items, %d levels of %d codes\n", cb.Version(), cb.Len(), cb.Levels(), cb.Codes())
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "LEVEL\tDISTORTION\tVARIANCE LEFT\tSMALLEST\tLARGEST\tENTROPY (BITS)\tPREFIXES")
	for _, q := range quality {
		fmt.Fprintf(t, "%d\t%.4g\t%.1f %%\t%d\t%d\t%.3f\t%d\n", q.Level, q.Distortion, 100*q.Share, q.Smallest, q.Largest, q.Entropy, q.Prefixes)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, p := range purity {
		fmt.Fprintf(w, "%.1f %% of items have the commonest attribute of their first %d codes; of random IDs %.1f %%\n", 100*p.Purity, p.Codes, 100*p.Random)
	}
	return nil
}
