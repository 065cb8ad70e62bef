package snapshots

import (
	"fmt"
	"io"
	"reflect"
	"strings"
	"time"
)

// Column says what a column of the files holds.
type Column struct {
	Name    string `json:"name"` // with dots within lists
	Type    string `json:"type"`
	Unit    string `json:"unit,omitempty"`
	Doc     string `json:"doc"`
	Example string `json:"example,omitempty"`
}

// Columns returns the columns of sessions in the order of the files.
func Columns() []Column { return columns(reflect.TypeFor[Session](), "") }

func columns(of reflect.Type, prefix string) (out []Column) {
	for i := range of.NumField() {
		f := of.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("parquet"), ",")
		c := Column{Name: prefix + name, Unit: f.Tag.Get("unit"), Doc: f.Tag.Get("doc"), Example: f.Tag.Get("example")}
		t := f.Type
		list := t.Kind() == reflect.Slice
		if list {
			t = t.Elem()
		}
		switch {
		case t == reflect.TypeFor[time.Time]():
			c.Type = "timestamp, ms"
		case t.Kind() == reflect.Struct:
			c.Type = "struct"
		default:
			c.Type = t.Kind().String()
		}
		if list {
			c.Type = "list of " + c.Type
		}
		out = append(out, c)
		if t.Kind() == reflect.Struct && c.Type != "timestamp, ms" {
			out = append(out, columns(t, c.Name+".")...)
		}
	}
	return out
}

// WriteColumns writes the columns as a table in Markdown.
func WriteColumns(w io.Writer) error {
	if _, err := fmt.Fprint(w, "| column | type | unit | meaning | example |\n|---|---|---|---|---|\n"); err != nil {
		return err
	}
	for _, c := range Columns() {
		example := ""
		if c.Example != "" {
			example = "`" + c.Example + "`"
		}
		if _, err := fmt.Fprintf(w, "| `%s` | %s | %s | %s | %s |\n", c.Name, c.Type, c.Unit, c.Doc, example); err != nil {
			return err
		}
	}
	return nil
}
