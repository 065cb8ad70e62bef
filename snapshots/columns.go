package snapshots

import (
	"fmt"
	"io"
	"reflect"
	"strings"
	"time"
)

// Table describes a table.
type Table struct {
	Name    string   `json:"name"`
	Doc     string   `json:"doc"`
	Columns []Column `json:"columns"`
}

// Column says what a column holds.
type Column struct {
	Name    string `json:"name"` // with dots within lists
	Type    string `json:"type"`
	Unit    string `json:"unit,omitempty"`
	Doc     string `json:"doc"`
	Example string `json:"example,omitempty"`
}

// Tables describes the tables, with their columns in the order of the files.
func Tables() []Table {
	table := func(name string, row reflect.Type) Table {
		t := Table{name, description[name], columns(row, "")}
		for _, f := range partitions {
			if !layouts[name].byHour {
				break
			}
			t.Columns = append(t.Columns, Column{Name: f.Name, Type: f.Type.(string), Doc: f.Metadata["comment"]})
		}
		return t
	}
	return []Table{
		table(TableSessions, reflect.TypeFor[Session]()),
		table(TableDeadLetters, reflect.TypeFor[DeadLetter]()),
		table(TableItems, reflect.TypeFor[Item]()),
		table(TableCheckpoints, reflect.TypeFor[Checkpoint]()),
		table(TableTrainingSteps, reflect.TypeFor[TrainingStep]()),
	}
}

func columnName(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("parquet"), ",")
	return name
}

const timestamp = "timestamp, µs"

func columns(of reflect.Type, prefix string) (out []Column) {
	for i := range of.NumField() {
		f := of.Field(i)
		c := Column{Name: prefix + columnName(f), Unit: f.Tag.Get("unit"), Doc: f.Tag.Get("doc"), Example: f.Tag.Get("example")}
		t := f.Type
		list := t.Kind() == reflect.Slice && t.Elem().Kind() != reflect.Uint8
		if list {
			t = t.Elem()
		}
		switch {
		case t == reflect.TypeFor[time.Time]():
			c.Type = timestamp
		case t.Kind() == reflect.Struct:
			c.Type = "struct"
		case t.Kind() == reflect.Slice:
			c.Type = "binary"
		default:
			c.Type = t.Kind().String()
		}
		if list {
			c.Type = "list of " + c.Type
		}
		out = append(out, c)
		if t.Kind() == reflect.Struct && c.Type != timestamp {
			out = append(out, columns(t, c.Name+".")...)
		}
	}
	return out
}

// WriteColumns writes the tables' columns in Markdown.
func WriteColumns(w io.Writer) error {
	for i, t := range Tables() {
		if i > 0 {
			if _, err := fmt.Fprintln(w); err != nil {
				return err
			}
		}
		if _, err := fmt.Fprintf(w, "### `%s`\n\n%s.\n\n| column | type | unit | meaning | example |\n|---|---|---|---|---|\n", t.Name, t.Doc); err != nil {
			return err
		}
		for _, c := range t.Columns {
			example := ""
			if c.Example != "" {
				example = "`" + c.Example + "`"
			}
			if _, err := fmt.Fprintf(w, "| `%s` | %s | %s | %s | %s |\n", c.Name, c.Type, c.Unit, c.Doc, example); err != nil {
				return err
			}
		}
	}
	return nil
}
