package app

import (
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"onerec/internal/config"
	"onerec/schemas"
)

// TestReference: every setting, metric and topic is documented: docs/settings.md and docs/metrics.md are what
// "onerec reference" prints, and docs/asyncapi.yaml names every topic.
func TestReference(t *testing.T) {
	set := new(config.Set)
	Defaults().Register(set)
	for name, write := range map[string]func(io.Writer) error{
		"settings": func(w io.Writer) error { return WriteSettings(w, set) },
		"metrics":  WriteMetrics,
	} {
		var want strings.Builder
		if err := write(&want); err != nil {
			t.Fatal(err)
		}
		doc, err := os.ReadFile(filepath.Join("..", "..", "docs", name+".md"))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(doc), want.String()) {
			t.Errorf("docs/%s.md does not hold what \"onerec reference %s\" prints", name, name)
		}
	}
	for _, s := range set.Settings() {
		if s.Doc == "" || users[s.Group] == "" {
			t.Errorf("setting %+v is of nobody, or means nothing", s)
		}
	}
	// By Prometheus' conventions: a counter ends in _total, a unit is a base unit.
	for _, m := range Metrics() {
		if !regexp.MustCompile(`^onerec_[a-z0-9_]+$`).MatchString(m.Name) || len(m.Help) < 10 || len(m.Services) == 0 {
			t.Errorf("metric %+v", m)
		}
		if regexp.MustCompile(`_(ms|millis|minutes|kb|mb|mib)(_|$)`).MatchString(m.Name) {
			t.Errorf("metric %s is not in a base unit", m.Name)
		}
	}
	if len(Metrics()) < 40 {
		t.Errorf("%d metrics", len(Metrics()))
	}
	asyncapi, err := os.ReadFile(filepath.Join("..", "..", "docs", "asyncapi.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, topic := range schemas.Topics() {
		if !strings.Contains(string(asyncapi), topic.Name) {
			t.Errorf("topic %s is not documented", topic.Name)
		}
	}
}
