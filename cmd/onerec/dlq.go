package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"onerec/filters"
	"onerec/ingest"
	"onerec/internal/app"
	"onerec/schemas"
)

// letter is a dead letter as --json prints it.
type letter struct {
	Partition int32             `json:"partition"`
	Offset    int64             `json:"offset"`
	Reason    string            `json:"reason"`
	Error     string            `json:"error"`
	Time      string            `json:"time"`
	Producer  string            `json:"producer,omitempty"`
	From      string            `json:"from"` // topic/partition/offset
	Key       string            `json:"key"`
	Headers   map[string]string `json:"headers,omitempty"`
	Value     []byte            `json:"value"` // base64
}

func newLetter(d ingest.DeadLetter) letter {
	l := letter{
		Partition: d.Partition, Offset: d.Offset, Reason: d.Reason, Error: d.Err, Time: d.Time, Producer: d.Producer,
		From: strings.Join([]string{d.FromTopic, d.FromPartition, d.FromOffset}, "/"), Key: string(d.Key), Value: d.Value,
	}
	for _, h := range d.Headers {
		if l.Headers == nil {
			l.Headers = make(map[string]string)
		}
		l.Headers[h.Key] = string(h.Value)
	}
	return l
}

func (c *cli) dlq() *cobra.Command {
	groups := []string{app.GroupCommon, app.GroupLog}
	parent := &cobra.Command{Use: "dlq", Short: "List, show and replay dead letters", GroupID: "tools", Args: cobra.NoArgs, RunE: help}
	var reason string
	var limit int
	list := c.command(&cobra.Command{
		Use: "list", Short: "List what ingest refused, and count it by reason",
		Long: "Lists the newest dead letters and how many there are for each reason. PARTITION and OFFSET name one for \"onerec dlq show\" and \"onerec dlq replay\".",
	}, groups, func(cmd *cobra.Command, a *app.App, _ []string) error {
		counts, newest := make(map[string]int), []letter{}
		err := a.DeadLetters(cmd.Context(), reason, func(d ingest.DeadLetter) error {
			counts[d.Reason]++
			newest = append(newest, newLetter(d))
			if len(newest) > 2*limit { // the topic has no bound, the list has
				slices.SortStableFunc(newest, byTime)
				newest = newest[len(newest)-limit:]
			}
			return nil
		})
		if err != nil {
			return err
		}
		slices.SortStableFunc(newest, byTime)
		newest = newest[max(0, len(newest)-limit):]
		if c.json {
			return printJSON(cmd.OutOrStdout(), map[string]any{"by_reason": counts, "newest": newest})
		}
		t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "PARTITION\tOFFSET\tTIME\tREASON\tERROR\tFROM")
		for _, l := range newest {
			fmt.Fprintf(t, "%d\t%d\t%s\t%s\t%.80s\t%s\n", l.Partition, l.Offset, l.Time, l.Reason, l.Error, l.From)
		}
		fmt.Fprintln(t)
		for _, r := range slices.Sorted(maps.Keys(counts)) {
			fmt.Fprintf(t, "%s\t%d\n", r, counts[r])
		}
		return t.Flush()
	})
	list.Flags().BoolVar(&c.json, "json", false, "print JSON")
	list.Flags().IntVar(&limit, "limit", 20, "dead letters listed at most, the newest")
	show := c.command(&cobra.Command{Use: "show PARTITION OFFSET", Short: "Print one dead letter", Args: cobra.ExactArgs(2)}, groups, func(cmd *cobra.Command, a *app.App, args []string) error {
		partition, offset, err := place(args)
		if err != nil {
			return err
		}
		d, err := a.DeadLetter(cmd.Context(), partition, offset)
		if err != nil {
			return err
		}
		l := newLetter(d)
		if c.json {
			return printJSON(cmd.OutOrStdout(), l)
		}
		t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
		fmt.Fprintf(t, "reason\t%s\nerror\t%s\ntime\t%s\nfrom\t%s\nkey\t%q\n", l.Reason, l.Error, l.Time, l.From, l.Key)
		for _, k := range slices.Sorted(maps.Keys(l.Headers)) {
			fmt.Fprintf(t, "header %s\t%s\n", k, l.Headers[k])
		}
		if v, err := schemas.DecodeViewEvent(l.Headers[schemas.HeaderContentType], d.Value); err == nil {
			fmt.Fprintf(t, "event\t%v\n", v)
		} else if utf8.Valid(d.Value) {
			fmt.Fprintf(t, "value\t%s\n", d.Value)
		} else {
			fmt.Fprintf(t, "value\t%d bytes: %x\n", len(d.Value), d.Value)
		}
		return t.Flush()
	})
	show.Flags().BoolVar(&c.json, "json", false, "print JSON")
	replay := c.command(&cobra.Command{
		Use: "replay [PARTITION OFFSET]", Short: "Send dead letters to views.raw again", Args: cobra.MaximumNArgs(2),
		Long: `Sends one dead letter, or all those with --reason, to views.raw again: key, value
and headers as they were. Use it after the rule, the bound or the producer was
mended. The dead letters stay where they are until their retention ends; one that
is sent twice is a duplicate by its event id.`,
	}, groups, func(cmd *cobra.Command, a *app.App, args []string) error {
		if len(args) == 1 || (len(args) == 0) == (reason == "") {
			return errors.New("name a PARTITION and OFFSET, or a --reason")
		}
		partition, offset := int32(0), int64(0)
		if len(args) == 2 {
			var err error
			if partition, offset, err = place(args); err != nil {
				return err
			}
		}
		n, err := a.Replay(cmd.Context(), reason, partition, offset)
		fmt.Fprintf(cmd.OutOrStdout(), "%d dead letters sent to %s\n", n, schemas.TopicViewsRaw)
		return err
	})
	for _, cmd := range []*cobra.Command{list, replay} {
		cmd.Flags().StringVar(&reason, "reason", "", "only those that this rule refused")
	}
	parent.AddCommand(list, show, replay)
	return parent
}

func byTime(a, b letter) int { return strings.Compare(a.Time, b.Time) }

// place reads PARTITION OFFSET.
func place(args []string) (partition int32, offset int64, err error) {
	p, err1 := strconv.ParseInt(args[0], 10, 32)
	offset, err2 := strconv.ParseInt(args[1], 10, 64)
	if err := errors.Join(err1, err2); err != nil {
		return 0, 0, fmt.Errorf("partition and offset must be whole numbers: %w", err)
	}
	return int32(p), offset, nil
}

// explain prints what a rules file would say of the sessions on the topic.
func (c *cli) explain(cmd *cobra.Command, a *app.App, limit int) error {
	total, good, failed := 0, 0, make(map[string]int)
	var shown []app.Explanation
	err := a.Explain(cmd.Context(), func(e app.Explanation) error {
		total++
		if e.Good {
			good++
		}
		for name, passed := range e.Passed {
			if !passed {
				failed[name]++
			}
		}
		if len(shown) < limit {
			shown = append(shown, e)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if c.json {
		return printJSON(cmd.OutOrStdout(), map[string]any{"sessions": total, "good": good, "failed_rules": failed, "first": shown})
	}
	t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "SESSION\tUSER\tVIEWS\tWATCH\tRATIO\tENGAGEMENT\t%s\tGOOD\n", strings.ToUpper(strings.Join(filters.RuleNames(), "\t")))
	for _, e := range shown {
		fmt.Fprintf(t, "%.12s\t%.20s\t%d\t%.1fs\t%.2f\t%g", e.SessionID, e.UserID, e.Views, float64(e.WatchMs)/1000, e.WatchRatio, e.Engagement)
		for _, name := range filters.RuleNames() {
			fmt.Fprintf(t, "\t%s", yesNo(e.Passed[name]))
		}
		fmt.Fprintf(t, "\t%s\n", yesNo(e.Good))
	}
	fmt.Fprintf(t, "\n%d sessions, %d good\n", total, good)
	for _, name := range filters.RuleNames() {
		fmt.Fprintf(t, "%d failed %s\n", failed[name], name)
	}
	return t.Flush()
}

func yesNo(ok bool) string {
	if ok {
		return "yes"
	}
	return "no"
}
