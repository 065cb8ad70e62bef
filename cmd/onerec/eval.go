package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"onerec/decoder"
	"onerec/internal/app"
	"onerec/internal/nextitem"
	"onerec/internal/progress"
)

func (c *cli) eval() *cobra.Command {
	cfg := nextitem.DefaultConfig()
	var sequences, attributes, dir, curve string
	var seeds int
	var noTest bool
	cmd := c.command(&cobra.Command{
		Use: "eval", Short: "Train and test a next-item model on a file of sequences", GroupID: "tools",
		Long: `Trains a decoder on what users did and tests it under the protocol of the
literature, leave-one-out: of each user's sequence the last item is the test, the
one before it the validation, the rest is training data; all items but those that
the user has are ranked. Prints Recall and NDCG at 5 and 10 with 95 % bootstrap
intervals, and those of the most popular items.

--sequences is a text file with a line for each user: the user, then the items in
time order, separated by spaces; gzipped or not. --attributes is a JSON file,
{"item": [1, "tag"]}, gzipped or not: items with attributes in common get similar
semantic IDs.

Training ends after --epochs, or when --patience validations brought nothing
better; the weights of the best validation are tested, once. With --dir a run that
was stopped goes on from its last validation, and one that has ended is measured
again, with the --beams and --numbers that are wanted now.`,
		Example: "  onerec eval --sequences sequences.txt.gz --attributes attributes.json.gz --dir beauty --curve beauty.png",
	}, nil, func(cmd *cobra.Command, _ *app.App, _ []string) error {
		in, stop, err := open(sequences)
		if err != nil {
			return fmt.Errorf("read sequences: %w", err)
		}
		defer stop()
		data, skipped, err := nextitem.Read(in)
		if err != nil {
			return err
		}
		if skipped > 0 {
			fmt.Fprintf(os.Stderr, "%d users have fewer than 3 items and are left out\n", skipped)
		}
		if attributes != "" {
			by, err := readAttributes(attributes)
			if err != nil {
				return err
			}
			data.Attributes = by.of
		}
		p := progress.New(os.Stderr)
		var results []*nextitem.Result
		for seed := range uint64(seeds) {
			cfg := cfg
			cfg.Seed += seed
			folder := ""
			if dir != "" {
				folder = filepath.Join(dir, fmt.Sprint("seed-", cfg.Seed))
				if err := os.MkdirAll(folder, 0o755); err != nil {
					return err
				}
			}
			r, err := nextitem.Run(cmd.Context(), data, cfg, !noTest, folder, p.Update)
			p.Done()
			if err != nil {
				return err
			}
			results = append(results, r)
			if curve != "" {
				if err := nextitem.Plot(curve, results); err != nil {
					return err
				}
			}
		}
		if c.json {
			return printJSON(cmd.OutOrStdout(), map[string]any{"users": len(data.Sequences), "items": len(data.Items), "seeds": results, "mean": nextitem.Mean(results)})
		}
		return printEval(cmd.OutOrStdout(), data, results)
	})
	f := cmd.Flags()
	f.StringVar(&sequences, "sequences", "", "file of sequences (required)")
	f.StringVar(&attributes, "attributes", "", "file of attributes")
	f.StringVar(&dir, "dir", "", "folder for the state, so that a run can go on; empty: nothing is kept")
	f.StringVar(&curve, "curve", "", "draw training loss and validation by epoch into this PNG")
	f.BoolVar(&noTest, "no-test", false, "leave the test users unread and measure on the validation, to choose among settings")
	f.IntVar(&seeds, "seeds", 1, "runs with different seeds, and their mean")
	f.Uint64Var(&cfg.Seed, "seed", cfg.Seed, "the first seed: of embeddings, codebook, weights, order and dropout")
	f.IntVar(&cfg.Levels, "levels", cfg.Levels, "codes of a semantic ID")
	f.IntVar(&cfg.Codes, "codes", cfg.Codes, "values of a code")
	f.BoolVar(&cfg.RandomIDs, "random-ids", false, "give the IDs to items at random: the control")
	f.IntVar(&cfg.Width, "embedding-width", cfg.Width, "width of the embeddings behind the IDs")
	f.IntVar(&cfg.Window, "embedding-window", cfg.Window, "items at most so many places apart occur together")
	f.Float64Var(&cfg.Attribute, "attribute-weight", cfg.Attribute, "what an item's attributes weigh, as a share of what its neighbours weigh")
	f.IntVar(&cfg.Layers, "layers", cfg.Layers, "layers of the decoder")
	f.IntVar(&cfg.Dim, "width", cfg.Dim, "width of the decoder")
	f.IntVar(&cfg.Heads, "heads", cfg.Heads, "attention heads")
	f.IntVar(&cfg.Hidden, "hidden", cfg.Hidden, "width of the feed-forward part, or of each expert")
	f.IntVar(&cfg.Experts, "experts", 0, "experts of the feed-forward part, a sparse mixture; 0: one part for all tokens")
	f.IntVar(&cfg.Active, "active", 0, "experts that work on a token, 2 at least")
	f.IntVar(&cfg.Items, "items", cfg.Items, "items of a row at most, the newest")
	f.BoolVar(&cfg.Compact, "compact", false, "rows without separators between items")
	f.IntVar(&cfg.Users, "user-buckets", 0, "buckets into which users are hashed, each with a token that begins their rows; 0: none")
	f.IntVar(&cfg.Epochs, "epochs", cfg.Epochs, "passes over the users at most")
	f.IntVar(&cfg.BatchTokens, "batch-tokens", cfg.BatchTokens, "tokens of a step at most")
	f.Float64Var(&cfg.LearningRate, "learning-rate", cfg.LearningRate, "highest learning rate; it falls with a cosine to 0")
	f.IntVar(&cfg.Warmup, "warmup-steps", cfg.Warmup, "steps in which the learning rate rises")
	f.Float64Var(&cfg.WeightDecay, "weight-decay", cfg.WeightDecay, "weight decay of AdamW")
	f.Float64Var(&cfg.Dropout, "dropout", cfg.Dropout, "dropout of embeddings and residual branches")
	f.Float64Var(&cfg.Average, "average", cfg.Average, "decay by step of a moving average of the weights, which is what is tested; 0: the weights")
	f.Float64Var(&cfg.LeaveOut, "leave-out", cfg.LeaveOut, "share of a row's items that are left out, others in each epoch")
	f.Float64Var(&cfg.Exchange, "exchange", cfg.Exchange, "share of neighbours in a row that are exchanged, others in each epoch")
	f.IntVar(&cfg.Beams, "beams", cfg.Beams, "width of the beam search that ranks the items")
	f.StringVar(&cfg.Numbers, "numbers", "float32", "what the search computes in: "+strings.Join(decoder.NumbersNames(), ", "))
	f.IntVar(&cfg.Every, "validate-every", cfg.Every, "epochs between validations")
	f.IntVar(&cfg.Validation, "validation-users", cfg.Validation, "users of a validation, a sample; 0: all")
	f.IntVar(&cfg.Patience, "patience", cfg.Patience, "validations without a better one that end training; 0: never")
	f.BoolVar(&c.json, "json", false, "print JSON")
	required(cmd, "sequences")
	return cmd
}

func printEval(w io.Writer, data *nextitem.Data, results []*nextitem.Result) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	of := "validation"
	if results[0].Test {
		of = "test"
	}
	fmt.Fprintln(t, strings.ToUpper(of)+"\tRECALL@5\tNDCG@5\tRECALL@10\tNDCG@10\tBEST EPOCH")
	row := func(name string, m nextitem.Metrics, best string) {
		fmt.Fprint(t, name)
		for _, v := range []nextitem.Metric{m.Recall5, m.NDCG5, m.Recall10, m.NDCG10} {
			fmt.Fprintf(t, "\t%.4f (%.4f to %.4f)", v.Mean, v.Low, v.High)
		}
		fmt.Fprintf(t, "\t%s\n", best)
	}
	for _, r := range results {
		row(fmt.Sprint("decoder, seed ", r.Config.Seed), r.Model, fmt.Sprint(r.Best))
	}
	if len(results) > 1 {
		m := nextitem.Mean(results)
		fmt.Fprintf(t, "mean of %d seeds\t%.4f\t%.4f\t%.4f\t%.4f\t\n", len(results), m.Recall5.Mean, m.NDCG5.Mean, m.Recall10.Mean, m.NDCG10.Mean)
	}
	row("most popular", results[0].Popularity, "")
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "%d users, %d items; %d weights, %.0f tokens/s of training\n", len(data.Sequences), len(data.Items), results[0].Weights, results[0].TokensPerS)
	return err
}
