package main

import (
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"onerec/internal/app"
	"onerec/internal/progress"
	"onerec/snapshots"
)

// snapshotGroups are the settings of the commands that only look at the snapshots.
var snapshotGroups = []string{app.GroupSnapshots}

// snapshotTools are the commands beside the service.
func (c *cli) snapshotTools() []*cobra.Command {
	return []*cobra.Command{c.snapshotColumns(), c.snapshotFiles(), c.snapshotSQL(), c.snapshotVerify(), c.snapshotCompact(), c.snapshotRefresh(), c.snapshotExport()}
}

func (c *cli) snapshotColumns() *cobra.Command {
	cmd := &cobra.Command{Use: "columns", Short: "Print what each column of the tables holds, as Markdown", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		if c.json {
			return printJSON(cmd.OutOrStdout(), snapshots.Tables())
		}
		return snapshots.WriteColumns(cmd.OutOrStdout())
	}}
	cmd.Flags().BoolVar(&c.json, "json", false, "print JSON")
	return cmd
}

// days adds the flags of a range of days.
func days(cmd *cobra.Command) *snapshots.Range {
	r := new(snapshots.Range)
	cmd.Flags().StringVar(&r.From, "from", "", "first day, YYYY-MM-DD, UTC; empty: from the beginning")
	cmd.Flags().StringVar(&r.To, "to", "", "last day, included; empty: to the end")
	check := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		for _, day := range []string{r.From, r.To} {
			if _, err := time.Parse(time.DateOnly, day); day != "" && err != nil {
				return fmt.Errorf("%q is no day; write it as 2026-01-31", day)
			}
		}
		if check == nil {
			return nil
		}
		return check(cmd, args)
	}
	return r
}

func (c *cli) snapshotFiles() *cobra.Command {
	var table string
	var r *snapshots.Range
	cmd := c.command(&cobra.Command{
		Use: "files", Short: "List the files that are a table now",
		Long: "Lists the files that the log of a table says are its rows now. What else is in the folders was\nreplaced, or never became part of it.",
	}, snapshotGroups, func(cmd *cobra.Command, a *app.App, _ []string) error {
		return a.WithSnapshots(cmd.Context(), func(s *snapshots.Store) error {
			files, err := s.Files(cmd.Context(), table, *r)
			if err != nil {
				return err
			}
			type line struct {
				File  string `json:"file"`
				Rows  int64  `json:"rows"`
				Bytes int64  `json:"bytes"`
			}
			lines := make([]line, len(files))
			for i, f := range files {
				lines[i] = line{s.Locate(table, f.Path), f.Rows(), f.Size}
			}
			if c.json {
				return printJSON(cmd.OutOrStdout(), lines)
			}
			t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(t, "ROWS\tSIZE\tFILE")
			for _, l := range lines {
				rows := fmt.Sprint(l.Rows)
				if l.Rows < 0 {
					rows = "?"
				}
				fmt.Fprintf(t, "%s\t%s\t%s\n", rows, mib(l.Bytes), l.File)
			}
			return t.Flush()
		})
	})
	cmd.Flags().StringVar(&table, "table", snapshots.TableSessions, "the table")
	cmd.Flags().BoolVar(&c.json, "json", false, "print JSON")
	r = days(cmd)
	return cmd
}

func (c *cli) snapshotSQL() *cobra.Command {
	var r *snapshots.Range
	cmd := c.command(&cobra.Command{
		Use: "sql", Short: "Print views of the tables for DuckDB",
		Long: `Prints SQL that makes a view of each table over exactly the files that are its rows now,
and views, verdicts and recommendations over those:

  onerec snapshot sql > views.sql && duckdb -init views.sql`,
	}, snapshotGroups, func(cmd *cobra.Command, a *app.App, _ []string) error {
		return a.WithSnapshots(cmd.Context(), func(s *snapshots.Store) error { return s.WriteSQL(cmd.Context(), cmd.OutOrStdout(), *r) })
	})
	r = days(cmd)
	return cmd
}

func (c *cli) snapshotVerify() *cobra.Command {
	var r *snapshots.Range
	cmd := c.command(&cobra.Command{
		Use: "verify", Short: "Read every file and say what is wrong",
		Long: `Reads every file of the tables and holds it against the log: that it can be read, has the
rows and the bytes that the log says, and no row of another hour, out of order, or twice.
Ends with an error if something is wrong. It repairs nothing.`,
	}, snapshotGroups, func(cmd *cobra.Command, a *app.App, _ []string) error {
		a.Progress = progress.New(os.Stderr)
		defer a.Progress.Done()
		return a.WithSnapshots(cmd.Context(), func(s *snapshots.Store) error {
			out, faults := make(map[string]snapshots.Verified), 0
			t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(t, "TABLE\tFILES\tROWS\tSIZE\tLOOSE\tFAULTS")
			for _, table := range snapshots.Tables() {
				v, err := s.Verify(cmd.Context(), table.Name, *r, func(done, total int) { a.Progress.Update("verify "+table.Name, "files", done, total) })
				if err != nil {
					return err
				}
				out[table.Name] = v
				faults += len(v.Faults)
				fmt.Fprintf(t, "%s\t%d\t%d\t%s\t%d\t%d\n", table.Name, v.Files, v.Rows, mib(v.Bytes), v.Loose, len(v.Faults))
				for _, f := range v.Faults {
					fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s\n", f.File, f.What)
				}
			}
			var err error
			if c.json {
				err = printJSON(cmd.OutOrStdout(), out)
			} else {
				err = t.Flush()
			}
			if err == nil && faults > 0 {
				err = fmt.Errorf("%d files are damaged", faults)
			}
			return err
		})
	})
	cmd.Flags().BoolVar(&c.json, "json", false, "print JSON")
	r = days(cmd)
	return cmd
}

func (c *cli) snapshotCompact() *cobra.Command {
	var quiet, grace time.Duration
	var keep int
	cmd := c.command(&cobra.Command{
		Use: "compact", Short: "Make small files one, remove what is over",
		Long: `Makes the small files of each hour files of --snapshot-size, takes days out that are older
than --keep-days, and deletes files that are no part of a table any more. The rows stay the
same for whoever reads by the log; a reader of the bare folders finds replaced rows twice
until --grace is over. It may run beside the service, from cron for example.`,
	}, []string{app.GroupSnapshots, app.GroupFiles}, func(cmd *cobra.Command, a *app.App, _ []string) error {
		a.Progress = progress.New(os.Stderr)
		defer a.Progress.Done()
		return a.WithSnapshots(cmd.Context(), func(s *snapshots.Store) error {
			out := make(map[string]snapshots.Maintained)
			t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(t, "TABLE\tMERGED\tINTO\tROWS\tEXPIRED\tDELETED\tBYTES DELETED")
			for _, table := range snapshots.Tables() {
				done, err := s.Maintain(cmd.Context(), table.Name, snapshots.Maintenance{
					Size: int64(a.SnapshotSize) << 20, Quiet: quiet, Keep: keep, Grace: grace, Now: time.Now(),
					Progress: func(done, total int) { a.Progress.Update("compact "+table.Name, "hours", done, total) },
				})
				if err != nil {
					return err
				}
				out[table.Name] = done
				fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%d\t%d\t%s\n", table.Name, done.Merged, done.Into, done.RowsRewritten, done.Expired, done.Deleted, mib(done.DeletedBytes))
			}
			if c.json {
				return printJSON(cmd.OutOrStdout(), out)
			}
			return t.Flush()
		})
	})
	cmd.Flags().DurationVar(&quiet, "quiet", time.Hour, "leave an hour alone of which a file came since")
	cmd.Flags().DurationVar(&grace, "grace", time.Hour, "keep replaced files for so long, for who still reads them; at least as long as the slowest writer needs for a file")
	cmd.Flags().IntVar(&keep, "keep-days", 0, "days that are kept; 0: all")
	cmd.Flags().BoolVar(&c.json, "json", false, "print JSON")
	return cmd
}

func (c *cli) snapshotExport() *cobra.Command {
	var file, version string
	var rows int
	var loss bool
	var r *snapshots.Range
	cmd := c.command(&cobra.Command{
		Use: "export", Short: "Write good sessions as token batches for trainers in other languages",
		Long: `Writes the good sessions of the snapshots as rows of tokens, in the order of their ends, to an
Arrow IPC file that pyarrow maps into memory: the user's history, then the session, in the
semantic IDs of a checkpoint, with each token's weight in the loss; long sessions are
several rows. docs/examples/tokens.py trains on them in PyTorch. docs/snapshots.md has the
columns.`,
	}, []string{app.GroupSnapshots, app.GroupCheckpoints, app.GroupRows, app.GroupDamaged}, func(cmd *cobra.Command, a *app.App, _ []string) error {
		out, err := a.ExportTokens(cmd.Context(), file, version, *r, rows, loss)
		if err != nil {
			return err
		}
		if c.json {
			return printJSON(cmd.OutOrStdout(), out)
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d rows, %d tokens, %s, in the semantic IDs of %s\n", out.Rows, out.Tokens, mib(out.Bytes), out.Version)
		if err == nil && out.Loss != nil {
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "loss of its decoder: %.6f nats a token\n", *out.Loss)
		}
		return err
	})
	cmd.Flags().StringVar(&file, "arrow", "", "the file to write")
	cmd.Flags().StringVar(&version, "version", "", "checkpoint whose semantic IDs are used; empty: the newest")
	cmd.Flags().IntVar(&rows, "batch-rows", 1024, "rows of a record batch")
	cmd.Flags().BoolVar(&loss, "loss", false, "measure the checkpoint's decoder on the file")
	cmd.Flags().BoolVar(&c.json, "json", false, "print JSON")
	if err := cmd.MarkFlagRequired("arrow"); err != nil {
		panic(err) // the flag is defined above
	}
	r = days(cmd)
	return cmd
}

func (c *cli) snapshotRefresh() *cobra.Command {
	cmd := c.command(&cobra.Command{
		Use: "refresh", Short: "Write the tables of items, checkpoints and training steps anew",
		Long: `Writes three tables anew from the items topic and the checkpoints: items with their semantic
IDs, checkpoints with what was measured of them, and every training step. Rows of versions
whose files were removed since stay. From cron, for example.`,
	}, []string{app.GroupCommon, app.GroupLog, app.GroupCheckpoints, app.GroupSnapshots}, func(cmd *cobra.Command, a *app.App, _ []string) error {
		out, err := a.RefreshTables(cmd.Context())
		if err != nil {
			return err
		}
		if c.json {
			return printJSON(cmd.OutOrStdout(), out)
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d items, %d checkpoints, %d training steps\n", out.Items, out.Checkpoints, out.TrainingSteps)
		return err
	})
	cmd.Flags().BoolVar(&c.json, "json", false, "print JSON")
	return cmd
}
