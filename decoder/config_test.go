package decoder

import (
	"math"
	"strings"
	"testing"
)

// TestPresets: each can be made; and two experts of half the width compute as much for a token as one part.
func TestPresets(t *testing.T) {
	of := make(map[string]Config)
	for _, name := range Presets() {
		c, err := Preset(name, 3, 256, 50, 10)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := NewWeights(c, 1); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		of[name] = c
	}
	one, experts := of["small"], of["small"]
	experts.Hidden, experts.Experts, experts.Active = one.Hidden/2, 8, 2
	if a, b := one.FLOPs(1), experts.FLOPs(1); math.Abs(a-b) > 0.01*a || experts.count() < 2*one.count() {
		t.Errorf("experts take %.3g FLOP a token for %d weights, one part %.3g for %d", b, experts.count(), a, one.count())
	}
	if _, err := Preset("huge", 3, 256, 50, 10); err == nil || !strings.Contains(err.Error(), strings.Join(Presets(), ", ")) {
		t.Errorf("a size that is not there: %v", err)
	}
}

// TestConfigRefuses: what can't be a model is refused, with what would do.
func TestConfigRefuses(t *testing.T) {
	for says, change := range map[string]func(*Config){
		"0 layers":                     func(c *Config) { c.Layers = 0 },
		"multiple of twice":            func(c *Config) { c.Heads = 5 },
		"0 levels":                     func(c *Config) { c.Levels = 0 },
		"buckets of users":             func(c *Config) { c.Users = -1 },
		"rows of 3 tokens":             func(c *Config) { c.MaxLen = 3 },
		"0 active experts of 4":        func(c *Config) { c.Experts = 4 },
		"1 active experts of 4":        func(c *Config) { c.Experts, c.Active = 4, 1 },
		"5 active experts of 4":        func(c *Config) { c.Experts, c.Active = 4, 5 },
		"2 active experts of 0":        func(c *Config) { c.Active = 2 },
		"2 active experts of -1":       func(c *Config) { c.Experts, c.Active = -1, 2 },
		"2 active experts of 99999999": func(c *Config) { c.Experts, c.Active = 99999999, 2 },
	} {
		c := testConfig()
		change(&c)
		if _, err := NewWeights(c, 1); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%+v: %v, want %q", c, err, says)
		}
		if _, err := LoadWeights(c, nil); err == nil {
			t.Errorf("%+v was loaded", c)
		}
	}
}

// TestLoadExperts: weights of experts are loaded as they are, and not as those of another number.
func TestLoadExperts(t *testing.T) {
	c := testExperts()
	w := randomWeights(t, c, 1)
	got, err := LoadWeights(c, w.Tensors())
	if err != nil || got.Count() != w.Count() {
		t.Fatalf("%d weights, %v, want %d", got.Count(), err, w.Count())
	}
	for _, experts := range []int{0, 4, 6} {
		c.Experts, c.Active = experts, min(2, experts)
		if _, err := LoadWeights(c, w.Tensors()); err == nil {
			t.Errorf("weights of 5 experts are taken for %d", experts)
		}
	}
}
