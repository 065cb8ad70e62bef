package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"onerec/decoder"
	"onerec/internal/app"
	"onerec/internal/closedloop"
	"onerec/internal/progress"
	"onerec/internal/replay"
	"onerec/rewarder"
	"onerec/schemas"
	"onerec/schemas/onerecv1"
	"onerec/simulator"
)

func (c *cli) simulate() *cobra.Command {
	parent := &cobra.Command{
		Use: "simulate", Short: "Measure policies on simulated users, and the users on real ones", GroupID: "tools", Args: cobra.NoArgs, RunE: help,
		Long: `The simulator's users have hidden tastes. "onerec replay" without a file plays
what they do into views.raw; these commands need no broker.`,
	}
	parent.AddCommand(c.simulateLoop(), c.simulateAblate(), c.simulateCompare())
	return parent
}

func (c *cli) simulateLoop() *cobra.Command {
	cfg := closedloop.DefaultConfig()
	seed, rounds := uint64(1), "1,3,5"
	cmd := c.command(&cobra.Command{
		Use: "loop", Short: "Compare popularity, the decoder, and the aligned decoder in a closed loop",
		Long: `In each of some simulated worlds a fixed ranker makes a log, the pipeline's own
cores learn a decoder and a reward model from it and make rounds of alignment. Then
popular items, the ranker, the decoder and the aligned decoders serve the same users
for some days, with the same luck, and beside them an oracle that knows the
tastes. Prints what users had: watch time, likes and views a session. Intervals
are 95 % bootstrap intervals over users, paired.

The default takes less than an hour on two processors.`,
		Example: "  onerec simulate loop\n  onerec simulate loop --seeds 1 --users 300 --items 300 --rounds 1",
	}, nil, func(cmd *cobra.Command, _ *app.App, _ []string) error {
		cfg.Rounds = nil
		for _, text := range strings.Split(rounds, ",") {
			n, err := strconv.Atoi(strings.TrimSpace(text))
			if err != nil || n < 1 || n > 100 || len(cfg.Rounds) > 0 && n <= cfg.Rounds[len(cfg.Rounds)-1] {
				return fmt.Errorf("--rounds is %q, want rising numbers from 1 to 100, like 1,3,5", rounds)
			}
			cfg.Rounds = append(cfg.Rounds, n)
		}
		if cfg.Seeds < 1 || cfg.Days < 1 || cfg.List < 1 || cfg.List > 8 || cfg.Beams < 1 {
			return fmt.Errorf("--seeds, --serve-days and --beams must be at least 1, --list 1 to 8")
		}
		runs, err := runWorlds(cmd.Context(), cfg, seed)
		if err != nil {
			return err
		}
		if c.json {
			return printJSON(cmd.OutOrStdout(), closedloop.NewReport(runs))
		}
		return closedloop.Print(cmd.OutOrStdout(), runs)
	})
	f := cmd.Flags()
	worldFlags(f, &cfg, &seed)
	f.StringVar(&rounds, "rounds", rounds, "numbers of rounds after which the aligned decoder serves")
	f.IntVar(&cfg.List, "list", cfg.List, "items of a list that is served")
	f.IntVar(&cfg.Beams, "beams", cfg.Beams, "width of the beam search that serves")
	f.IntVar(&cfg.Align.Users, "align-users", cfg.Align.Users, "training users of a round")
	f.IntVar(&cfg.Align.Candidates, "candidates", cfg.Align.Candidates, "candidate sessions for each of them")
	f.Float64Var(&cfg.Align.LearningRate, "align-learning-rate", cfg.Align.LearningRate, "learning rate of a round")
	f.StringVar(&cfg.Align.Loss, "align-loss", cfg.Align.Loss, "what is learned from a pair: "+strings.Join(append(decoder.PreferenceLosses(), rewarder.LossBest), ", "))
	f.Float64Var(&cfg.Align.Beta, "dpo-beta", cfg.Align.Beta, "beta of the loss over pairs")
	f.Float64Var(&cfg.Align.Smoothing, "label-smoothing", cfg.Align.Smoothing, "share of pairs that may be the wrong way round")
	f.Float64Var(&cfg.Align.Gamma, "simpo-gamma", cfg.Align.Gamma, "margin of simpo")
	f.BoolVar(&c.json, "json", false, "print JSON")
	return cmd
}

// worldFlags are about the worlds of a loop.
func worldFlags(f *pflag.FlagSet, cfg *closedloop.Config, seed *uint64) {
	f.IntVar(&cfg.Seeds, "seeds", cfg.Seeds, "worlds")
	f.Uint64Var(seed, "seed", *seed, "seed of the first world")
	f.IntVar(&cfg.World.Users, "users", cfg.World.Users, "users of a world")
	f.IntVar(&cfg.World.Items, "items", cfg.World.Items, "items of a world")
	f.IntVar(&cfg.World.Days, "days", cfg.World.Days, "days of the log")
	f.IntVar(&cfg.Days, "serve-days", cfg.Days, "days that each policy serves")
}

// runWorlds runs a loop in each world, with progress.
func runWorlds(ctx context.Context, cfg closedloop.Config, seed uint64) ([]*closedloop.Run, error) {
	p := progress.New(os.Stderr)
	defer p.Done()
	var runs []*closedloop.Run
	for s := range uint64(cfg.Seeds) {
		r, err := closedloop.Loop(ctx, cfg, seed+s, func(stage, unit string, done, total int) {
			p.Update(fmt.Sprintf("world %d of %d: %s", s+1, cfg.Seeds, stage), unit, done, total)
		})
		if err != nil {
			return nil, err
		}
		runs = append(runs, r)
	}
	return runs, nil
}

func (c *cli) simulateAblate() *cobra.Command {
	cfg := closedloop.AblationConfig()
	seed, only := uint64(1), []string(nil)
	cmd := c.command(&cobra.Command{
		Use: "ablate", Short: "Compare ways to align the decoder in a closed loop",
		Long: `Like "onerec simulate loop", but instead of rounds in a row one round of each variant
of alignment begins at the pretrained decoder: other numbers of candidates and of users,
other pairs, other losses, among them a policy gradient. What a round makes serves whatever
the gates say, and the table says what they said. Beside what the reward models predict
it prints what users really had.

The default takes about an hour on two processors.`,
		Example: "  onerec simulate ablate\n  onerec simulate ablate --seeds 1 --only default,ipo,'policy gradient'",
	}, nil, func(cmd *cobra.Command, _ *app.App, _ []string) error {
		if len(only) > 0 {
			var names []string
			for _, v := range cfg.Variants {
				names = append(names, v.Name)
			}
			for _, name := range only {
				if !slices.Contains(names, name) {
					return fmt.Errorf("--only: no variant is called %q; there are %s", name, strings.Join(names, "; "))
				}
			}
			cfg.Variants = slices.DeleteFunc(cfg.Variants, func(v closedloop.Variant) bool { return !slices.Contains(only, v.Name) })
		}
		if cfg.Seeds < 1 || cfg.Days < 1 {
			return fmt.Errorf("--seeds and --serve-days must be at least 1")
		}
		runs, err := runWorlds(cmd.Context(), cfg, seed)
		if err != nil {
			return err
		}
		lines := closedloop.CompareVariants(runs, cfg.Variants)
		if c.json {
			return printJSON(cmd.OutOrStdout(), lines)
		}
		return closedloop.PrintVariants(cmd.OutOrStdout(), lines)
	})
	f := cmd.Flags()
	worldFlags(f, &cfg, &seed)
	f.StringSliceVar(&only, "only", nil, "variants to run, by name; all by default")
	f.BoolVar(&c.json, "json", false, "print JSON")
	return cmd
}

func (c *cli) simulateCompare() *cobra.Command {
	cfg := simulator.DefaultConfig()
	cfg.SessionsADay = 2
	all := false
	cmd := c.command(&cobra.Command{
		Use: "compare FILE", Short: "Print what simulated and real views look like, side by side", Args: cobra.ExactArgs(1),
		Long: `Reads real views, in KuaiRand's format or as JSON lines of ViewEvents, simulates as many
users over as many days, and prints both logs' figures side by side. Published logs often
keep only views that were liked or disliked, of users who did both; the simulated log is cut down
in the same way, unless --all is set.`,
		Example: "  onerec simulate compare views.tsv.gz",
	}, nil, func(cmd *cobra.Command, _ *app.App, args []string) error {
		file, err := replay.Read(args[0])
		if err != nil {
			return err
		}
		var real []*onerecv1.ViewEvent
		for _, e := range file.Events {
			if v, err := schemas.DecodeViewEvent(e.ContentType, e.Value); err == nil {
				real = append(real, v)
			}
		}
		if len(real) == 0 {
			return fmt.Errorf("%s holds no view that can be read", args[0])
		}
		of := simulator.Summarize(slices.Values(real), !all)
		cfg.Users = of.Users
		if cfg.Items == simulator.DefaultConfig().Items {
			cfg.Items = of.Items * 3 / 2 // some are never seen
		}
		first, last := real[0].EventTimeMs, real[0].EventTimeMs
		for _, v := range real {
			first, last = min(first, v.EventTimeMs), max(last, v.EventTimeMs)
		}
		cfg.Days = 1 + int(time.Duration(last-first)*time.Millisecond/(24*time.Hour))
		world, err := simulator.New(cfg)
		if err != nil {
			return err
		}
		s := simulator.Summarize(world.Events(), !all)
		if c.json {
			return printJSON(cmd.OutOrStdout(), map[string]simulator.Summary{"simulated": s, "real": of})
		}
		return printSummaries(cmd.OutOrStdout(), s, of)
	})
	f := cmd.Flags()
	f.IntVar(&cfg.Items, "items", cfg.Items, "simulated items; by default half as many again as in the file")
	f.Float64Var(&cfg.SessionsADay, "sessions-a-day", cfg.SessionsADay, "sessions a day, mean by simulated user")
	f.Uint64Var(&cfg.Seed, "seed", cfg.Seed, "seed of the simulated world")
	f.BoolVar(&all, "all", false, "compare all views, not only those that were liked or disliked")
	f.BoolVar(&c.json, "json", false, "print JSON")
	return cmd
}

func printSummaries(w io.Writer, a, b simulator.Summary) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\tSIMULATED\tREAL")
	line := func(name, format string, of func(simulator.Summary) []any) {
		fmt.Fprintf(t, "%s\t"+format+"\t"+format+"\n", append(append([]any{name}, of(a)...), of(b)...)...)
	}
	quantiles := func(name string, of func(simulator.Summary) simulator.Quantiles) {
		line(name, "%.3g, %.3g, %.3g, %.3g, %.3g", func(s simulator.Summary) []any {
			var out []any
			for _, q := range of(s) {
				out = append(out, q)
			}
			return out
		})
	}
	line("views, users, items", "%d, %d, %d", func(s simulator.Summary) []any { return []any{s.Views, s.Users, s.Items} })
	fmt.Fprintln(t, "percentiles 10, 25, 50, 75, 90 of\t\t")
	quantiles("  watch time, s", func(s simulator.Summary) simulator.Quantiles { return s.WatchSeconds })
	quantiles("  duration, s", func(s simulator.Summary) simulator.Quantiles { return s.DurationSeconds })
	quantiles("  watch time to duration", func(s simulator.Summary) simulator.Quantiles { return s.WatchRatio })
	quantiles("  gap between views, s", func(s simulator.Summary) simulator.Quantiles { return s.GapSeconds })
	quantiles("  pause between sessions, h", func(s simulator.Summary) simulator.Quantiles { return s.PauseHours })
	quantiles("  views of a session", func(s simulator.Summary) simulator.Quantiles { return s.SessionViews })
	quantiles("  views of a user", func(s simulator.Summary) simulator.Quantiles { return s.UserViews })
	quantiles("  likes among a user's views", func(s simulator.Summary) simulator.Quantiles { return s.UserLikes })
	line("likes, dislikes, follows, comments, shares", "%.3f, %.3f, %.4f, %.4f, %.4f", func(s simulator.Summary) []any {
		return []any{s.Likes, s.Dislikes, s.Follows, s.Comments, s.Shares}
	})
	line("views of the first 1 %, 10 % of items", "%.3f, %.3f", func(s simulator.Summary) []any { return []any{s.Top1, s.Top10} })
	for i, bound := range simulator.RatioBounds {
		name := fmt.Sprintf("likes where less than %g of it is watched", bound)
		if math.IsInf(bound, 1) {
			name = "likes where all of it is watched"
		}
		line(name, "%.3f", func(s simulator.Summary) []any { return []any{s.LikesByRatio[i]} })
	}
	return t.Flush()
}
