package check

import (
	"encoding/json"
	"os"
	"slices"
	"testing"
)

// free are the licences under which anything may be linked in.
var free = []string{"Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "BSD-Source-Code", "0BSD", "ISC", "Unlicense"}

// looked are modules whose licence a person has looked at, with what it is.
var looked = map[string]string{
	"github.com/golang/freetype": "FreeType License (BSD with credit) or GPL, at one's choice; by way of gonum/plot",
	"github.com/ajstarks/svgo":   "CC-BY-4.0; by way of gonum/plot",
}

// TestLicences holds the list of what is in the binary, which ONEREC_SBOM names (CycloneDX), against the licences that may be linked in.
func TestLicences(t *testing.T) {
	path := os.Getenv("ONEREC_SBOM")
	if path == "" {
		t.Skip("ONEREC_SBOM names no list of what is in the binary")
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var sbom struct {
		Components []struct {
			Name     string
			Version  string
			Evidence struct {
				Licenses []struct{ License struct{ ID string } }
			}
			Licenses []struct{ License struct{ ID string } }
		}
	}
	if err := json.Unmarshal(data, &sbom); err != nil {
		t.Fatal(err)
	}
	if len(sbom.Components) < 50 {
		t.Errorf("%s lists %d modules only", path, len(sbom.Components))
	}
	for _, c := range sbom.Components {
		if _, ok := looked[c.Name]; ok {
			continue
		}
		all := slices.Concat(c.Evidence.Licenses, c.Licenses)
		if len(all) == 0 {
			t.Errorf("%s %s has no licence that was recognised: look at it", c.Name, c.Version)
		}
		for _, l := range all {
			if !slices.Contains(free, l.License.ID) {
				t.Errorf("%s %s has licence %q: look whether it may be linked in", c.Name, c.Version, l.License.ID)
			}
		}
	}
}
