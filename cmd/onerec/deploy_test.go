package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"onerec/console"
	"onerec/filters"
	"onerec/internal/app"
)

const deploy = "../../deploy"

func readFile(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(deploy, name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestComposeCommands: every command line of the Compose file is one of ours, and every variable a setting.
func TestComposeCommands(t *testing.T) {
	var file struct {
		Services map[string]struct {
			Image       string
			Command     []string
			Environment map[string]string
		}
	}
	if err := yaml.Unmarshal(readFile(t, "compose.yaml"), &file); err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	for name, s := range file.Services {
		if !strings.Contains(s.Image, "onerec") {
			continue
		}
		checkCommand(t, name, s.Command, s.Environment)
		seen[s.Command[0]] = true
	}
	for _, cmd := range newCLI().services() {
		if !seen[cmd.Name()] {
			t.Errorf("the Compose file does not run %s", cmd.Name())
		}
	}
}

// TestChartCommands: the same of the Helm chart, as the tests of deploy/check keep it.
func TestChartCommands(t *testing.T) {
	var chart struct {
		Commands [][]string
		Settings string
	}
	if err := json.Unmarshal(readFile(t, "check/testdata/commands.json"), &chart); err != nil {
		t.Fatal(err)
	}
	for _, args := range chart.Commands {
		checkCommand(t, "the chart's "+args[0], args, nil)
	}
	if len(chart.Commands) != len(newCLI().services())+2 {
		t.Errorf("the chart runs %d commands", len(chart.Commands))
	}
	file := filepath.Join(t.TempDir(), "settings.yaml")
	if err := os.WriteFile(file, []byte(chart.Settings), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := newCLI().set.Load(file, nil); err != nil {
		t.Error(err)
	}
	var values struct{ Rules map[string]any }
	if err := yaml.Unmarshal(readFile(t, "helm/onerec/values.yaml"), &values); err != nil {
		t.Fatal(err)
	}
	rules, err := yaml.Marshal(values.Rules)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := filters.ParseRules(rules); err != nil {
		t.Errorf("the chart's rules: %v", err)
	}
}

// checkCommand takes a command line and variables up as the process would, without running it.
func checkCommand(t *testing.T, what string, args []string, variables map[string]string) {
	t.Helper()
	c := newCLI()
	cmd, rest, err := c.root().Find(args)
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	var environ []string
	for name, value := range variables {
		environ = append(environ, name+"="+value)
	}
	if err := cmd.ParseFlags(rest); err != nil {
		t.Errorf("%s: %v", what, err)
	} else if err := cmd.ValidateArgs(cmd.Flags().Args()); err != nil {
		t.Errorf("%s: %v", what, err)
	} else if err := c.set.Load("", environ); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	for _, target := range c.settings.Console.Targets {
		if _, err := console.ParseTarget(target); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if len(c.settings.Console.Targets) != 0 != (args[0] == "console") {
		t.Errorf("%s watches %v", what, c.settings.Console.Targets)
	}
}

// TestAlertsAndDashboards: they ask for metrics that there are, and every alert has its runbook.
func TestAlertsAndDashboards(t *testing.T) {
	metrics := make(map[string]bool)
	for _, m := range app.Metrics() {
		metrics[m.Name] = true
	}
	check := func(what, expression string) {
		t.Helper()
		names := regexp.MustCompile(`onerec_[a-z0-9_]+`).FindAllString(expression, -1)
		for _, name := range names {
			if base := regexp.MustCompile(`_(bucket|sum|count)$`).ReplaceAllString(name, ""); !metrics[name] && !metrics[base] {
				t.Errorf("%s asks for %s, which nobody has", what, name)
			}
		}
		if len(names) == 0 && !strings.Contains(expression, "up{") && !strings.Contains(expression, "process_") {
			t.Errorf("%s asks for nothing of ours: %s", what, expression)
		}
	}
	var rules struct {
		Groups []struct {
			Rules []struct {
				Alert, Expr         string
				Labels, Annotations map[string]string
			}
		}
	}
	if err := yaml.Unmarshal(readFile(t, "prometheus/alerts.yaml"), &rules); err != nil {
		t.Fatal(err)
	}
	runbooks, err := os.ReadFile("../../docs/runbooks.md")
	if err != nil {
		t.Fatal(err)
	}
	tests := string(readFile(t, "prometheus/alerts_test.yaml"))
	alerts := 0
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			alerts++
			check("alert "+r.Alert, r.Expr)
			if !strings.Contains(string(runbooks), "## "+r.Alert+"\n") || r.Annotations["runbook"] != "docs/runbooks.md#"+strings.ToLower(r.Alert) {
				t.Errorf("alert %s has no runbook", r.Alert)
			}
			if s := r.Labels["severity"]; s != "critical" && s != "warning" {
				t.Errorf("alert %s has severity %q", r.Alert, s)
			}
			if strings.Count(tests, "alertname: "+r.Alert+"\n") < 2 {
				t.Errorf("alert %s is not tested to fire and not to fire", r.Alert)
			}
		}
	}
	if sections := strings.Count(string(runbooks), "\n## "); sections != alerts || alerts == 0 {
		t.Errorf("%d alerts, %d runbooks", alerts, sections)
	}
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(readFile(t, "grafana/dashboards/onerec.json"), &board); err != nil {
		t.Fatal(err)
	}
	panels := 0
	for _, p := range board.Panels {
		for _, target := range p.Targets {
			panels++
			check("panel "+p.Title, target.Expr)
		}
	}
	if panels < 25 {
		t.Errorf("%d questions on the board", panels)
	}
}
