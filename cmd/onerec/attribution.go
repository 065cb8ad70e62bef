package main

import (
	"cmp"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"onerec/internal/app"
	"onerec/internal/attribution"
)

// timeFlag is a time as a flag, RFC 3339; empty: not set.
func timeFlag(name, text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return t, fmt.Errorf("--%s is %q, want a time like 2026-01-31T12:00:00Z", name, text)
	}
	return t, nil
}

func (c *cli) report() *cobra.Command {
	parent := &cobra.Command{Use: "report", Short: "Report what recommendations were worth", GroupID: "tools", Args: cobra.NoArgs, RunE: help}
	since := ""
	cmd := c.command(&cobra.Command{
		Use: "attribution", Short: "Sum watch time and likes by checkpoint", Args: cobra.NoArgs,
		Long: `Reads the snapshots and sums what users did by the checkpoint_version that came with the
recommendation they watched; the first line is of views that no recommendation led to.
Intervals are 95 % bootstrap intervals over users. Versions that served at different
times saw different users and days: only a canary beside what is released, for the
same time, is a comparison ("onerec checkpoints judge").`,
	}, []string{app.GroupSnapshots}, func(cmd *cobra.Command, a *app.App, _ []string) error {
		from, err := timeFlag("since", since)
		if err != nil {
			return err
		}
		lines, err := a.Attribution(cmd.Context(), from)
		if err != nil {
			return err
		}
		if c.json {
			return printJSON(cmd.OutOrStdout(), lines)
		}
		t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "CHECKPOINT\tUSERS\tVIEWS\tWATCH h\tLIKES\tDISLIKES\tWATCH s A VIEW\tLIKES A VIEW\tTO THE END\tWATCH s A USER")
		for _, l := range lines {
			fmt.Fprintf(t, "%s\t%d\t%d\t%.1f\t%d\t%d\t%.1f (%.1f to %.1f)\t%.4f (%.4f to %.4f)\t%.1f %%\t%.0f\n", cmp.Or(l.Version, "(none)"), l.Users, l.Views, float64(l.WatchMs)/3.6e6, l.Likes, l.Dislikes,
				l.WatchAView.Mean, l.WatchAView.Low, l.WatchAView.High, l.LikesAView.Mean, l.LikesAView.Low, l.LikesAView.High, 100*l.Completions, l.WatchAUser)
		}
		return t.Flush()
	})
	cmd.Flags().StringVar(&since, "since", "", "count views from this time on, like 2026-01-31T12:00:00Z; empty: all")
	cmd.Flags().BoolVar(&c.json, "json", false, "print JSON")
	parent.AddCommand(cmd)
	return parent
}

func (c *cli) checkpointsJudge() *cobra.Command {
	rule, since, apply := attribution.DefaultRule(), "", false
	cmd := c.command(&cobra.Command{
		Use: "judge", Short: "Compare the canary with what is released, and promote or withdraw it", Args: cobra.NoArgs,
		Long: `Compares what users had of the canary with what the others had of the released version, by
the snapshots' views since the canary was announced. When watch time a user is more
beyond doubt (95 %) and likes are not fewer beyond --max-drop, the canary is to be
promoted; when either is worse beyond doubt, withdrawn; else it is to wait. --apply does
what was decided, but promotes nothing while releases are held. Exit code 0 whatever the
decision.`,
		Example: "  onerec checkpoints promote 000012-9f3ac1d2 --channel canary\n  onerec checkpoints judge\n  onerec checkpoints judge --apply",
	}, append([]string{app.GroupSnapshots}, channelGroups...), func(cmd *cobra.Command, a *app.App, _ []string) error {
		from, err := timeFlag("since", since)
		if err != nil {
			return err
		}
		if rule.MinUsers < 2 || !(rule.MaxDrop >= 0) {
			return fmt.Errorf("--min-users must be at least 2, --max-drop at least 0")
		}
		j, err := a.JudgeCanary(cmd.Context(), rule, from, apply)
		if err != nil {
			return err
		}
		if c.json {
			return printJSON(cmd.OutOrStdout(), j)
		}
		if _, err = fmt.Fprintf(cmd.OutOrStdout(), "%s %s beside %s: %s\n", j.Decision, j.Canary, j.Released, j.Why); err != nil || j.Held == "" {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "not applied, releases are held until \"onerec checkpoints resume\": %s\n", j.Held)
		return err
	})
	f := cmd.Flags()
	f.IntVar(&rule.MinUsers, "min-users", rule.MinUsers, "users of each version that are needed for a decision")
	f.Float64Var(&rule.MaxDrop, "max-drop", rule.MaxDrop, "share of the likes a user that may be lost where watch time rises")
	f.StringVar(&since, "since", "", "count views from this time on, like 2026-01-31T12:00:00Z; empty: since the canary was announced")
	f.BoolVar(&apply, "apply", false, "promote or withdraw the canary as decided")
	f.BoolVar(&c.json, "json", false, "print JSON")
	return cmd
}
