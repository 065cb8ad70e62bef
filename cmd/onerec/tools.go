package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"onerec/internal/app"
	"onerec/internal/progress"
	"onerec/rewarder"
	"onerec/schemas"
)

func (c *cli) demo() *cobra.Command {
	d := app.Demo{}
	cmd := c.command(&cobra.Command{
		Use: "demo", Short: "Run the whole pipeline once, in this process", GroupID: "tools",
		Long: `Runs every service in this process on an embedded broker, over one input, from
views to recommendations, and prints what came of it. Nothing needs to be
installed. Without --views the input comes from the simulator.

--views reads KuaiRand's logs (comma or tab separated) and JSON lines of
ViewEvents, gzipped or not. Everything is kept under --dir: the broker's log, the
checkpoints, Parquet snapshots of the sessions, and report.json.

The console is open in the browser while the demo runs and, with --keep, until it is
interrupted: all services go on, and so do the simulator's users, who watch what the
recommender shows them.

What only matters to a stream without end has no effect before --keep goes on:
idle-timeout, bootstrap-sessions, publish-steps, publish-every, reward-every; and listen.`,
		Example: "  onerec demo\n  onerec demo --keep\n  onerec demo --views views.tsv.gz --dir demo-kuairand --rounds 2",
	}, []string{app.GroupLog, app.GroupModel, app.GroupIngest, app.GroupGap, app.GroupSessionize, app.GroupHistory, app.GroupFilter, app.GroupTrain, app.GroupRows, app.GroupLearn, app.GroupReward, app.GroupServe, app.GroupSimulate}, func(cmd *cobra.Command, a *app.App, _ []string) error {
		if c.set.IsDefault("log-level") { // the progress says enough
			c.settings.LogLevel = "warn"
			a = app.New(c.settings, os.Stderr, nil)
		}
		a.Progress = progress.New(os.Stderr)
		if d.Dir == "" {
			d.Dir = "demo-" + time.Now().Format("20060102-150405")
		}
		a.Partitions = 2
		d.Report = func(report *app.Report) error {
			if c.json {
				return printJSON(os.Stdout, report)
			}
			return report.Print(os.Stdout)
		}
		_, err := a.RunDemo(cmd.Context(), d, os.Stderr)
		return err
	})
	cmd.Flags().StringVar(&d.Views, "views", "", "file of views; empty: the simulator")
	cmd.Flags().StringVar(&d.Dir, "dir", "", "new or empty folder for everything; empty: demo-<date>-<time>")
	cmd.Flags().IntVar(&d.Users, "users", 5, "users whose recommendations are shown")
	cmd.Flags().StringVar(&d.Console, "console", "127.0.0.1:0", "address of the console while the demo runs, on loopback; port 0: any; empty: none")
	cmd.Flags().BoolVar(&d.Keep, "keep", false, "go on after the report, with all services, the console and the simulator's users, until interrupted")
	cmd.Flags().Float64Var(&d.Rate, "rate", 25, "views a second of the simulator's users with --keep; 0: none")
	cmd.Flags().BoolVar(&c.json, "json", false, "print the report as JSON")
	return cmd
}

func (c *cli) replay() *cobra.Command {
	var finish bool
	r := app.Recommender{Days: 1, List: 5, Patience: 30 * time.Second}
	tokenFile, rate := "", 0.0
	cmd := c.command(&cobra.Command{
		Use: "replay [FILE]", Short: "Play a file of views into views.raw", GroupID: "tools", Args: cobra.MaximumNArgs(1),
		Long: `Plays views into views.raw in the order of event time, as fast as the broker
takes them or, with --rate, so many a second. Without FILE they come from the simulator. FILE is one of KuaiRand's
logs or JSON lines of ViewEvents, gzipped or not.

With --recommender the simulator's users live on for some days after that log, and
watch what a running "onerec serve" shows them: their views carry its recommendation_id
and checkpoint_version.`,
		Example: "  onerec replay views.tsv.gz --finish\n  onerec replay --finish && onerec replay --recommender http://127.0.0.1:8080 --serve-days 2 --finish",
	}, []string{app.GroupCommon, app.GroupLog, app.GroupGap, app.GroupSimulate}, func(cmd *cobra.Command, a *app.App, args []string) error {
		a.Progress = progress.New(os.Stderr)
		path := ""
		if len(args) > 0 {
			path = args[0]
		}
		var served *app.Recommender
		if r.URL != "" {
			if path != "" {
				return fmt.Errorf("--recommender serves the simulator's users, and FILE has its own; leave out one of them")
			}
			if r.Days < 1 || r.List < 1 || r.List > 100 {
				return fmt.Errorf("--serve-days must be at least 1, --list 1 to 100")
			}
			if tokenFile != "" {
				token, err := os.ReadFile(tokenFile)
				if err != nil {
					return fmt.Errorf("--token-file: %w", err)
				}
				r.Token = strings.TrimSpace(string(token))
			}
			served = &r
		}
		line, err := a.RunReplay(cmd.Context(), path, served, rate, finish)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), line)
		return err
	})
	f := cmd.Flags()
	f.StringVar(&r.URL, "recommender", "", "address of the recommender that serves the simulator's users, like http://127.0.0.1:8080")
	f.StringVar(&tokenFile, "token-file", "", "file with the bearer token that the recommender asks for")
	f.IntVar(&r.Days, "serve-days", r.Days, "days that the recommender serves, after the log's --sim-days")
	f.IntVar(&r.List, "list", r.List, "items that the recommender is asked for at a time")
	f.DurationVar(&r.Patience, "patience", r.Patience, "how long the recommender may be away or too busy, as while it starts over, before the replay ends with an error")
	f.Float64Var(&rate, "rate", 0, "views a second; 0: as fast as the broker takes them")
	f.BoolVar(&finish, "finish", false, "say that nothing older follows, so that the sessions of the input close; waits for ingest")
	return cmd
}

func (c *cli) topics() *cobra.Command {
	parent := &cobra.Command{Use: "topics", Short: "List, create and check the topics", GroupID: "tools", Args: cobra.NoArgs, RunE: help}
	list := c.command(&cobra.Command{Use: "list", Short: "Print the contract of every topic"}, nil, func(cmd *cobra.Command, a *app.App, _ []string) error {
		return c.printTopics(cmd.OutOrStdout(), a.Contract())
	})
	list.Flags().BoolVar(&c.json, "json", false, "print JSON")
	create := c.command(&cobra.Command{Use: "create", Short: "Create the topics that do not exist yet"}, []string{app.GroupCommon, app.GroupLog, app.GroupTopics}, func(cmd *cobra.Command, a *app.App, _ []string) error {
		created, err := a.CreateTopics(cmd.Context())
		for _, t := range created {
			fmt.Fprintln(cmd.OutOrStdout(), "created", t)
		}
		if err == nil && len(created) == 0 {
			fmt.Fprintln(cmd.OutOrStdout(), "all topics exist")
		}
		return err
	})
	check := c.command(&cobra.Command{Use: "check", Short: "Compare the cluster's topics with the contract"}, []string{app.GroupCommon, app.GroupLog}, func(cmd *cobra.Command, a *app.App, _ []string) error {
		differences, err := a.CheckTopics(cmd.Context())
		if err != nil {
			return err
		}
		for _, d := range differences {
			fmt.Fprintln(cmd.OutOrStdout(), d)
		}
		if len(differences) > 0 {
			return fmt.Errorf("%d differences from the contract", len(differences))
		}
		fmt.Fprintln(cmd.OutOrStdout(), "the topics are as the contract says")
		return nil
	})
	asyncapi := &cobra.Command{Use: "asyncapi", Short: "Print the contract as an AsyncAPI 3 document", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		doc, err := schemas.AsyncAPI()
		if err != nil {
			return err
		}
		_, err = cmd.OutOrStdout().Write(doc)
		return err
	}}
	parent.AddCommand(list, create, check, asyncapi)
	return parent
}

func (c *cli) printTopics(w io.Writer, topics []app.TopicInfo) error {
	if c.json {
		return printJSON(w, topics)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "TOPIC\tMESSAGE\tKEY\tRETENTION\tPRODUCERS\tCONSUMERS")
	for _, i := range topics {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", i.Name, i.Message, i.Key, i.Retention, strings.Join(i.Producers, " "), strings.Join(i.Consumers, " "))
	}
	return t.Flush()
}

func (c *cli) printRounds(w io.Writer, r *rewarder.Report) error {
	if c.json {
		return printJSON(w, r)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	q := r.Quality
	fmt.Fprintf(t, "reward model\t%d sessions\tlike AUC %.3f, completion AUC %.3f, watch time Spearman %.3f on held-out users\n", q.Sessions, q.LikeAUC, q.CompletionAUC, q.WatchTimeSpearman)
	for _, round := range r.Rounds {
		verdict := "rejected"
		if round.Accepted {
			verdict = "released as " + round.Published
		}
		fmt.Fprintf(t, "round %d\t%s\t%s\n", round.Round, verdict, round.Why)
	}
	return t.Flush()
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
