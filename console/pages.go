package console

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"math"
	"mime"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"onerec/recommender"
)

//go:embed templates/*.html
var templates embed.FS

//go:embed assets
var assets embed.FS

// pages are the templates and what they need from the browser's side.
type pages struct {
	*template.Template
	assets map[string]asset
	base   string // where assets are: their hash is in it, so that browsers may keep them for ever
}

type asset struct {
	contentType string
	plain, zip  []byte
}

// scripts are joined into one, in this order. htmx begins as soon as the browser has run it, so that what extends it must
// not come later by way of the network.
var scripts = []string{"htmx.min.js", "hx-sse.min.js", "uPlot.iife.min.js", "console.js"}

const bundle = "bundle.js"

func newPages() (*pages, error) {
	p := &pages{assets: make(map[string]asset)}
	hash := sha256.New()
	keep := func(name string, data []byte) error {
		hash.Write(data)
		var b bytes.Buffer
		z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
		if err != nil {
			return err
		}
		_, err = z.Write(data)
		if err := errors.Join(err, z.Close()); err != nil {
			return err
		}
		p.assets[name] = asset{mime.TypeByExtension(path.Ext(name)), data, b.Bytes()}
		return nil
	}
	err := fs.WalkDir(assets, "assets", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := assets.ReadFile(name)
		if err != nil || slices.Contains(scripts, path.Base(name)) {
			return err
		}
		return keep(path.Base(name), data)
	})
	if err != nil {
		return nil, err
	}
	var all bytes.Buffer
	for _, name := range scripts {
		data, err := assets.ReadFile("assets/" + name)
		if err != nil {
			return nil, err
		}
		all.Write(data)
		all.WriteString("\n;\n")
	}
	if err := keep(bundle, all.Bytes()); err != nil {
		return nil, err
	}
	p.base = "/assets/" + hex.EncodeToString(hash.Sum(nil))[:16] + "/"
	p.Template, err = template.New("").Funcs(template.FuncMap{
		"asset": func(name string) string { return p.base + name },
		"num":   num, "grouped": groupedAny, "fixed": fixed, "pct": pct, "percent": percent, "bytes": sizeOf, "secs": secs, "ago": ago, "clock": clock, "codes": codes, "date": date, "ms": ms,
		"sub": func(a, b int) int { return a - b }, "add": func(a, b int) int { return a + b },
		"words": func(s string) string { return strings.ReplaceAll(s, "_", " ") },
		"known": func(v float64) bool { return !math.IsNaN(v) },
		"common": func(n recommender.Neighbour) []uint16 {
			return n.SemanticID[:min(len(n.SemanticID), max(0, n.CommonCodes))]
		},
		"rest": func(n recommender.Neighbour) []uint16 {
			return n.SemanticID[min(len(n.SemanticID), max(0, n.CommonCodes)):]
		},
	}).ParseFS(templates, "templates/*.html")
	return p, err
}

// serveAsset serves what is embedded.
func (p *pages) serveAsset(w http.ResponseWriter, r *http.Request) {
	a, ok := p.assets[r.PathValue("name")]
	if !ok || !strings.HasPrefix(r.URL.Path, p.base) {
		http.NotFound(w, r)
		return
	}
	h := w.Header()
	h.Set("Content-Type", a.contentType)
	h.Set("Cache-Control", "public, max-age=31536000, immutable")
	h.Set("Vary", "Accept-Encoding")
	body := a.plain
	if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		h.Set("Content-Encoding", "gzip")
		body = a.zip
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body) // the browser has gone if this fails
}

// page is what every page has.
type page struct {
	Model   string
	Title   string
	Role    role
	SignIn  bool   // there are tokens
	Message string // what was done just now
	Now     time.Time
	*live
	User userView
	Item itemView
	Data any // of pages that are not the first
}

// live is everything that changes by itself.
type live struct {
	State    state
	Overall  overall
	Flow     []stageState
	Sessions sessionsView
	Training trainingView
	Rounds   roundsView
	Versions versionsView
	Letters  lettersView
	Rates    chart
}

// overall says how the whole is.
type overall struct {
	Health health
	Text   string
}

func (c *Console) live() *live {
	st := c.watch.now.get()
	l := &live{State: st, Flow: st.Stages, Sessions: c.sessions.view(), Rounds: c.rounds.view(1, 0), Versions: c.versions.view(1), Letters: c.letters.view(1, ""), Training: c.versions.training(st.Ends)}
	l.Rates = chart{Time: true, Y: "records a second", X: make([]float64, len(st.Rates.At))}
	for i, at := range st.Rates.At {
		l.Rates.X[i] = float64(at)
	}
	for _, s := range flow {
		if r, ok := st.Rates.Rates[s.name]; ok {
			l.Rates.Series = append(l.Rates.Series, series{Label: s.name, Values: r})
		}
	}
	var bad []string
	running := 0
	l.Overall.Health = healthy
	for _, s := range st.Stages {
		switch s.Health {
		case healthy:
			running++
		case down:
			l.Overall.Health = down
			bad = append(bad, s.name+" is down")
		case troubled:
			if l.Overall.Health == healthy {
				l.Overall.Health = troubled
			}
			bad = append(bad, s.name+" has trouble")
			running++
		}
	}
	switch {
	case st.At.IsZero():
		l.Overall = overall{unseen, "looking"}
	case st.Err != "":
		l.Overall = overall{down, "the brokers do not answer"}
	case len(bad) > 0:
		l.Overall.Text = strings.Join(bad, ", ")
	case running == 0:
		l.Overall = overall{unseen, "nothing runs yet"}
	default:
		l.Overall.Text = fmt.Sprintf("%d of %d services run", running, len(st.Stages))
	}
	return l
}

// liveParts are the elements of the page that are pushed: ids, and templates of the same name.
var liveParts = []string{"status", "flow", "sessions", "training", "rounds", "checkpoints", "letters"}

// parts renders what is pushed.
func (c *Console) parts() (map[string][]byte, error) {
	p := &page{live: c.live(), Now: time.Now(), Model: c.Model}
	out := make(map[string][]byte, len(liveParts))
	for _, name := range liveParts {
		var b bytes.Buffer
		if err := c.pages.ExecuteTemplate(&b, name, p); err != nil {
			return nil, err
		}
		out[name] = b.Bytes()
	}
	return out, nil
}

// paging is what links between pages need.
type paging struct {
	Base        string
	Page, Pages int
}

// Paging is for the template of links; base is the address before page=.
func (v roundsView) Paging(base string) paging { return paging{base, v.Page, v.Pages} }

// Paging is for the template of links.
func (v versionsView) Paging(base string) paging { return paging{base, v.Page, v.Pages} }

// Paging is for the template of links; they stay with the reason.
func (v lettersView) Paging(base string) paging {
	if v.Reason != "" {
		base += "reason=" + url.QueryEscape(v.Reason) + "&"
	}
	return paging{base, v.Page, v.Pages}
}

// num rounds a number to three digits: 1234567 is 1.23 M. What is not known is a dash.
func num(v float64) string {
	a := math.Abs(v)
	switch {
	case math.IsNaN(v) || math.IsInf(v, 0):
		return "–"
	case a == 0:
		return "0"
	case a >= 999.5e6:
		return digits(v/1e9) + " G"
	case a >= 999.5e3:
		return digits(v/1e6) + " M"
	case a >= 9999.5:
		return digits(v/1e3) + " k"
	case a >= 999.5:
		return strconv.FormatFloat(math.Round(v), 'f', 0, 64)
	case a < 0.001:
		return strconv.FormatFloat(v, 'g', 2, 64)
	}
	return digits(v)
}

// digits writes three of them.
func digits(v float64) string {
	a := math.Abs(v)
	n := 2
	switch {
	case a >= 99.95:
		n = 0
	case a >= 9.995:
		n = 1
	case a < 0.0995:
		n = 4
	case a < 0.995:
		n = 3
	}
	s := strconv.FormatFloat(v, 'f', n, 64)
	if strings.Contains(s, ".") {
		s = strings.TrimRight(strings.TrimRight(s, "0"), ".")
	}
	return s
}

// grouped writes a whole number with its thousands apart.
func grouped[T int | int32 | int64](n T) string {
	s := strconv.FormatInt(int64(n), 10)
	sign := ""
	if s[0] == '-' {
		sign, s = "-", s[1:]
	}
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "\u202f" + s[i:]
	}
	return sign + s
}

// groupedAny is grouped for templates.
func groupedAny(n any) (string, error) {
	switch n := n.(type) {
	case int:
		return grouped(n), nil
	case int32:
		return grouped(n), nil
	case int64:
		return grouped(n), nil
	}
	return "", fmt.Errorf("%T is no whole number", n)
}

// fixed writes n decimals.
func fixed(n int, v float64) string {
	if math.IsNaN(v) {
		return "–"
	}
	return strconv.FormatFloat(v, 'f', n, 64)
}

// pct is a share of a whole.
func pct(part, whole int64) string {
	if whole == 0 {
		return "–"
	}
	return fmt.Sprintf("%.1f %%", 100*float64(part)/float64(whole))
}

// percent is the length of a bar.
func percent(part, whole int64) int {
	if whole == 0 {
		return 0
	}
	return int(math.Round(100 * float64(part) / float64(whole)))
}

func sizeOf(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
}

// secs is a length of time.
func secs(s float64) string {
	switch {
	case math.IsNaN(s):
		return "–"
	case s < 0.001:
		return fmt.Sprintf("%.0f µs", s*1e6)
	case s < 1:
		return fmt.Sprintf("%.0f ms", s*1e3)
	case s < 120:
		return fmt.Sprintf("%.1f s", s)
	case s < 7200:
		return fmt.Sprintf("%.0f min", s/60)
	case s < 48*3600:
		return fmt.Sprintf("%.0f h", s/3600)
	}
	return fmt.Sprintf("%.0f days", s/86400)
}

func ms(n int64) string { return secs(float64(n) / 1000) }

// ago is how long before now a time was, rounded so that it seldom changes.
func ago(now, t time.Time) string {
	d := now.Sub(t)
	switch {
	case t.IsZero():
		return "–"
	case d < time.Minute:
		return "less than a minute ago"
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h ago", int(d.Hours()))
	}
	return fmt.Sprintf("%d days ago", int(d.Hours()/24))
}

func clock(t time.Time) string { return t.Format("15:04:05") }

func date(ms int64) string { return time.UnixMilli(ms).UTC().Format("2006-01-02 15:04:05") }

// codes writes a semantic ID as its path.
func codes(id []uint16) string {
	var parts []string
	for _, c := range id {
		parts = append(parts, strconv.Itoa(int(c)))
	}
	return strings.Join(parts, " › ")
}
