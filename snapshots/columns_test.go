package snapshots

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/parquet-go/parquet-go"
)

// TestColumns: every column of the files is described, and docs/snapshots.md says what the code says.
func TestColumns(t *testing.T) {
	named := make(map[string]bool)
	for _, c := range Columns() {
		named[c.Name] = true
		if c.Doc == "" || c.Type == "" || c.Example == "" && !strings.HasPrefix(c.Type, "list of struct") {
			t.Errorf("%+v", c)
		}
	}
	for _, path := range parquet.SchemaOf(Session{}).Columns() {
		name := strings.NewReplacer(".list.element", "").Replace(strings.Join(path, "."))
		if !named[name] {
			t.Errorf("column %s is not described", name)
		}
	}
	var table strings.Builder
	if err := WriteColumns(&table); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join("..", "docs", "snapshots.md"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), table.String()) {
		t.Errorf("docs/snapshots.md does not hold the table of \"onerec snapshot columns\":\n%s", table.String())
	}
}
