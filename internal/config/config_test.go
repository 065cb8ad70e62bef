package config

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

type values struct {
	gap     time.Duration
	views   int
	ratio   float64
	name    string
	brokers []string
	on      bool
	seed    uint64
}

func newSet() (*values, *Set) {
	v := &values{gap: 30 * time.Minute, views: 5, ratio: 0.5, name: "tiny", brokers: []string{"a:1"}, seed: 1}
	s := new(Set)
	s.Duration("session", "session-gap", &v.gap, time.Second, 24*time.Hour, "the gap")
	s.Int("session", "min-views", &v.views, 1, 100, "views")
	s.Float("train", "ratio", &v.ratio, 0, 1, "a ratio")
	s.String("train", "preset", &v.name, "a size", "tiny", "small")
	s.Strings("common", "brokers", &v.brokers, "brokers")
	s.Bool("common", "on", &v.on, "a switch")
	s.Uint64("common", "seed", &v.seed, "a seed")
	return v, s
}

func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "onerec.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestPrecedence(t *testing.T) {
	v, s := newSet()
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	s.Flags(fs, "session", "train", "common")
	if err := fs.Parse([]string{"--session-gap", "5m", "--on"}); err != nil {
		t.Fatal(err)
	}
	path := file(t, "session-gap: 10m\nmin-views: 7\nratio: 0.25\nbrokers: [b:1, c:2]\n")
	if err := s.Load(path, []string{"ONEREC_SESSION_GAP=20m", "ONEREC_MIN_VIEWS=9", "HOME=/", "ONEREC_KAFKA_BROKERS=x"}); err != nil {
		t.Fatal(err)
	}
	if v.gap != 5*time.Minute || v.views != 9 || v.ratio != 0.25 || v.name != "tiny" || strings.Join(v.brokers, " ") != "b:1 c:2" || !v.on {
		t.Fatalf("%+v: want the flag's gap, the environment's views, the file's ratio and brokers, the default name", v)
	}
}

func TestErrorsNameSettingValueAndBound(t *testing.T) {
	tests := []struct {
		name, yaml string
		env        []string
		args       []string
		want       []string
	}{
		{"unknown key", "sesion-gap: 1m\n", nil, nil, []string{"line 1", "sesion-gap"}},
		{"unknown variable", "", []string{"ONEREC_SESION_GAP=1m"}, nil, []string{"ONEREC_SESION_GAP"}},
		{"out of bounds in the file", "\nmin-views: 0\n", nil, nil, []string{"line 2", "min-views", `"0"`, "1 to 100"}},
		{"out of bounds in the environment", "", []string{"ONEREC_SESSION_GAP=1ms"}, nil, []string{"ONEREC_SESSION_GAP", `"1ms"`, "1s to 24h0m0s"}},
		{"no number", "ratio: much\n", nil, nil, []string{"ratio", `"much"`, "not a number", "0 to 1"}},
		{"NaN", "ratio: NaN\n", nil, nil, []string{"ratio", "NaN", "0 to 1"}},
		{"not one of", "preset: huge\n", nil, nil, []string{"preset", `"huge"`, "tiny, small"}},
		{"a list where one is wanted", "preset: [tiny]\n", nil, nil, []string{"preset", "one value"}},
		{"no mapping", "- a\n", nil, nil, []string{"line 1", "setting: value"}},
		{"flag", "", nil, []string{"--min-views", "1000"}, []string{"min-views", "1000", "1 to 100"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, s := newSet()
			fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
			s.Flags(fs, "session", "train", "common")
			err := fs.Parse(tt.args)
			if err == nil {
				err = s.Load(file(t, tt.yaml), tt.env)
			}
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
		})
	}
}

func TestWriteReadsBack(t *testing.T) {
	v, s := newSet()
	if err := s.Load(file(t, "session-gap: 90s\npreset: small\nbrokers: 'x:1,y:2'\non: true\n"), nil); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := s.Write(&b); err != nil {
		t.Fatal(err)
	}
	again, s2 := newSet()
	if err := s2.Load(file(t, b.String()), nil); err != nil {
		t.Fatalf("%v\n%s", err, b.String())
	}
	if again.gap != v.gap || again.name != v.name || strings.Join(again.brokers, " ") != strings.Join(v.brokers, " ") || again.on != v.on || again.ratio != v.ratio {
		t.Fatalf("read back %+v, want %+v\n%s", again, v, b.String())
	}
}
