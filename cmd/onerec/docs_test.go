package main

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// documents returns the README and the pages of docs.
func documents(t *testing.T) map[string]string {
	t.Helper()
	out := make(map[string]string)
	for _, pattern := range []string{"../../*.md", "../../docs/*.md", "../../docs/decisions/*.md", "../../deploy/*/README.md", "../../deploy/helm/onerec/templates/NOTES.txt"} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			out[strings.TrimPrefix(name, "../../")] = string(data)
		}
	}
	return out
}

var (
	block  = regexp.MustCompile("(?ms)^```(?:sh|console)\n(.*?)^```$")
	inline = regexp.MustCompile("`(onerec [^`\n]+)`")
	ours   = regexp.MustCompile(`^(?:\$ )?(?:go run \./cmd/onerec|\./onerec|onerec) (.+)$`)
)

// commands returns the command lines of onerec in a document: those in blocks, and those within the text.
func commands(text string) (out []string) {
	add := func(line string) {
		line, _, _ = strings.Cut(line, "#")
		for _, part := range regexp.MustCompile(`&&|\||;| & |&$| > |\$\(`).Split(strings.TrimSpace(line), -1) {
			if m := ours.FindStringSubmatch(strings.TrimSpace(part)); m != nil {
				out = append(out, m[1])
			}
		}
	}
	for _, m := range block.FindAllStringSubmatch(text, -1) {
		for line := range strings.Lines(strings.ReplaceAll(m[1], "\\\n", " ")) {
			add(line)
		}
	}
	for _, m := range inline.FindAllStringSubmatch(text, -1) {
		add(m[1])
	}
	return out
}

// words splits a command line as a shell does, as far as the documents go.
func words(line string) (out []string) {
	for _, m := range regexp.MustCompile(`(?:[^\s"']|"[^"]*"|'[^']*')+`).FindAllString(line, -1) {
		out = append(out, strings.NewReplacer(`"`, "", "'", "").Replace(m))
	}
	return out
}

// TestDocumentedCommands: every command line of onerec in the documents is one that there is, with flags that there are.
func TestDocumentedCommands(t *testing.T) {
	seen := make(map[string]bool)
	n := 0
	for name, text := range documents(t) {
		for _, line := range commands(text) {
			n++
			// Several commands or arguments in one: "dlq list|replay".
			args := words(line)
			for i, a := range args {
				if first, _, ok := strings.Cut(a, "|"); ok && !strings.HasPrefix(a, "-") {
					args[i] = first
				}
			}
			if args[0] == "help" || args[0] == "--help" {
				continue
			}
			c := newCLI()
			cmd, rest, err := c.root().Find(args)
			if err != nil || cmd == cmd.Root() {
				t.Errorf("%s: onerec %s: no such command (%v)", name, line, err)
				continue
			}
			seen[cmd.CommandPath()] = true
			if err := cmd.ParseFlags(rest); err != nil && !strings.Contains(err.Error(), "needs an argument: "+args[len(args)-1]) { // a text may name a flag alone
				t.Errorf("%s: onerec %s: %v", name, line, err)
			}
			if cmd.HasSubCommands() && !cmd.Runnable() {
				continue
			}
			if rest := cmd.Flags().Args(); len(rest) > 0 && cmd.HasSubCommands() {
				if sub, _, err := cmd.Find(rest); err != nil || sub == cmd {
					t.Errorf("%s: onerec %s: no such subcommand", name, line)
				}
			}
		}
	}
	if n < 50 || len(seen) < 25 {
		t.Errorf("only %d command lines of %d commands were found", n, len(seen))
	}
	for _, cmd := range newCLI().root().Commands() {
		if path := cmd.CommandPath(); !slices.ContainsFunc(slices.Collect(maps.Keys(seen)), func(s string) bool { return s == path || strings.HasPrefix(s, path+" ") }) && !slices.Contains([]string{"version", "completion", "help"}, cmd.Name()) {
			t.Errorf("%s is in no document", path)
		}
	}
}

// TestDocumentedFiles: links between documents lead somewhere.
func TestDocumentedFiles(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#\s]+)(#[^)\s]*)?\)`)
	for _, pattern := range []string{"../../*.md", "../../docs/*.md", "../../docs/decisions/*.md"} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range link.FindAllStringSubmatch(string(data), -1) {
				if strings.Contains(m[1], "://") {
					continue
				}
				if _, err := os.Stat(filepath.Join(filepath.Dir(name), m[1])); err != nil {
					t.Errorf("%s links to %s, which is not there", name, m[1])
				}
			}
		}
	}
}
