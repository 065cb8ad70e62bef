// Package archtest keeps the architecture: which package may import which.
package archtest

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// everything marks a package that wires others and may import all of them.
const everything = "*"

// small are packages that know nothing of the pipeline; every package but
// schemas may import them.
var small = []string{"internal/config", "internal/telemetry", "internal/progress"}

// allowed is the import table of docs/architecture.md. A package that is not in
// it fails the test: decide where it belongs.
var allowed = map[string][]string{
	"bench":        {everything},
	"cmd/onerec":   {everything},
	"internal/app": {everything},
	"integration":  {everything},

	"schemas":          {"schemas/onerecv1"},
	"schemas/onerecv1": {},

	"ingest":          {"schemas", "internal/stream"},
	"sessionizer":     {"schemas", "internal/stream", "internal/history", "internal/hugepages"},
	"filters":         {"schemas", "internal/stream"},
	"snapshots":       {"schemas", "internal/stream", "internal/buckets", "internal/faultybucket", "internal/cloudtest", "internal/limited", "snapshots/delta", "snapshots/shred"},
	"snapshots/delta": {"internal/buckets", "internal/faultybucket"},
	"snapshots/shred": {},
	"semanticid":      {"schemas", "internal/kernels", "internal/limited"},
	"decoder":         {"semanticid", "internal/kernels", "internal/ops", "internal/safetensors"},
	"trainer":         {"decoder", "semanticid", "schemas", "publisher", "snapshots", "internal/stream", "internal/holdout", "internal/kernels", "internal/ops", "internal/safetensors"},
	"rewarder":        {"decoder", "semanticid", "schemas", "publisher", "internal/stream", "internal/holdout", "internal/kernels", "internal/ops", "internal/safetensors", "internal/bootstrap"},
	"publisher":       {"schemas", "internal/stream", "internal/buckets", "internal/faultybucket"},
	"recommender":     {"decoder", "semanticid", "schemas", "publisher", "internal/stream", "internal/history", "internal/access"},
	"console":         {"schemas", "ingest", "publisher", "recommender", "internal/stream", "internal/access"},
	"simulator":       {"schemas"},

	"internal/stream":       {"schemas"},
	"internal/access":       {},
	"internal/buckets":      {"internal/faultybucket"},
	"internal/faultybucket": {},
	"internal/cloudtest":    {},
	"internal/history":      {"schemas"},
	"internal/replay":       {"schemas", "internal/stream"},
	"internal/nextitem":     {"decoder", "semanticid", "internal/kernels", "internal/ops", "internal/safetensors", "internal/bootstrap"},
	"internal/hugepages":    {},
	"internal/kernels":      {},
	"internal/ops":          {"internal/kernels"},
	"internal/safetensors":  {},
	"internal/holdout":      {},
	"internal/limited":      {},
	"internal/bootstrap":    {},
	"internal/gradcheck":    {"internal/safetensors"},
	"internal/registry":     {"schemas", "internal/stream"},
	"internal/config":       {},
	"internal/telemetry":    {"internal/access"},
	"internal/progress":     {},
	"internal/archtest":     {},
	"internal/kafkatest":    {},
	"internal/attribution":  {"snapshots", "internal/bootstrap"},
	"internal/fuzz":         {},
	"internal/closedloop":   {"ingest", "sessionizer", "filters", "trainer", "rewarder", "decoder", "semanticid", "schemas", "simulator", "internal/history", "internal/bootstrap"},
}

func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", "onerec/...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	dec := json.NewDecoder(strings.NewReader(string(out)))
	seen := 0
	for {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimPrefix(p.ImportPath, "onerec/")
		may, known := allowed[name]
		if !known {
			t.Errorf("package %s is not in the table of allowed imports", name)
			continue
		}
		seen++
		if slices.Contains(may, everything) {
			continue
		}
		for _, imp := range p.Imports {
			imp, ours := strings.CutPrefix(imp, "onerec/")
			if !ours || slices.Contains(may, imp) {
				continue
			}
			if imp == "schemas/onerecv1" && slices.Contains(may, "schemas") || name != "schemas" && slices.Contains(small, imp) {
				continue
			}
			t.Errorf("%s imports %s, which the table does not allow", name, imp)
		}
	}
	if seen < len(allowed)-1 { // archtest itself may be listed or not
		t.Errorf("only %d packages of %d in the table exist", seen, len(allowed))
	}
}
