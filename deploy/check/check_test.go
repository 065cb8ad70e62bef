// Package check holds what is deployed against the tools that will read it: the chart against Helm and Kubernetes' types, the
// Compose file against Compose's loader. It is a module of its own, so that onerec does not depend on any of them.
package check

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/cli"
	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/lint"
	"helm.sh/helm/v3/pkg/lint/support"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"
)

const chartDir = "../helm/onerec"

// secrets are what a chart needs at least.
var secrets = map[string]any{"httpTokens": "http", "serveTokens": "serve", "consoleTokens": "console"}

// everything turns on what is off by default.
var everything = map[string]any{
	"secrets":    map[string]any{"environment": "env", "kafka": "kafka", "httpTokens": "http", "serveTokens": "serve", "consoleTokens": "console", "signKey": "sign", "trustKeys": "trust"},
	"monitoring": map[string]any{"serviceMonitor": true, "rules": true, "labels": map[string]any{"release": "prometheus"}},
	"services": map[string]any{
		"filter": map[string]any{"autoscaling": map[string]any{"enabled": true}, "args": []any{"--commit-interval=1s"}},
		"ingest": map[string]any{"autoscaling": map[string]any{"enabled": true}},
	},
	"imagePullSecrets": []any{map[string]any{"name": "registry"}}, "podAnnotations": map[string]any{"a": "b"}, "podLabels": map[string]any{"team": "video"},
	"nodeSelector": map[string]any{"kubernetes.io/arch": "arm64"}, "tolerations": []any{map[string]any{"key": "x", "operator": "Exists"}}, "priorityClassName": "high",
}

func load(t *testing.T) *chart.Chart {
	t.Helper()
	c, err := loader.Load(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func render(c *chart.Chart, values map[string]any) (map[string]string, error) {
	caps := chartutil.DefaultCapabilities.Copy()
	v, err := chartutil.ToRenderValues(c, values, chartutil.ReleaseOptions{Name: "video", Namespace: "rec", Revision: 3, IsInstall: true}, caps)
	if err != nil {
		return nil, err
	}
	return engine.Render(c, v)
}

// objects decodes what was rendered, strictly: a field that Kubernetes does not know is an error.
func objects(t *testing.T, rendered map[string]string) (out []map[string]any) {
	t.Helper()
	// Custom resources, whose types are their operators'.
	custom := []string{"ServiceMonitor", "PrometheusRule", "ScaledObject"}
	for name, text := range rendered {
		if !strings.HasSuffix(name, ".yaml") {
			continue
		}
		for doc := range strings.SplitSeq("\n"+text, "\n---") {
			var o map[string]any
			if err := yaml.UnmarshalStrict([]byte(doc), &o); err != nil {
				t.Fatalf("%s: %v\n%s", name, err, doc)
			}
			if len(o) == 0 {
				continue
			}
			out = append(out, o)
			kind, _ := o["kind"].(string)
			if slices.Contains(custom, kind) {
				continue
			}
			version, err := schema.ParseGroupVersion(fmt.Sprint(o["apiVersion"]))
			if err != nil {
				t.Fatal(err)
			}
			typed, err := scheme.Scheme.New(version.WithKind(kind))
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			data, err := json.Marshal(o)
			if err != nil {
				t.Fatal(err)
			}
			dec := json.NewDecoder(bytes.NewReader(data))
			dec.DisallowUnknownFields()
			if err := dec.Decode(typed); err != nil && !errors.Is(err, io.EOF) {
				t.Errorf("%s: %s %v: %v", name, kind, o["metadata"], err)
			}
		}
	}
	return out
}

func TestChart(t *testing.T) {
	c := load(t)
	for name, values := range map[string]map[string]any{"least": {"secrets": secrets}, "everything": everything} {
		for _, m := range lint.AllWithKubeVersion(chartDir, values, "rec", &chartutil.DefaultCapabilities.KubeVersion).Messages {
			if m.Severity > support.InfoSev {
				t.Errorf("%s: lint: %s", name, m)
			}
		}
		rendered, err := render(c, values)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		kinds := make(map[string]int)
		names := make(map[string]bool)
		for _, o := range objects(t, rendered) {
			kind := o["kind"].(string)
			kinds[kind]++
			meta := o["metadata"].(map[string]any)
			id := kind + " " + meta["name"].(string)
			if names[id] || len(meta["name"].(string)) > 63 {
				t.Errorf("%s: %s is there twice, or too long", name, id)
			}
			names[id] = true
			if spec, ok := podOf(o); ok {
				checkPod(t, name+": "+id, spec)
				if secrets := fmt.Sprint(spec["volumes"]); strings.Contains(id, "ingest") && (strings.Contains(secrets, "serve") || strings.Contains(secrets, "sign")) {
					t.Errorf("%s has others' secrets: %s", id, secrets)
				}
			}
		}
		want := map[string]int{"Deployment": 8, "Service": 10, "PodDisruptionBudget": 8, "NetworkPolicy": 8, "ConfigMap": 1, "Job": 1, "CronJob": 1, "ServiceAccount": 1}
		if name == "everything" {
			want["ServiceMonitor"], want["PrometheusRule"], want["ScaledObject"] = 1, 1, 2
		}
		if fmt.Sprint(kinds) != fmt.Sprint(want) {
			t.Errorf("%s: rendered %v, want %v", name, kinds, want)
		}
	}
}

// podOf returns the pod's specification of what makes pods.
func podOf(o map[string]any) (map[string]any, bool) {
	spec, _ := o["spec"].(map[string]any)
	if job, ok := spec["jobTemplate"].(map[string]any); ok {
		spec, _ = job["spec"].(map[string]any)
	}
	template, ok := spec["template"].(map[string]any)
	if !ok {
		return nil, false
	}
	pod, ok := template["spec"].(map[string]any)
	return pod, ok
}

// checkPod: no pod runs as root, writes to its image, or has more rights than it needs.
func checkPod(t *testing.T, what string, pod map[string]any) {
	t.Helper()
	text, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"runAsNonRoot":true`, `"readOnlyRootFilesystem":true`, `"allowPrivilegeEscalation":false`, `"drop":["ALL"]`, `"automountServiceAccountToken":false`, `"seccompProfile":{"type":"RuntimeDefault"}`, `"limits":{`, `"requests":{`} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%s lacks %s", what, want)
		}
	}
	// What is mounted is there.
	volumes := make(map[string]bool)
	for _, v := range pod["volumes"].([]any) {
		volumes[v.(map[string]any)["name"].(string)] = true
	}
	for _, c := range pod["containers"].([]any) {
		container := c.(map[string]any)
		for _, m := range container["volumeMounts"].([]any) {
			if name := m.(map[string]any)["name"].(string); !volumes[name] {
				t.Errorf("%s mounts %s, which is not there", what, name)
			}
		}
		for _, path := range regexp.MustCompile(`/etc/onerec/(\w+)/`).FindAllStringSubmatch(fmt.Sprint(container["args"], container["env"]), -1) {
			if !volumes[path[1]] {
				t.Errorf("%s reads %s, which is not mounted", what, path[0])
			}
		}
	}
}

// TestChartRefuses: what can't work is refused, with a reason.
func TestChartRefuses(t *testing.T) {
	c := load(t)
	with := func(more map[string]any) map[string]any {
		out := map[string]any{"secrets": secrets}
		for k, v := range more {
			out[k] = v
		}
		return out
	}
	for _, bad := range []struct {
		values map[string]any
		want   string
	}{
		{map[string]any{}, "secrets."},
		{with(map[string]any{"settings": map[string]any{"Session_Gap": "1m"}}), "Session_Gap"},
		{with(map[string]any{"colour": "red"}), "colour"},
		{with(map[string]any{"services": map[string]any{"serve": map[string]any{"port": 0}}}), "port"},
		{with(map[string]any{"services": map[string]any{"sarve": map[string]any{}}}), "sarve"},
	} {
		if _, err := render(c, bad.values); err == nil || !strings.Contains(err.Error(), bad.want) {
			t.Errorf("%v: %v", bad.values, err)
		}
	}
}

// TestCommands prints every command line of the chart, for the test of onerec that takes them up.
func TestCommands(t *testing.T) {
	rendered, err := render(load(t), everything)
	if err != nil {
		t.Fatal(err)
	}
	commands := [][]string{}
	var config string
	for _, o := range objects(t, rendered) {
		if o["kind"] == "ConfigMap" {
			config = o["data"].(map[string]any)["settings.yaml"].(string)
		}
		pod, ok := podOf(o)
		if !ok {
			continue
		}
		var args []string
		for _, a := range pod["containers"].([]any)[0].(map[string]any)["args"].([]any) {
			args = append(args, a.(string))
		}
		commands = append(commands, args)
	}
	slices.SortFunc(commands, slices.Compare)
	got, err := json.MarshalIndent(map[string]any{"commands": commands, "settings": config}, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/commands.json"
	if os.Getenv("ONEREC_UPDATE") != "" {
		if err := os.WriteFile(golden, append(got, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil || !bytes.Equal(bytes.TrimSpace(want), got) {
		t.Errorf("%s is not what the chart runs; ONEREC_UPDATE=1 go test writes it anew: %v\n%s", golden, err, got)
	}
}

func TestCompose(t *testing.T) {
	o, err := cli.NewProjectOptions([]string{"../compose.yaml"}, cli.WithName("onerec"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := o.LoadProject(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range p.Services {
		for dep := range s.DependsOn {
			if _, err := p.GetService(dep); err != nil {
				t.Errorf("%s waits for %s: %v", s.Name, dep, err)
			}
		}
		for _, port := range s.Ports {
			if port.HostIP != "127.0.0.1" {
				t.Errorf("%s is open to others on port %s", s.Name, port.Published)
			}
		}
		for _, secret := range s.Secrets {
			if _, err := os.Stat(p.Secrets[secret.Source].File); err != nil {
				t.Errorf("%s: %v", s.Name, err)
			}
		}
	}
	if len(p.Services) < 15 {
		t.Errorf("%d services", len(p.Services))
	}
}
