package schemas

import (
	"fmt"
	"slices"
	"strings"
)

// Resources of a [Right].
const (
	ResourceTopic           = "topic"
	ResourceGroup           = "group"
	ResourceTransactionalID = "transactional-id" // a prefix
)

// Right is one thing that a service must be allowed to do on the cluster.
type Right struct {
	Service    string
	Resource   string // one of the Resource constants
	Name       string // literal, but for a transactional id a prefix
	Operations []string
	Why        string
}

// transactional names the services that write in transactions.
var transactional = []string{"ingest", "sessionize", "filter"}

// Services returns the names of the services that need rights, in the order of the
// flow.
func Services() []string {
	return []string{"ingest", "sessionize", "filter", "snapshot", "train", "reward", "serve"}
}

// Rights returns what each service needs on a cluster that allows nothing else; it
// follows from the topics' producers and consumers.
func Rights() (out []Right) {
	for _, service := range Services() {
		for _, t := range Topics() {
			r := Right{service, ResourceTopic, t.Name, []string{"DESCRIBE"}, "every service looks at its start whether the topics are as they should be"}
			var why []string
			if slices.Contains(t.Consumers, service) {
				r.Operations, why = append(r.Operations, "READ"), append(why, "consumes it")
			}
			if slices.Contains(t.Producers, service) {
				r.Operations, why = append(r.Operations, "WRITE"), append(why, "produces to it")
			}
			if len(why) > 0 {
				r.Why = strings.Join(why, ", ")
			}
			out = append(out, r)
		}
		if service != "serve" {
			why := "its consumer group"
			if service == "train" || service == "reward" {
				why = "the group elects the process that works"
			}
			out = append(out, Right{service, ResourceGroup, service, []string{"READ"}, why})
		}
		if slices.Contains(transactional, service) {
			out = append(out, Right{service, ResourceTransactionalID, service + "-", []string{"DESCRIBE", "WRITE"}, "its transactions, one id a process"})
		}
	}
	return out
}

// RightsTable returns the rights as a Markdown table for docs/rights.md. Rights that
// only describe a topic are one line a service.
func RightsTable() string {
	var b strings.Builder
	b.WriteString("| service | resource | name | operations | why |\n|---|---|---|---|---|\n")
	for _, service := range Services() {
		for _, r := range Rights() {
			if r.Service == service && (r.Resource != ResourceTopic || len(r.Operations) > 1) {
				fmt.Fprintf(&b, "| %s | %s | `%s` | %s | %s |\n", r.Service, r.Resource, r.Name, strings.Join(r.Operations, ", "), r.Why)
			}
		}
		fmt.Fprintf(&b, "| %s | topic | every other topic | DESCRIBE | every service looks at its start whether the topics are as they should be |\n", service)
	}
	return b.String()
}
