package delta

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"time"
)

// Field is a column of a table, or of a struct in one.
type Field struct {
	Name     string            `json:"name"`
	Type     any               `json:"type"` // the name of a primitive type, or a structType or an arrayType
	Nullable bool              `json:"nullable"`
	Metadata map[string]string `json:"metadata"`
}

type structType struct {
	Type   string  `json:"type"`
	Fields []Field `json:"fields"`
}

type arrayType struct {
	Type         string `json:"type"`
	ElementType  any    `json:"elementType"`
	ContainsNull bool   `json:"containsNull"`
}

// SchemaOf returns the schema of rows of a Go struct as parquet-go writes them, and the columns that the paths
// of the files hold. A field's tag doc becomes its comment.
func SchemaOf(row reflect.Type, partitions ...Field) (string, error) {
	s, err := structOf(row)
	if err != nil {
		return "", err
	}
	s.Fields = append(s.Fields, partitions...)
	out, err := json.Marshal(s)
	return string(out), err
}

func structOf(t reflect.Type) (structType, error) {
	s := structType{Type: "struct", Fields: make([]Field, 0, t.NumField())}
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("parquet"), ",")
		typ, err := typeOf(f.Type)
		if err != nil {
			return s, fmt.Errorf("%s.%s: %w", t.Name(), f.Name, err)
		}
		metadata := map[string]string{}
		if doc := f.Tag.Get("doc"); doc != "" {
			metadata["comment"] = doc
		}
		s.Fields = append(s.Fields, Field{name, typ, true, metadata})
	}
	return s, nil
}

func typeOf(t reflect.Type) (any, error) {
	switch t.Kind() {
	case reflect.String:
		return "string", nil
	case reflect.Bool:
		return "boolean", nil
	case reflect.Int32:
		return "integer", nil
	case reflect.Int64:
		return "long", nil
	case reflect.Float32:
		return "float", nil
	case reflect.Float64:
		return "double", nil
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return "binary", nil
		}
		e, err := typeOf(t.Elem())
		return arrayType{"array", e, false}, err
	case reflect.Struct:
		if t == reflect.TypeFor[time.Time]() {
			return "timestamp", nil
		}
		return structOf(t)
	}
	return nil, fmt.Errorf("no column can be a %s", t)
}
