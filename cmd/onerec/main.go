// Command onerec runs the pipeline: one subcommand a service, a demo of all of
// them, and tools to operate them. "onerec help" lists the commands.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"syscall"

	"github.com/spf13/cobra"

	"onerec/internal/app"
	"onerec/internal/config"
	"onerec/internal/progress"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := newCLI().root().ExecuteContext(ctx)
	stop() // a second signal ends the process at once
	if err != nil {
		fmt.Fprintln(os.Stderr, "onerec:", err)
		os.Exit(1)
	}
}

// cli holds what the commands share.
type cli struct {
	settings *app.Settings
	set      *config.Set
	file     string // --config
	json     bool   // --json
}

func newCLI() *cli {
	c := &cli{settings: app.Defaults(), set: new(config.Set)}
	c.settings.Register(c.set)
	return c
}

// root builds the tree of commands.
func (c *cli) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "onerec",
		Short: "A generative recommender that learns from a stream without end",
		Long: `onerec turns view events on Kafka into sessions, trains a decoder on the good
ones, aligns it with a reward model, publishes checkpoints and serves
recommendations from them.

Try it without anything installed:  onerec demo
Settings are flags, environment variables (ONEREC_SESSION_GAP for --session-gap)
and keys of one YAML file (--config), in this order of precedence;
"onerec config" prints them all.`,
		SilenceUsage: true, SilenceErrors: true, Args: cobra.NoArgs, RunE: help,
	}
	root.PersistentFlags().StringVar(&c.file, "config", os.Getenv(config.EnvPrefix+"CONFIG"), "YAML file of settings")
	root.AddGroup(&cobra.Group{ID: "services", Title: "Services:"}, &cobra.Group{ID: "tools", Title: "Tools:"})
	root.SetHelpCommandGroupID("tools")
	root.SetCompletionCommandGroupID("tools")
	root.AddCommand(c.services()...)
	root.AddCommand(c.demo(), c.replay(), c.simulate(), c.report(), c.topics(), c.dlq(), c.eval(), c.items(), c.semanticid(), c.checkpoints(), c.config(), c.reference(), c.version())
	return root
}

// help is what a command does that only has subcommands.
func help(cmd *cobra.Command, _ []string) error { return cmd.Help() }

// command makes a subcommand whose flags are the settings of some groups. run gets
// an app with the effective settings.
func (c *cli) command(cmd *cobra.Command, groups []string, run func(cmd *cobra.Command, a *app.App, args []string) error) *cobra.Command {
	cmd.Flags().SortFlags = false
	c.set.Flags(cmd.Flags(), groups...)
	if cmd.Args == nil {
		cmd.Args = cobra.NoArgs
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := c.set.Load(c.file, os.Environ()); err != nil {
			return err
		}
		a := app.New(c.settings, os.Stderr, nil)
		if slices.Contains(groups, app.GroupCommon) {
			if err := a.Open(cmd.Context()); err != nil {
				return err
			}
		}
		return run(cmd, a, args)
	}
	return cmd
}

// services are the subcommands that run until they are told to stop.
func (c *cli) services() []*cobra.Command {
	service := func(use, short, long string, groups []string, run func(ctx context.Context, a *app.App) error) *cobra.Command {
		return c.command(&cobra.Command{Use: use, Short: short, Long: long + `

On SIGTERM or SIGINT the service finishes what it has begun, leaves its consumer
group and exits with 0.`, GroupID: "services"}, append([]string{app.GroupCommon, app.GroupLog, app.GroupService}, groups...), func(cmd *cobra.Command, a *app.App, _ []string) error {
			return run(cmd.Context(), a)
		})
	}
	var once bool
	withOnce := func(cmd *cobra.Command, doc string) *cobra.Command {
		cmd.Flags().BoolVar(&once, "once", false, doc)
		return cmd
	}
	showProgress := func(a *app.App) {
		if once {
			a.Progress = progress.New(os.Stderr)
		}
	}
	reward := withOnce(service("reward", "Align the decoder: reward model, DPO rounds", "Learns a reward model from sessions.judged, aligns the newest checkpoint by DPO, and releases what passes the gates.",
		[]string{app.GroupMember, app.GroupModel, app.GroupCheckpoints, app.GroupReward, app.GroupLearn}, func(ctx context.Context, a *app.App) error {
			showProgress(a)
			report, err := a.RunReward(ctx, once)
			if err != nil || !once || report == nil {
				return err
			}
			return c.printRounds(os.Stdout, report)
		}), "make --rounds rounds and end")
	reward.Flags().BoolVar(&c.json, "json", false, "print the rounds of --once as JSON")
	var explain string
	var limit int
	filter := service("filter", "Judge sessions", "Turns sessions into sessions.judged and, if every rule is met, sessions.good. A change of the --rules file takes effect without a restart.",
		[]string{app.GroupMember, app.GroupStage, app.GroupFilter}, func(ctx context.Context, a *app.App) error { return a.RunFilter(ctx) })
	judge := filter.RunE
	filter.RunE = func(cmd *cobra.Command, args []string) error {
		if explain == "" {
			return judge(cmd, args)
		}
		if err := c.set.Load(c.file, os.Environ()); err != nil {
			return err
		}
		c.settings.RulesFile = explain
		a := app.New(c.settings, os.Stderr, nil)
		if err := a.Open(cmd.Context()); err != nil {
			return err
		}
		return c.explain(cmd, a, limit)
	}
	filter.Flags().StringVar(&explain, "explain", "", "try this file of rules on the sessions that are there, without judging any, and end")
	filter.Flags().IntVar(&limit, "limit", 20, "sessions that --explain shows")
	filter.Flags().BoolVar(&c.json, "json", false, "print what --explain finds as JSON")
	snapshot := withOnce(service("snapshot", "Write sessions and dead letters as Parquet tables", "Writes sessions.judged and views.dlq as Delta Lake tables of Parquet files, each record exactly once,\nto a folder or a bucket.",
		[]string{app.GroupMember, app.GroupSnapshots, app.GroupFiles, app.GroupSnapshot}, func(ctx context.Context, a *app.App) error { return a.RunSnapshot(ctx, once) }), "end when what there is now is written")
	snapshot.AddCommand(c.snapshotTools()...)
	return []*cobra.Command{
		service("ingest", "Validate raw view events", "Turns views.raw into views; what breaks a rule goes to views.dlq with the reason.",
			[]string{app.GroupMember, app.GroupStage, app.GroupIngest}, func(ctx context.Context, a *app.App) error { return a.RunIngest(ctx) }),
		service("sessionize", "Cut views into sessions", "Turns views into sessions by gaps in event time, each with the user's history as of its start.",
			[]string{app.GroupMember, app.GroupStage, app.GroupGap, app.GroupSessionize, app.GroupHistory}, func(ctx context.Context, a *app.App) error { return a.RunSessionize(ctx) }),
		filter,
		snapshot,
		withOnce(service("train", "Train the decoder on good sessions", "Learns from sessions.good for ever and publishes candidates.",
			[]string{app.GroupMember, app.GroupModel, app.GroupCheckpoints, app.GroupTrain, app.GroupRows, app.GroupBackfill, app.GroupDamaged, app.GroupLearn}, func(ctx context.Context, a *app.App) error {
				showProgress(a)
				return a.RunTrain(ctx, once)
			}), "end, with a candidate, when what there is now is learned"),
		reward,
		service("serve", "Answer with recommendations", "Serves recommendations over HTTP from the newest released checkpoint.",
			[]string{app.GroupModel, app.GroupCheckpoints, app.GroupServe, app.GroupHistory}, func(ctx context.Context, a *app.App) error { return a.RunServe(ctx) }),
		service("console", "Show it all in the browser", "Serves one live page: flow, sessions, training, rounds, checkpoints, users, items, dead letters; and, for who may,\nrelease, rollback and replay. It keeps nothing: everything is read from brokers, checkpoints and services.",
			[]string{app.GroupModel, app.GroupCheckpoints, app.GroupConsole}, func(ctx context.Context, a *app.App) error { return a.RunConsole(ctx) }),
	}
}

// reference prints what docs/settings.md and docs/metrics.md hold.
func (c *cli) reference() *cobra.Command {
	cmd := &cobra.Command{Use: "reference", Short: "Print the reference of settings or metrics", GroupID: "tools", Args: cobra.NoArgs, RunE: help}
	for _, of := range []struct {
		name, short string
		list        func() any
		write       func(io.Writer) error
	}{
		{"settings", "Print what every setting means, as Markdown", func() any { return c.set.Settings() }, func(w io.Writer) error { return app.WriteSettings(w, c.set) }},
		{"metrics", "Print what every metric means, as Markdown", func() any { return app.Metrics() }, app.WriteMetrics},
	} {
		sub := &cobra.Command{Use: of.name, Short: of.short, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			if c.json {
				return printJSON(cmd.OutOrStdout(), of.list())
			}
			return of.write(cmd.OutOrStdout())
		}}
		sub.Flags().BoolVar(&c.json, "json", false, "print JSON")
		cmd.AddCommand(sub)
	}
	return cmd
}

func (c *cli) config() *cobra.Command {
	groups := []string{app.GroupCommon, app.GroupLog, app.GroupService, app.GroupMember, app.GroupStage, app.GroupModel, app.GroupGap, app.GroupLearn, app.GroupTopics, app.GroupCheckpoints, app.GroupIngest, app.GroupSessionize, app.GroupHistory, app.GroupFilter, app.GroupSnapshots, app.GroupFiles, app.GroupSnapshot, app.GroupTrain, app.GroupRows, app.GroupBackfill, app.GroupDamaged, app.GroupReward, app.GroupServe, app.GroupConsole, app.GroupSimulate}
	return c.command(&cobra.Command{
		Use: "config", Short: "Print the effective settings", GroupID: "tools",
		Long: "Prints all settings as a YAML file with comments, which --config reads back.",
	}, groups, func(cmd *cobra.Command, _ *app.App, _ []string) error { return c.set.Write(cmd.OutOrStdout()) })
}

func (c *cli) version() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", GroupID: "tools", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			info, ok := debug.ReadBuildInfo()
			if !ok {
				return fmt.Errorf("this binary says nothing of its build")
			}
			revision, dirty := "unknown", ""
			for _, s := range info.Settings {
				switch {
				case s.Key == "vcs.revision":
					revision = s.Value
				case s.Key == "vcs.modified" && s.Value == "true":
					dirty = ", with changes"
				}
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "onerec %s (commit %s%s, %s)\n", info.Main.Version, revision, dirty, info.GoVersion)
			return err
		},
	}
}
