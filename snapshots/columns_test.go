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
	schemas := map[string]*parquet.Schema{
		TableSessions: parquet.SchemaOf(Session{}), TableDeadLetters: parquet.SchemaOf(DeadLetter{}),
		TableItems: parquet.SchemaOf(Item{}), TableCheckpoints: parquet.SchemaOf(Checkpoint{}), TableTrainingSteps: parquet.SchemaOf(TrainingStep{}),
	}
	for _, table := range Tables() {
		named := make(map[string]bool)
		for _, c := range table.Columns {
			named[c.Name] = true
			if c.Doc == "" || c.Type == "" || c.Example == "" && !strings.HasPrefix(c.Type, "list of struct") && c.Name != "date" && c.Name != "hour" {
				t.Errorf("%s: %+v", table.Name, c)
			}
		}
		if table.Doc == "" || schemas[table.Name] == nil {
			t.Fatalf("table %q", table.Name)
		}
		for _, path := range schemas[table.Name].Columns() {
			if name := strings.ReplaceAll(strings.Join(path, "."), ".list.element", ""); !named[name] {
				t.Errorf("column %s of %s is not described", name, table.Name)
			}
		}
	}
	var text strings.Builder
	if err := WriteColumns(&text); err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile(filepath.Join("..", "docs", "snapshots.md"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(doc), text.String()) {
		t.Errorf("docs/snapshots.md does not hold what \"onerec snapshot columns\" prints:\n%s", text.String())
	}
}
