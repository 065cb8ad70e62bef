package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"onerec/decoder"
	"onerec/internal/app"
	"onerec/internal/progress"
	"onerec/schemas"
	"onerec/semanticid"
)

// source is where embeddings come from: a file, or the items topic.
type source struct {
	file  string
	topic bool
}

func (c *cli) semanticid() *cobra.Command {
	parent := &cobra.Command{Use: "semanticid", Short: "Build, extend and inspect codebooks of semantic IDs", GroupID: "tools", Args: cobra.NoArgs, RunE: help}
	parent.AddCommand(c.embedItems(), c.buildCodebook(), c.assignItems(), c.inspectCodebook(), c.exportCodebook())
	return parent
}

// tool makes a command that may read from the cluster, but connects only when it does.
func (c *cli) tool(cmd *cobra.Command, run func(cmd *cobra.Command, a *app.App, args []string) error) *cobra.Command {
	cmd = c.command(cmd, nil, func(cmd *cobra.Command, a *app.App, args []string) error {
		a.Progress = progress.New(os.Stderr)
		return run(cmd, a, args)
	})
	c.set.Flags(cmd.Flags(), app.GroupCommon)
	cmd.Flags().BoolVar(&c.json, "json", false, "print JSON")
	return cmd
}

// from adds the flags of a source.
func (s *source) from(cmd *cobra.Command) {
	cmd.Flags().StringVar(&s.file, "embeddings", "", "file of item embeddings: Parquet (.parquet) or Arrow IPC (.arrow, .feather, .ipc)")
	cmd.Flags().BoolVar(&s.topic, "items-topic", false, "take the embeddings from the topic "+schemas.TopicItems)
	cmd.MarkFlagsOneRequired("embeddings", "items-topic")
	cmd.MarkFlagsMutuallyExclusive("embeddings", "items-topic")
}

// read returns the embeddings, and the catalogue if they come from it.
func (s *source) read(ctx context.Context, a *app.App) (*semanticid.Embeddings, *semanticid.Catalogue, error) {
	if !s.topic {
		e, err := semanticid.ReadEmbeddings(ctx, s.file)
		return e, nil, err
	}
	if err := a.Open(ctx); err != nil {
		return nil, nil, err
	}
	catalogue, err := a.Catalogue(ctx)
	if err != nil {
		return nil, nil, err
	}
	e := catalogue.Embeddings()
	if catalogue.Refused > 0 {
		fmt.Fprintf(os.Stderr, "%d items or embeddings were not taken; the last: %s\n", catalogue.Refused, catalogue.Why)
	}
	if without := catalogue.Len() - len(e.Items); without > 0 {
		fmt.Fprintf(os.Stderr, "%d items have no embedding and get no ID\n", without)
	}
	if len(e.Items) == 0 {
		return nil, nil, fmt.Errorf("no item of topic %s has an embedding; learn them with \"onerec semanticid embed\"", schemas.TopicItems)
	}
	return e, catalogue, nil
}

func required(cmd *cobra.Command, names ...string) {
	for _, name := range names {
		_ = cmd.MarkFlagRequired(name) // it is defined by the caller
	}
}

func (c *cli) embedItems() *cobra.Command {
	var sequences, attributes, previous, out string
	var fromTopic, catalogue bool
	embedder := semanticid.NewEmbedder(128, 5, 1)
	cmd := c.tool(&cobra.Command{
		Use: "embed", Short: "Learn item embeddings from what is watched together",
		Long: `Learns item embeddings from sequences of items, and from attributes where there
are some, and writes them into the file --out, Parquet or Arrow IPC by its
extension, for "build" and "assign".

--sequences is a text file with a line for each user: the user, then the items in
order, separated by spaces; gzipped or not. --attributes is a JSON file,
{"item": [1, "tag"]}, gzipped or not. An item that is only described has an
embedding near those with which it has attributes in common.

With --previous, embeddings that were learned before, those of the same items stay
where they were, as near as a rotation brings them, so that a codebook over them
still fits, and items that do not occur again keep theirs.`,
		Example: "  onerec semanticid embed --sequences sequences.txt.gz --attributes attributes.json.gz --out items.parquet",
	}, func(cmd *cobra.Command, a *app.App, _ []string) error {
		ctx := cmd.Context()
		if fromTopic || catalogue {
			if err := a.Open(ctx); err != nil {
				return err
			}
		}
		n := 0
		add := func(items []string) {
			if n++; n%10_000 == 0 {
				a.Progress.Update("count what is watched together", "sequences", n, 0)
			}
			embedder.Add(items)
		}
		if fromTopic {
			lists, err := a.GoodSequences(ctx)
			if err != nil {
				return err
			}
			for _, items := range lists {
				add(items)
			}
		} else if err := readSequences(sequences, add); err != nil {
			return err
		}
		a.Progress.Done()
		if catalogue {
			of, err := a.Catalogue(ctx)
			if err != nil {
				return err
			}
			for item := range of.All {
				embedder.Describe(item.ItemId, of.Attributes(item.ItemId))
			}
		} else if attributes != "" {
			by, err := readAttributes(attributes)
			if err != nil {
				return err
			}
			for _, item := range by.items {
				embedder.Describe(item, by.of(item))
			}
		}
		old := &semanticid.Embeddings{Dim: embedder.Dim}
		if previous != "" {
			var err error
			if old, err = semanticid.ReadEmbeddings(ctx, previous); err != nil {
				return err
			}
			embedder.Dim = old.Dim
		}
		var e *semanticid.Embeddings
		var err error
		if previous != "" {
			e, err = embedder.Refresh(old)
		} else {
			e, err = embedder.Embeddings()
		}
		if err != nil {
			return err
		}
		err = semanticid.WriteFile(out, func(f *os.File) error {
			return e.Write(struct{ io.WriteSeeker }{f}, formatOf(out)) // the writer would close the file
		})
		if err != nil {
			return err
		}
		if c.json {
			return printJSON(cmd.OutOrStdout(), map[string]any{"items": len(e.Items), "width": e.Dim, "sequences": n, "previous_items": len(old.Items)})
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d items of width %d from %d sequences are in %s\n", len(e.Items), e.Dim, n, out)
		return err
	})
	cmd.Flags().StringVar(&sequences, "sequences", "", "text file of sequences")
	cmd.Flags().BoolVar(&fromTopic, "sessions-topic", false, "take the sequences from the topic "+schemas.TopicGoodSessions)
	cmd.MarkFlagsOneRequired("sequences", "sessions-topic")
	cmd.MarkFlagsMutuallyExclusive("sequences", "sessions-topic")
	cmd.Flags().StringVar(&attributes, "attributes", "", "JSON file of attributes")
	cmd.Flags().BoolVar(&catalogue, "items-topic", false, "take the attributes from the topic "+schemas.TopicItems)
	cmd.MarkFlagsMutuallyExclusive("attributes", "items-topic")
	cmd.Flags().StringVar(&previous, "previous", "", "file of embeddings that were learned before")
	cmd.Flags().IntVar(&embedder.Dim, "width", embedder.Dim, "width of an embedding; with --previous theirs")
	cmd.Flags().IntVar(&embedder.Window, "window", embedder.Window, "items at most so many places apart occur together")
	cmd.Flags().Float64Var(&embedder.Shift, "shift", 0, "subtracted from the mutual information, nats; log(k) is word2vec's k negative samples")
	cmd.Flags().Float64Var(&embedder.Attributes, "attribute-weight", embedder.Attributes, "what an item's attributes weigh, as a share of what its neighbours weigh")
	cmd.Flags().Uint64Var(&embedder.Seed, "seed", embedder.Seed, "seed")
	cmd.Flags().StringVar(&out, "out", "", "file to write: .parquet, .arrow, .feather or .ipc (required)")
	required(cmd, "out")
	return cmd
}

func (c *cli) buildCodebook() *cobra.Command {
	var from source
	var out, warm string
	cfg := semanticid.Config{}
	cmd := c.tool(&cobra.Command{
		Use: "build", Short: "Build a codebook from a file of embeddings, or from the items topic",
		Long: `Builds a codebook by residual balanced k-means and writes it into the folder
--out as ` + decoder.FileItems + ` (item_id, semantic_id) and ` + decoder.FileCodebook + ` (level, code, centroid).

--embeddings is Parquet (.parquet) or Arrow IPC (.arrow, .feather, .ipc) with the
columns item_id (string) and embedding (fixed-size list of float32).

A build that is stopped goes on after the last level that it finished when the same
command runs again. With --warm, the folder of a codebook or of a checkpoint's
version, codes go on meaning what they meant there, as far as their items did not
change: a decoder that speaks the old codes needs less training.`,
		Example: "  onerec semanticid build --embeddings items.parquet --out codebook --levels 3 --codes 256",
	}, func(cmd *cobra.Command, a *app.App, _ []string) error {
		e, _, err := from.read(cmd.Context(), a)
		if err != nil {
			return err
		}
		if warm != "" {
			if cfg.Warm, err = readCodebook(warm); err != nil {
				return err
			}
		}
		if err := os.MkdirAll(out, 0o755); err != nil {
			return fmt.Errorf("write codebook: %w", err)
		}
		cfg.Progress = func(level, iteration int, distortion float64) {
			a.Progress.Update(fmt.Sprintf("level %d of %d", level+1, cfg.Levels), fmt.Sprintf("iterations, distortion %.4g", distortion), iteration, 0)
		}
		cb, began, err := semanticid.BuildIn(cmd.Context(), out, e.Items, e.X, e.Dim, cfg)
		a.Progress.Done()
		if err != nil {
			return err
		}
		if began > 0 {
			fmt.Fprintf(os.Stderr, "went on after level %d, which was finished before\n", began)
		}
		if err := writeCodebook(cb, out); err != nil {
			return err
		}
		for i, p := range cb.Price() {
			if p.Moved > 0 {
				fmt.Fprintf(os.Stderr, "level %d: %d items got another code so that IDs are unique, which costs %.2f %% of distortion\n", began+i+1, p.Moved, 100*(p.After/p.Before-1))
			}
		}
		r := report{cb: cb, e: e}
		if cfg.Warm != nil {
			r.kept = cb.Kept(cfg.Warm)
		}
		return c.print(cmd.OutOrStdout(), r)
	})
	from.from(cmd)
	cmd.Flags().StringVar(&out, "out", "", "folder for the codebook; it is created (required)")
	cmd.Flags().IntVar(&cfg.Levels, "levels", 3, "codes of an ID")
	cmd.Flags().IntVar(&cfg.Codes, "codes", 0, "values of a code; 0: the least that leave the headroom")
	cmd.Flags().Float64Var(&cfg.Headroom, "headroom", 1, "room for items to come, as a share of those there are; 1: the catalogue can double")
	cmd.Flags().StringVar(&warm, "warm", "", "folder of the codebook that this one replaces")
	cmd.Flags().Uint64Var(&cfg.Seed, "seed", 1, "seed; the same seed and file give the same codebook on any machine of the same kind, with any number of threads")
	required(cmd, "out")
	return cmd
}

func (c *cli) assignItems() *cobra.Command {
	var from source
	var codebook, out string
	cmd := c.tool(&cobra.Command{
		Use: "assign", Short: "Give new items IDs in a codebook, moving none",
		Long: `Gives the items of --embeddings that the codebook does not know the nearest code
path that is free, and writes the longer codebook into the folder --out. Prints
how much farther new items are from their codes than old ones: when that share
grows, build the codebook anew.`,
	}, func(cmd *cobra.Command, a *app.App, _ []string) error {
		cb, err := readCodebook(codebook)
		if err != nil {
			return err
		}
		e, _, err := from.read(cmd.Context(), a)
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
	from.from(cmd)
	cmd.Flags().StringVar(&codebook, "codebook", "", "folder of a codebook, or of a checkpoint's version (required)")
	cmd.Flags().StringVar(&out, "out", "", "folder for the codebook; it is created (required)")
	required(cmd, "codebook", "out")
	return cmd
}

func (c *cli) inspectCodebook() *cobra.Command {
	var from source
	var codebook, attributes string
	var items []string
	var examples, neighbours int
	cmd := c.tool(&cobra.Command{
		Use: "inspect", Short: "Print what each level of a codebook is worth, and who is near whom",
		Long: `Prints for each level the sizes of its codes, their entropy, and, for the items
in --embeddings, the distortion: the mean squared distance of an item from what
its codes so far say. PREFIXES counts the different prefixes; at the last level
there are as many as items, for IDs are unique. Then, for some items, those that
share most first codes with them. With attributes, from --attributes or the items
topic, it prints how pure codes are in them, beside random IDs.`,
	}, func(cmd *cobra.Command, a *app.App, _ []string) error {
		cb, err := readCodebook(codebook)
		if err != nil {
			return err
		}
		e, catalogue, err := from.read(cmd.Context(), a)
		if err != nil {
			return err
		}
		r := report{cb: cb, e: e, title: func(item string) string { return item }}
		var of func(item string) []string
		switch {
		case attributes != "":
			by, err := readAttributes(attributes)
			if err != nil {
				return err
			}
			of = by.of
		case catalogue != nil:
			of = catalogue.Attributes
			r.title = func(item string) string {
				if d := catalogue.Item(item); d != nil && d.Title != "" {
					return fmt.Sprintf("%s %q", item, d.Title)
				}
				return item
			}
		}
		if of != nil {
			random := cb.Shuffled(1)
			for codes := 1; codes < cb.Levels(); codes++ {
				r.purity = append(r.purity, levelPurity{codes, cb.Purity(codes, of), random.Purity(codes, of)})
			}
		}
		if len(items) == 0 {
			for i := range min(examples, cb.Len()) { // spread over the catalogue
				items = append(items, cb.Item(int32(i*cb.Len()/min(examples, cb.Len()))))
			}
		}
		for _, item := range items {
			i, ok := cb.Index(item)
			if !ok {
				return fmt.Errorf("item %q has no ID in the codebook", item)
			}
			near := nearItems{Item: item, ID: cb.ID(i), Near: []nearItem{}}
			for _, n := range cb.Neighbours(i, neighbours) {
				near.Near = append(near.Near, nearItem{cb.Item(n.Item), cb.ID(n.Item), n.Codes})
			}
			r.near = append(r.near, near)
		}
		return c.print(cmd.OutOrStdout(), r)
	})
	from.from(cmd)
	cmd.Flags().StringVar(&codebook, "codebook", "", "folder of a codebook, or of a checkpoint's version (required)")
	cmd.Flags().StringVar(&attributes, "attributes", "", "JSON file of items' attributes, {\"item\": [1, 2]}, gzipped or not")
	cmd.Flags().StringSliceVar(&items, "item", nil, "show the neighbours of this item; may be repeated")
	cmd.Flags().IntVar(&examples, "examples", 5, "items whose neighbours are shown where none is named")
	cmd.Flags().IntVar(&neighbours, "neighbours", 5, "neighbours of each, at most")
	required(cmd, "codebook")
	return cmd
}

func (c *cli) exportCodebook() *cobra.Command {
	var codebook, format, out string
	cmd := c.command(&cobra.Command{
		Use: "export", Short: "Write a codebook's items for others: item_id, semantic_id",
		Long: "Writes each item with its semantic ID as JSON lines or Parquet, to --out or to standard output.",
	}, nil, func(cmd *cobra.Command, _ *app.App, _ []string) error {
		cb, err := readCodebook(codebook)
		if err != nil {
			return err
		}
		var write func(io.Writer) error
		switch format {
		case "json":
			write = cb.WriteJSON
		case "parquet":
			write = cb.WriteItems
		default:
			return fmt.Errorf("format %q is neither json nor parquet", format)
		}
		if out == "" {
			return write(cmd.OutOrStdout())
		}
		return semanticid.WriteFile(out, func(f *os.File) error { return write(f) })
	})
	cmd.Flags().StringVar(&codebook, "codebook", "", "folder of a codebook, or of a checkpoint's version (required)")
	cmd.Flags().StringVar(&format, "format", "json", "json (lines) or parquet")
	cmd.Flags().StringVar(&out, "out", "", "file; empty: standard output")
	required(cmd, "codebook")
	return cmd
}

func formatOf(path string) string {
	if strings.EqualFold(filepath.Ext(path), ".parquet") {
		return "parquet"
	}
	return "arrow"
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
		if err := semanticid.WriteFile(filepath.Join(dir, name), func(f *os.File) error { return write(f) }); err != nil {
			return fmt.Errorf("write codebook: %w", err)
		}
	}
	return nil
}

// maxText bounds what a text file may hold once it is unpacked.
const maxText = 8 << 30

// open reads a file, gzipped or not.
func open(path string) (io.Reader, func(), error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	in := bufio.NewReaderSize(f, 1<<20)
	stop := func() { _ = f.Close() } // nothing was written
	if magic, _ := in.Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		gz, err := gzip.NewReader(in)
		if err != nil {
			stop()
			return nil, nil, fmt.Errorf("%s begins like gzip but is not: %w", path, err)
		}
		return io.LimitReader(gz, maxText), stop, nil
	}
	return in, stop, nil
}

// readSequences calls fn with the items of each line: a user, then items.
func readSequences(path string, fn func(items []string)) error {
	in, stop, err := open(path)
	if err != nil {
		return fmt.Errorf("read sequences: %w", err)
	}
	defer stop()
	lines := bufio.NewScanner(in)
	lines.Buffer(make([]byte, 0, 1<<20), 1<<26)
	n := 0
	for lines.Scan() {
		n++
		switch fields := strings.Fields(lines.Text()); {
		case len(fields) == 1:
			return fmt.Errorf("read sequences: line %d of %s holds a user and no item", n, path)
		case len(fields) > 1:
			fn(fields[1:])
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read sequences: line %d of %s: %w", n+1, path, err)
	}
	return nil
}

// attributesOf are items' attributes.
type attributesOf struct {
	items []string // sorted
	by    map[string][]any
}

func (a attributesOf) of(item string) (out []string) {
	for _, v := range a.by[item] {
		out = append(out, fmt.Sprint(v))
	}
	return out
}

// readAttributes reads a JSON object of lists by item.
func readAttributes(path string) (a attributesOf, err error) {
	in, stop, err := open(path)
	if err != nil {
		return a, fmt.Errorf("read attributes: %w", err)
	}
	defer stop()
	if err := json.NewDecoder(in).Decode(&a.by); err != nil {
		return a, fmt.Errorf("read attributes %s: want {\"item\": [attribute, ...]}: %w", path, err)
	}
	for item := range a.by {
		a.items = append(a.items, item)
	}
	slices.Sort(a.items)
	return a, nil
}

// levelPurity is the share of items that have the commonest attribute of their prefix.
type levelPurity struct {
	Codes  int     `json:"codes"` // of the prefix
	Purity float64 `json:"purity"`
	Random float64 `json:"random"` // of the same IDs, given to items at random
}

// nearItems are an item and those that share its first codes.
type nearItems struct {
	Item string     `json:"item_id"`
	ID   []uint16   `json:"semantic_id"`
	Near []nearItem `json:"neighbours"`
}

type nearItem struct {
	Item  string   `json:"item_id"`
	ID    []uint16 `json:"semantic_id"`
	Codes int      `json:"codes_in_common"`
}

// report is what is printed of a codebook.
type report struct {
	cb     *semanticid.Codebook
	e      *semanticid.Embeddings // of its items
	purity []levelPurity
	near   []nearItems
	title  func(item string) string
	kept   []float64 // of the codebook before: by level, and in all
}

func (c *cli) print(w io.Writer, r report) error {
	cb := r.cb
	x, err := cb.Align(r.e)
	if err != nil {
		return err
	}
	quality := cb.Quality(x)
	collisions := cb.Len() - quality[len(quality)-1].Prefixes
	if c.json {
		return printJSON(w, map[string]any{
			"version": cb.Version(), "items": cb.Len(), "codes": cb.Codes(), "levels": quality, "collisions": collisions,
			"purity": r.purity, "neighbours": r.near, "kept": r.kept,
		})
	}
	fmt.Fprintf(w, "codebook %s: %d items, %d levels of %d codes, %d collisions\n", cb.Version(), cb.Len(), cb.Levels(), cb.Codes(), collisions)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "LEVEL\tDISTORTION\tVARIANCE LEFT\tSMALLEST\tLARGEST\tENTROPY (BITS)\tPREFIXES")
	for _, q := range quality {
		fmt.Fprintf(t, "%d\t%.4g\t%.1f %%\t%d\t%d\t%.3f\t%d\n", q.Level, q.Distortion, 100*q.Share, q.Smallest, q.Largest, q.Entropy, q.Prefixes)
	}
	err = t.Flush()
	for l, share := range r.kept {
		if l < cb.Levels() {
			fmt.Fprintf(w, "%.1f %% of the old items have the code at level %d that they had\n", 100*share, l+1)
		} else {
			fmt.Fprintf(w, "%.1f %% have the same ID\n", 100*share)
		}
	}
	for _, p := range r.purity {
		fmt.Fprintf(w, "%.1f %% of items have the commonest attribute of their first %d codes; of random IDs %.1f %%\n", 100*p.Purity, p.Codes, 100*p.Random)
	}
	if len(r.near) > 0 {
		fmt.Fprintln(t, "\nITEM\tSEMANTIC ID\tNEIGHBOUR\tSEMANTIC ID\tCODES IN COMMON")
		for _, n := range r.near {
			if len(n.Near) == 0 {
				fmt.Fprintf(t, "%s\t%v\tnone\t\t0\n", r.title(n.Item), n.ID)
			}
			item, id := r.title(n.Item), fmt.Sprint(n.ID)
			for _, o := range n.Near {
				fmt.Fprintf(t, "%s\t%s\t%s\t%v\t%d\n", item, id, r.title(o.Item), o.ID, o.Codes)
				item, id = "", ""
			}
		}
		err = errors.Join(err, t.Flush())
	}
	return err
}
