// Package config reads settings: flags over environment over one YAML file over
// defaults, under the same names everywhere. The setting session-gap is the flag
// --session-gap, the variable ONEREC_SESSION_GAP and the key session-gap.
//
// Every setting has bounds; a value outside them, or a name that doesn't exist,
// is an error that says which setting, where the value came from, and what is
// allowed.
package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"gopkg.in/yaml.v3"
)

// EnvPrefix begins the name of every variable.
const EnvPrefix = "ONEREC_"

// Set is a set of settings bound to variables of the program.
type Set struct{ settings []*setting }

type setting struct {
	name, group, doc string
	typ              string
	bounds           string // for people; empty if every value of the type is allowed
	apply            func(string) error
	show             func() string
	def              string

	flag   *string // set on the command line
	source string  // where the value came from
}

// errBound says that a value is not allowed; the setting's bounds say what is.
var errBound = errors.New("out of bounds")

func (s *Set) add(group, name, doc, typ, bounds string, apply func(string) error, show func() string) {
	s.settings = append(s.settings, &setting{name: name, group: group, doc: doc, typ: typ, bounds: bounds, apply: apply, show: show, def: show(), source: "default"})
}

// Int adds an integer; *p is the default.
func (s *Set) Int(group, name string, p *int, lo, hi int, doc string) {
	s.add(group, name, doc, "int", fmt.Sprintf("%d to %d", lo, hi), func(text string) error {
		v, err := strconv.Atoi(text)
		if err != nil {
			return errors.New("not a whole number")
		}
		if v < lo || v > hi {
			return errBound
		}
		*p = v
		return nil
	}, func() string { return strconv.Itoa(*p) })
}

// Uint64 adds a seed or another number without bounds.
func (s *Set) Uint64(group, name string, p *uint64, doc string) {
	s.add(group, name, doc, "uint", "", func(text string) error {
		v, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return errors.New("not a whole number from 0")
		}
		*p = v
		return nil
	}, func() string { return strconv.FormatUint(*p, 10) })
}

// Float adds a number; *p is the default.
func (s *Set) Float(group, name string, p *float64, lo, hi float64, doc string) {
	s.add(group, name, doc, "float", fmt.Sprintf("%v to %v", lo, hi), func(text string) error {
		v, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return errors.New("not a number")
		}
		if !(v >= lo && v <= hi) {
			return errBound
		}
		*p = v
		return nil
	}, func() string { return strconv.FormatFloat(*p, 'g', -1, 64) })
}

// Duration adds a length of time; *p is the default.
func (s *Set) Duration(group, name string, p *time.Duration, lo, hi time.Duration, doc string) {
	s.add(group, name, doc, "duration", fmt.Sprintf("%v to %v", lo, hi), func(text string) error {
		v, err := time.ParseDuration(text)
		if err != nil {
			return errors.New("not a length of time such as 30m or 1h30m")
		}
		if v < lo || v > hi {
			return errBound
		}
		*p = v
		return nil
	}, func() string { return p.String() })
}

// Bool adds a yes or no.
func (s *Set) Bool(group, name string, p *bool, doc string) {
	s.add(group, name, doc, "bool", "", func(text string) error {
		v, err := strconv.ParseBool(text)
		if err != nil {
			return errors.New("not true or false")
		}
		*p = v
		return nil
	}, func() string { return strconv.FormatBool(*p) })
}

// String adds a text; with allowed values, it must be one of them.
func (s *Set) String(group, name string, p *string, doc string, allowed ...string) {
	s.add(group, name, doc, "string", strings.Join(allowed, ", "), func(text string) error {
		if len(allowed) > 0 && !slices.Contains(allowed, text) {
			return errBound
		}
		*p = text
		return nil
	}, func() string { return *p })
}

// Strings adds a list, separated by commas.
func (s *Set) Strings(group, name string, p *[]string, doc string) {
	s.add(group, name, doc, "list", "", func(text string) error {
		*p = nil
		for v := range strings.SplitSeq(text, ",") {
			if v = strings.TrimSpace(v); v != "" {
				*p = append(*p, v)
			}
		}
		return nil
	}, func() string { return strings.Join(*p, ",") })
}

// flagValue makes a setting a pflag.Value.
type flagValue struct{ *setting }

func (v flagValue) String() string { return v.def }
func (v flagValue) Type() string   { return v.typ }
func (v flagValue) Set(text string) error {
	if err := v.apply(text); err != nil {
		return v.explain(err)
	}
	v.flag = &text
	return nil
}

// IsBoolFlag lets a bool stand without a value.
func (v flagValue) IsBoolFlag() bool { return v.typ == "bool" }

func (s *setting) explain(err error) error {
	if errors.Is(err, errBound) {
		return fmt.Errorf("allowed is %s", s.bounds)
	}
	if s.bounds != "" {
		return fmt.Errorf("%w; allowed is %s", err, s.bounds)
	}
	return err
}

// Flags adds the settings of some groups to a flag set.
func (s *Set) Flags(fs *pflag.FlagSet, groups ...string) {
	for _, st := range s.settings {
		if slices.Contains(groups, st.group) {
			usage := st.doc
			if st.bounds != "" {
				usage += " (" + st.bounds + ")"
			}
			f := fs.VarPF(flagValue{st}, st.name, "", usage)
			if st.typ == "bool" {
				f.NoOptDefVal = "true"
			}
		}
	}
}

// Load applies the file, if path is not empty, then the environment (as
// os.Environ gives it), then the flags that were set.
func (s *Set) Load(path string, environ []string) error {
	byName := make(map[string]*setting, len(s.settings))
	for _, st := range s.settings {
		if err := st.apply(st.def); err != nil { // take back what flags set while they were parsed
			return fmt.Errorf("setting %s: default %q: %w", st.name, st.def, st.explain(err))
		}
		st.source = "default"
		byName[st.name] = st
	}
	if path != "" {
		data, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("read settings: %w", err)
		}
		if err := s.loadYAML(path, data, byName); err != nil {
			return err
		}
	}
	for _, kv := range environ {
		key, value, _ := strings.Cut(kv, "=")
		rest, ok := strings.CutPrefix(key, EnvPrefix)
		if !ok {
			continue
		}
		st := byName[strings.ToLower(strings.ReplaceAll(rest, "_", "-"))]
		if st == nil {
			if known := reserved(key); known {
				continue
			}
			return fmt.Errorf("environment variable %s: there is no setting %s; \"onerec config\" lists them", key, strings.ToLower(strings.ReplaceAll(rest, "_", "-")))
		}
		if err := st.set(value, "environment variable "+key); err != nil {
			return err
		}
	}
	for _, st := range s.settings {
		if st.flag != nil {
			if err := st.set(*st.flag, "flag --"+st.name); err != nil {
				return err
			}
		}
	}
	return nil
}

// reserved variables belong to the tests of this project, not to its settings.
func reserved(key string) bool {
	return key == EnvPrefix+"CONFIG" || strings.HasPrefix(key, EnvPrefix+"KAFKA_") || strings.HasPrefix(key, EnvPrefix+"TEST_")
}

func (s *setting) set(text, source string) error {
	if err := s.apply(text); err != nil {
		return fmt.Errorf("%s: %s is %q, %w", source, s.name, text, s.explain(err))
	}
	s.source = source
	return nil
}

func (s *Set) loadYAML(path string, data []byte, byName map[string]*setting) error {
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return fmt.Errorf("read settings from %s: %w", path, err)
	}
	if len(doc.Content) == 0 {
		return nil // empty, or comments only
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return fmt.Errorf("read settings from %s: line %d: expected lines of \"setting: value\"", path, root.Line)
	}
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		where := fmt.Sprintf("%s line %d", path, key.Line)
		st := byName[key.Value]
		if st == nil {
			return fmt.Errorf("%s: there is no setting %s; \"onerec config\" lists them", where, key.Value)
		}
		text := value.Value
		switch {
		case value.Kind == yaml.SequenceNode && st.typ == "list":
			var list []string
			for _, v := range value.Content {
				list = append(list, v.Value)
			}
			text = strings.Join(list, ",")
		case value.Kind != yaml.ScalarNode:
			return fmt.Errorf("%s: %s must be one value", where, key.Value)
		}
		if err := st.set(text, where); err != nil {
			return err
		}
	}
	return nil
}

// IsDefault reports whether nobody set a setting.
func (s *Set) IsDefault(name string) bool {
	return slices.ContainsFunc(s.settings, func(st *setting) bool { return st.name == name && st.source == "default" })
}

// Write prints the effective settings as a YAML file with comments, which Load
// reads back.
func (s *Set) Write(w io.Writer) error {
	first := make(map[string]int) // groups in the order in which they came up
	for i, st := range s.settings {
		if _, ok := first[st.group]; !ok {
			first[st.group] = i
		}
	}
	settings := slices.Clone(s.settings)
	slices.SortStableFunc(settings, func(a, b *setting) int { return first[a.group] - first[b.group] })
	group := ""
	for _, st := range settings {
		if st.group != group {
			group = st.group
			if _, err := fmt.Fprintf(w, "\n# ---- %s ----\n", group); err != nil {
				return err
			}
		}
		comment := st.doc
		if st.bounds != "" {
			comment += " (" + st.bounds + ")"
		}
		if st.source != "default" {
			comment += "; default " + strconv.Quote(st.def) + ", from " + st.source
		}
		value, err := yaml.Marshal(st.show())
		if err != nil {
			return err
		}
		if st.typ != "string" && st.typ != "list" {
			value = []byte(st.show() + "\n")
		}
		if _, err := fmt.Fprintf(w, "\n# %s\n%s: %s", comment, st.name, value); err != nil {
			return err
		}
	}
	return nil
}

// Setting describes a setting.
type Setting struct {
	Name    string `json:"name"`
	Group   string `json:"group"`
	Type    string `json:"type"`
	Bounds  string `json:"bounds,omitempty"` // for people; empty if every value of the type is allowed
	Default string `json:"default"`
	Doc     string `json:"doc"`
}

// Settings describes the settings, in the order in which they were added.
func (s *Set) Settings() []Setting {
	out := make([]Setting, len(s.settings))
	for i, x := range s.settings {
		out[i] = Setting{x.name, x.group, x.typ, x.bounds, x.def, x.doc}
	}
	return out
}

// Variable returns the name of a setting's environment variable.
func Variable(name string) string {
	return EnvPrefix + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}
