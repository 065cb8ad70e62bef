package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"onerec/internal/app"
	"onerec/internal/progress"
	"onerec/publisher"
)

func (c *cli) checkpoints() *cobra.Command {
	parent := &cobra.Command{
		Use: "checkpoints", Short: "List, compare, verify, promote, roll back and remove checkpoints", GroupID: "tools", Args: cobra.NoArgs, RunE: help,
		Long: `Versions lie in a bucket and never change; channels, on the checkpoints topic, point at
them: candidate (what was trained last), canary (what a share of the users gets) and
released (what the others get). list, show, diff, verify and keygen need no broker.`,
	}
	parent.AddCommand(c.checkpointsList(), c.checkpointsChannels(), c.checkpointsShow(), c.checkpointsDiff(), c.checkpointsVerify(),
		c.checkpointsPromote(), c.checkpointsRollback(), c.checkpointsHold(), c.checkpointsResume(), c.checkpointsWithdraw(), c.checkpointsJudge(), c.checkpointsGC(), c.checkpointsKeygen())
	return parent
}

// Settings of commands that only look at the bucket, and of those that look at channels, too.
var (
	bucketGroups  = []string{app.GroupCheckpoints}
	channelGroups = []string{app.GroupCommon, app.GroupLog, app.GroupModel, app.GroupCheckpoints}
)

func size(m *publisher.Manifest) (bytes int64) {
	for _, f := range m.Files {
		bytes += f.Bytes
	}
	return bytes
}

func mib(bytes int64) string { return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20)) }

func (c *cli) checkpointsList() *cobra.Command {
	cmd := c.command(&cobra.Command{Use: "list", Short: "List the versions, oldest first"}, bucketGroups, func(cmd *cobra.Command, a *app.App, _ []string) error {
		bad := 0
		versions, err := a.Versions(cmd.Context(), func(version string, err error) {
			bad++
			fmt.Fprintf(cmd.ErrOrStderr(), "%s can't be read: %v\n", version, err)
		})
		if err != nil {
			return err
		}
		if c.json {
			if versions == nil {
				versions = []*publisher.Manifest{}
			}
			err = printJSON(cmd.OutOrStdout(), versions)
		} else {
			t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(t, "VERSION\tKIND\tMODEL\tPARENT\tCREATED\tSIZE")
			for _, m := range versions {
				fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", m.Version, m.Kind, m.Model, m.Parent, m.CreatedAt.Format(time.RFC3339), mib(size(m)))
			}
			err = t.Flush()
		}
		if err == nil && bad > 0 {
			err = fmt.Errorf("%d versions can't be read; \"onerec checkpoints gc\" removes what is damaged and not in use", bad)
		}
		return err
	})
	cmd.Flags().BoolVar(&c.json, "json", false, "print the manifests as JSON")
	return cmd
}

func (c *cli) checkpointsChannels() *cobra.Command {
	cmd := c.command(&cobra.Command{Use: "channels", Short: "Print what the model's channels point at"}, channelGroups, func(cmd *cobra.Command, a *app.App, _ []string) error {
		refs, err := a.Current(cmd.Context())
		if err != nil {
			return err
		}
		if c.json {
			return printJSON(cmd.OutOrStdout(), refs)
		}
		t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "CHANNEL\tVERSION\tKIND\tPARENT\tBEFORE\tSINCE")
		for _, channel := range publisher.Channels() {
			if ref := refs[channel]; ref != nil {
				before := append(ref.Before, "-")[0]
				fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", channel, ref.Version, ref.Kind, cmp.Or(ref.Parent, "-"), before, time.UnixMilli(ref.AnnouncedAtMs).UTC().Format(time.RFC3339))
			} else {
				fmt.Fprintf(t, "%s\t-\t-\t-\t-\t-\n", channel)
			}
		}
		if err := t.Flush(); err != nil {
			return err
		}
		return tellHeld(cmd.OutOrStdout(), refs[publisher.ChannelReleased].GetHeld())
	})
	cmd.Flags().BoolVar(&c.json, "json", false, "print JSON")
	return cmd
}

func (c *cli) checkpointsShow() *cobra.Command {
	cmd := c.command(&cobra.Command{
		Use: "show VERSION", Short: "Print a version's manifest, gates and lineage", Args: cobra.ExactArgs(1),
	}, bucketGroups, func(cmd *cobra.Command, a *app.App, args []string) error {
		lineage, err := a.Lineage(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		if c.json {
			return printJSON(cmd.OutOrStdout(), lineage)
		}
		return printManifest(cmd.OutOrStdout(), lineage)
	})
	cmd.Flags().BoolVar(&c.json, "json", false, "print the manifests, from the version to its oldest ancestor, as JSON")
	return cmd
}

func printManifest(w io.Writer, lineage []*publisher.Manifest) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	m := lineage[0]
	fmt.Fprintf(t, "version\t%s\nmodel\t%s\nkind\t%s\ncodebook\t%s\ncreated\t%s\n", m.Version, m.Model, m.Kind, m.Codebook, m.CreatedAt.Format(time.RFC3339))
	for _, f := range m.Files {
		fmt.Fprintf(t, "file\t%s\t%d bytes\tsha256 %s\n", f.Name, f.Bytes, f.SHA256)
	}
	for _, topic := range slices.Sorted(maps.Keys(m.Offsets)) {
		var ends []string
		for _, p := range slices.Sorted(maps.Keys(m.Offsets[topic])) {
			ends = append(ends, fmt.Sprintf("%d:%d", p, m.Offsets[topic][p]))
		}
		fmt.Fprintf(t, "trained on\t%s\tbefore partition:offset %s\n", topic, strings.Join(ends, " "))
	}
	for _, name := range slices.Sorted(maps.Keys(m.Metrics)) {
		switch gate, ok := strings.CutPrefix(name, "gate_"); {
		case strings.HasPrefix(name, "bound_"):
		case ok:
			fmt.Fprintf(t, "gate\t%s\t%.6g, bound %.6g\n", gate, m.Metrics[name], m.Metrics["bound_"+gate])
		default:
			fmt.Fprintf(t, "metric\t%s\t%.6g\n", name, m.Metrics[name])
		}
	}
	for _, p := range lineage[1:] {
		fmt.Fprintf(t, "from\t%s\t%s, %s\n", p.Version, p.Kind, p.CreatedAt.Format(time.RFC3339))
	}
	return t.Flush()
}

// difference is a line of a comparison of two versions.
type difference struct {
	Name   string `json:"name"`
	Before any    `json:"before"`
	After  any    `json:"after"`
}

func (c *cli) checkpointsDiff() *cobra.Command {
	cmd := c.command(&cobra.Command{
		Use: "diff VERSION VERSION", Short: "Print what differs between two versions", Args: cobra.ExactArgs(2),
		Long: "Compares two versions' manifests: files, offsets that they were trained to, metrics. What is the same is left out.",
	}, bucketGroups, func(cmd *cobra.Command, a *app.App, args []string) error {
		var of [2]*publisher.Manifest
		for i, version := range args {
			lineage, err := a.Lineage(cmd.Context(), version)
			if err != nil {
				return err
			}
			of[i] = lineage[0]
		}
		d := compare(of[0], of[1])
		if c.json {
			return printJSON(cmd.OutOrStdout(), d)
		}
		t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
		fmt.Fprintf(t, "\t%s\t%s\n", args[0], args[1])
		for _, line := range d {
			before, after := fmt.Sprint(line.Before), fmt.Sprint(line.After)
			if x, ok := line.Before.(float64); ok {
				before = fmt.Sprintf("%.6g", x)
				if y, ok := line.After.(float64); ok && x != 0 {
					after = fmt.Sprintf("%.6g (%+.2f %%)", y, 100*(y-x)/math.Abs(x))
				}
			}
			fmt.Fprintf(t, "%s\t%s\t%s\n", line.Name, before, after)
		}
		return t.Flush()
	})
	cmd.Flags().BoolVar(&c.json, "json", false, "print JSON")
	return cmd
}

func compare(x, y *publisher.Manifest) []difference {
	out := []difference{}
	add := func(name string, before, after any) {
		if before != after {
			out = append(out, difference{name, before, after})
		}
	}
	add("model", x.Model, y.Model)
	add("kind", x.Kind, y.Kind)
	add("parent", x.Parent, y.Parent)
	add("codebook", x.Codebook, y.Codebook)
	add("config", string(x.Config), string(y.Config))
	each(x.Offsets, y.Offsets, func(topic string, before, after map[int32]int64) {
		each(before, after, func(p int32, before, after int64) {
			add(fmt.Sprintf("offset of %s, partition %d", topic, p), before, after)
		})
	})
	files := func(m *publisher.Manifest) map[string]string {
		out := make(map[string]string)
		for _, f := range m.Files {
			out[f.Name] = fmt.Sprintf("%d bytes, %.12s", f.Bytes, f.SHA256)
		}
		return out
	}
	each(files(x), files(y), func(name, before, after string) { add(name, before, after) })
	for _, name := range union(x.Metrics, y.Metrics) {
		before, ok := x.Metrics[name]
		after, also := y.Metrics[name]
		switch {
		case ok && also:
			add(name, before, after)
		case ok:
			add(name, before, "-")
		default:
			add(name, "-", after)
		}
	}
	return out
}

// union returns the keys of two maps, sorted.
func union[K ~string | ~int32, V any](x, y map[K]V) []K {
	all := make(map[K]bool)
	for k := range x {
		all[k] = true
	}
	for k := range y {
		all[k] = true
	}
	return slices.Sorted(maps.Keys(all))
}

func each[K ~string | ~int32, V any](x, y map[K]V, fn func(k K, before, after V)) {
	for _, k := range union(x, y) {
		fn(k, x[k], y[k])
	}
}

func (c *cli) checkpointsVerify() *cobra.Command {
	return c.command(&cobra.Command{Use: "verify [VERSION...]", Short: "Check every byte of versions; all of them if none is named", Args: cobra.ArbitraryArgs}, bucketGroups, func(cmd *cobra.Command, a *app.App, args []string) error {
		a.Progress = progress.New(os.Stderr)
		defer a.Progress.Done()
		return a.Verify(cmd.Context(), args, func(version string, err error) {
			state := "ok"
			if err != nil {
				state = err.Error()
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s  %s\n", version, state)
		})
	})
}

func (c *cli) checkpointsPromote() *cobra.Command {
	channel := publisher.ChannelReleased
	cmd := c.command(&cobra.Command{
		Use: "promote VERSION", Short: "Release a version, or give it to the canary's users", Args: cobra.ExactArgs(1),
		Long: `Verifies VERSION and points the channel at it. A version that is released leaves the
canary channel. Releases that are held stay so.`,
	}, channelGroups, func(cmd *cobra.Command, a *app.App, args []string) error {
		if channel != publisher.ChannelReleased && channel != publisher.ChannelCanary {
			return fmt.Errorf("--channel is %q, want %s or %s", channel, publisher.ChannelReleased, publisher.ChannelCanary)
		}
		before, held, err := a.Promote(cmd.Context(), args[0], channel)
		if err != nil {
			return err
		}
		if before == "" {
			before = "nothing"
		}
		if _, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %s (before: %s)\n", channel, args[0], before); err != nil {
			return err
		}
		return tellHeld(cmd.OutOrStdout(), held)
	})
	cmd.Flags().StringVar(&channel, "channel", channel, "released or canary")
	return cmd
}

func (c *cli) checkpointsRollback() *cobra.Command {
	why := ""
	cmd := c.command(&cobra.Command{
		Use: "rollback [VERSION]", Short: "Release an earlier version again, and hold releases", Args: cobra.MaximumNArgs(1),
		Long: `Points the released channel at VERSION or, without one, at what was released before;
at the parent if nothing was. One record; fleets follow at once. It holds releases, too:
what passes the gates later is published, but not released, until "onerec checkpoints
resume". The trainer goes on from the version at its next checkpoint.`,
	}, channelGroups, func(cmd *cobra.Command, a *app.App, args []string) error {
		to := ""
		if len(args) > 0 {
			to = args[0]
		}
		from, to, err := a.Rollback(cmd.Context(), to, why)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "released: %s (before: %s)\nreleases are held until \"onerec checkpoints resume\"\n", to, from)
		return err
	})
	cmd.Flags().StringVar(&why, "why", "", "a reason, for whom it concerns; empty: what was rolled back from")
	return cmd
}

func (c *cli) checkpointsHold() *cobra.Command {
	why := "held by hand"
	cmd := c.command(&cobra.Command{
		Use: "hold", Short: "Let nothing else be released for now", Args: cobra.NoArgs,
		Long: `Keeps the rewarder, and "checkpoints judge --apply", from releasing another version.
Training and rounds go on; what passes the gates is published, and can be released with
"onerec checkpoints promote". Until "onerec checkpoints resume".`,
	}, channelGroups, func(cmd *cobra.Command, a *app.App, _ []string) error {
		if why == "" {
			return fmt.Errorf("--why must say something")
		}
		released, err := a.Hold(cmd.Context(), why)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "released: %s, held: %s\n", released, why)
		return err
	})
	cmd.Flags().StringVar(&why, "why", why, "a reason, for whom it concerns")
	return cmd
}

func (c *cli) checkpointsResume() *cobra.Command {
	return c.command(&cobra.Command{
		Use: "resume", Short: "Let services release again what passes the gates", Args: cobra.NoArgs,
		Long: "Ends what rollback or hold began. The next round that passes its gates is released.",
	}, channelGroups, func(cmd *cobra.Command, a *app.App, _ []string) error {
		released, err := a.Hold(cmd.Context(), "")
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "released: %s, until a round passes its gates\n", released)
		return err
	})
}

// tellHeld says why releases are held, if they are.
func tellHeld(w io.Writer, why string) error {
	if why == "" {
		return nil
	}
	_, err := fmt.Fprintf(w, "releases are held until \"onerec checkpoints resume\": %s\n", why)
	return err
}

func (c *cli) checkpointsWithdraw() *cobra.Command {
	return c.command(&cobra.Command{
		Use: "withdraw", Short: "Take the canary away from its users", Args: cobra.NoArgs,
		Long: "Points the canary channel at nothing; its users get what is released.",
	}, channelGroups, func(cmd *cobra.Command, a *app.App, _ []string) error {
		before, err := a.Withdraw(cmd.Context())
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "canary: nothing (before: %s)\n", before)
		return err
	})
}

func (c *cli) checkpointsGC() *cobra.Command {
	dryRun := false
	cmd := c.command(&cobra.Command{
		Use: "gc", Short: "Remove old versions and uploads that were never finished", Args: cobra.NoArgs,
		Long: `Keeps the newest versions (--checkpoints-keep), those that are younger than
--checkpoints-keep-for, every version that a channel of any model points at or that was
released before, and the version that each of those was trained from. The rest is
removed, with uploads that were killed so long ago.`,
	}, append([]string{app.GroupLearn}, channelGroups...), func(cmd *cobra.Command, a *app.App, _ []string) error {
		if a.KeepCheckpoints < 1 {
			return fmt.Errorf("--checkpoints-keep must be at least 1")
		}
		got, err := a.Collect(cmd.Context(), dryRun)
		if err != nil {
			return err
		}
		if c.json {
			return printJSON(cmd.OutOrStdout(), got)
		}
		for _, v := range got.Versions {
			fmt.Fprintln(cmd.OutOrStdout(), v)
		}
		for _, v := range got.Unfinished {
			fmt.Fprintln(cmd.OutOrStdout(), v, "(never finished)")
		}
		verb := "removed"
		if dryRun {
			verb = "would be removed"
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d versions %s, %s\n", len(got.Versions)+len(got.Unfinished), verb, mib(got.Bytes))
		return err
	})
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only print what would be removed")
	cmd.Flags().BoolVar(&c.json, "json", false, "print JSON")
	return cmd
}

func (c *cli) checkpointsKeygen() *cobra.Command {
	return &cobra.Command{
		Use: "keygen FILE", Short: "Make a key that signs checkpoints", Args: cobra.ExactArgs(1),
		Long:    "Writes a private ed25519 key to FILE, which must not exist, and the public one to FILE.pub.",
		Example: "  onerec checkpoints keygen sign.pem\n  onerec train --checkpoint-sign-key sign.pem\n  onerec serve --checkpoint-trust-keys sign.pem.pub",
		RunE: func(cmd *cobra.Command, args []string) error {
			private, public, err := publisher.NewKey()
			if err != nil {
				return err
			}
			for _, f := range []struct {
				name string
				data []byte
				mode os.FileMode
			}{{args[0], private, 0o600}, {args[0] + ".pub", public, 0o644}} {
				out, err := os.OpenFile(filepath.Clean(f.name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, f.mode)
				if err != nil {
					return fmt.Errorf("write a key: %w", err)
				}
				_, err = out.Write(f.data)
				if closeErr := out.Close(); err == nil {
					err = closeErr
				}
				if err != nil {
					return fmt.Errorf("write a key: %w", err)
				}
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s signs, %s.pub is to be trusted\n", args[0], args[0])
			return err
		},
	}
}
