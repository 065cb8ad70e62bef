package app

import (
	"cmp"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"onerec/filters"
	"onerec/ingest"
	"onerec/internal/config"
	"onerec/internal/stream"
	"onerec/recommender"
	"onerec/rewarder"
	"onerec/sessionizer"
	"onerec/snapshots"
	"onerec/trainer"
)

// users says which commands have the settings of a group, for people.
var users = map[string]string{
	GroupCommon: "every command that talks to brokers", GroupService: "every service", GroupMember: "every service but serve", GroupStage: "ingest, sessionize, filter",
	GroupModel: "train, reward, serve, checkpoints", GroupGap: "sessionize, replay", GroupLearn: "train, reward", GroupLog: "every service, and commands that log",
	GroupTopics: "topics create", GroupCheckpoints: "train, reward, serve, checkpoints, snapshot export and refresh", GroupIngest: "ingest", GroupSessionize: "sessionize",
	GroupHistory: "sessionize, serve", GroupFilter: "filter", GroupSnapshots: "snapshot and what reads snapshots", GroupFiles: "snapshot, snapshot compact", GroupSnapshot: "snapshot",
	GroupTrain: "train", GroupRows: "train, snapshot export", GroupBackfill: "train", GroupDamaged: "train, snapshot export", GroupReward: "reward", GroupServe: "serve",
	GroupSimulate: "replay, demo", GroupConsole: "console",
}

// WriteSettings writes the reference of settings in Markdown.
func WriteSettings(w io.Writer, set *config.Set) error {
	group := ""
	for _, s := range byGroup(set.Settings()) {
		if s.Group != group {
			if _, err := fmt.Fprintf(w, "\n## %s\n\nOf %s.\n\n| setting | values | default | meaning |\n|---|---|---|---|\n", s.Group, users[s.Group]); err != nil {
				return err
			}
			group = s.Group
		}
		values, def := s.Type, "`"+s.Default+"`"
		if s.Bounds != "" {
			values += ", " + s.Bounds
		}
		switch {
		case s.Default == "":
			def = ""
		case s.Name == "instance":
			def = "the host's name"
		}
		if _, err := fmt.Fprintf(w, "| `%s` | %s | %s | %s |\n", s.Name, values, def, strings.ReplaceAll(s.Doc, "|", "\\|")); err != nil {
			return err
		}
	}
	return nil
}

// byGroup puts settings of a group together, in the order in which the groups come.
func byGroup(settings []config.Setting) []config.Setting {
	order := make(map[string]int)
	for i, s := range settings {
		if _, ok := order[s.Group]; !ok {
			order[s.Group] = i
		}
	}
	slices.SortStableFunc(settings, func(a, b config.Setting) int { return cmp.Compare(order[a.Group], order[b.Group]) })
	return settings
}

// Metric describes a metric.
type Metric struct {
	Name, Help string
	Labels     []string
	Services   []string
}

// collected keeps what is registered.
type collected struct {
	prometheus.Registerer
	metrics []Metric
}

func (c *collected) Register(m prometheus.Collector) error {
	descs := make(chan *prometheus.Desc, 64)
	m.Describe(descs)
	close(descs)
	for d := range descs {
		// A description can't be asked for its parts, only printed.
		parts := description.FindStringSubmatch(d.String())
		if parts == nil {
			return fmt.Errorf("metric %s", d)
		}
		metric := Metric{Name: parts[1], Help: parts[2]}
		if parts[3] != "" {
			metric.Labels = strings.Split(parts[3], ",")
		}
		c.metrics = append(c.metrics, metric)
	}
	return nil
}

var description = regexp.MustCompile(`^Desc\{fqName: "([^"]*)", help: "(.*?)"(?:, unit: "[^"]*")?, constLabels: \{.*\}, variableLabels: \{(.*)\}\}$`)

func (c *collected) MustRegister(ms ...prometheus.Collector) {
	for _, m := range ms {
		if err := c.Register(m); err != nil {
			panic(err)
		}
	}
}

// Metrics describes the metrics of all services, by name.
func Metrics() []Metric {
	byName := make(map[string]*Metric)
	for _, s := range []struct {
		service  string
		register func(prometheus.Registerer)
	}{
		{groupIngest, func(r prometheus.Registerer) {
			stream.NewMetrics(r, groupIngest)
			kafkaMetrics(r).OnNewClient(new(kgo.Client))
			ingest.NewStage(ingest.NewValidator(Defaults().Bounds, nil), r)
		}},
		{groupSessionize, func(r prometheus.Registerer) {
			stream.NewMetrics(r, groupSessionize)
			kafkaMetrics(r).OnNewClient(new(kgo.Client))
			sessionizer.NewStage(Defaults().Sessions, 0, r)
		}},
		{groupFilter, func(r prometheus.Registerer) {
			stream.NewMetrics(r, groupFilter)
			kafkaMetrics(r).OnNewClient(new(kgo.Client))
			filters.NewStage(filters.DefaultRules(), r)
		}},
		{snapshots.Group, func(r prometheus.Registerer) { snapshots.NewMetrics(r) }},
		{trainer.Group, func(r prometheus.Registerer) { trainer.NewMetrics(r) }},
		{rewarder.Group, func(r prometheus.Registerer) { rewarder.NewMetrics(r) }},
		{"serve", func(r prometheus.Registerer) { recommender.NewMetrics(r) }},
	} {
		c := new(collected)
		s.register(c)
		for _, m := range c.metrics {
			if byName[m.Name] == nil {
				byName[m.Name] = &m
			}
			byName[m.Name].Services = append(byName[m.Name].Services, s.service)
		}
	}
	var out []Metric
	for _, m := range byName {
		out = append(out, *m)
	}
	slices.SortFunc(out, func(a, b Metric) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// WriteMetrics writes the reference of metrics in Markdown.
func WriteMetrics(w io.Writer) error {
	if _, err := fmt.Fprint(w, "| metric | labels | of | meaning |\n|---|---|---|---|\n"); err != nil {
		return err
	}
	for _, m := range Metrics() {
		labels := make([]string, len(m.Labels))
		for i, l := range m.Labels {
			labels[i] = "`" + l + "`"
		}
		if _, err := fmt.Fprintf(w, "| `%s` | %s | %s | %s |\n", m.Name, strings.Join(labels, ", "), strings.Join(m.Services, ", "), m.Help); err != nil {
			return err
		}
	}
	return nil
}
