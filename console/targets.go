package console

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
)

// Target is the admin endpoint of a process, or, where its host has several addresses, of as many
// processes.
type Target struct {
	Stage string // the service, e.g. "filter"
	URL   string // e.g. http://10.0.0.7:9466
	Done  bool   // it has ended because its work is done, and is not missed
}

// ParseTarget reads STAGE=URL.
func ParseTarget(s string) (Target, error) {
	stage, address, ok := strings.Cut(s, "=")
	if !ok || !slices.ContainsFunc(flow, func(st stageSpec) bool { return st.name == stage }) {
		return Target{}, fmt.Errorf("target %q: write it as STAGE=URL with a stage of %v, e.g. filter=http://127.0.0.1:9466", s, stageNames())
	}
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return Target{}, fmt.Errorf("target %q: %q is no URL as http://127.0.0.1:9466", s, address)
	}
	return Target{Stage: stage, URL: strings.TrimRight(address, "/")}, nil
}

// Limits of what a target may answer, and how long it may take.
const (
	maxMetrics     = 4 << 20
	scrapeTimeout  = 900 * time.Millisecond
	resolveEvery   = 10 * time.Second
	maxProcesses   = 256 // of all targets together
	processesAtime = 16
)

// process is one admin endpoint and what it said last.
type process struct {
	stage, url, host string
	reached          bool // ever
	done             bool // it has ended, and is not missed
	up, ready        bool
	why              string
	families         map[string]*dto.MetricFamily
}

// scraper asks targets.
type scraper struct {
	targets func() []Target
	token   string
	client  *http.Client

	mu        sync.Mutex
	resolved  time.Time
	known     []Target
	processes []*process
}

func newScraper(targets func() []Target, token string) *scraper {
	if targets == nil {
		targets = func() []Target { return nil }
	}
	return &scraper{targets: targets, token: token, client: &http.Client{
		Timeout:       scrapeTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport:     &http.Transport{MaxIdleConnsPerHost: 2, IdleConnTimeout: time.Minute, ResponseHeaderTimeout: scrapeTimeout},
	}}
}

// resolve finds the processes of the targets: one for each address of a host. A process that no name leads
// to any more was stopped on purpose and is forgotten, but not when names can't be resolved.
func (s *scraper) resolve(ctx context.Context) {
	targets := s.targets()
	if slices.Equal(targets, s.known) && time.Since(s.resolved) < resolveEvery {
		return
	}
	s.resolved, s.known = time.Now(), slices.Clone(targets)
	var found []*process
	for _, t := range targets {
		urls := []string{t.URL}
		u, err := url.Parse(t.URL)
		if err == nil && u.Scheme == "http" && net.ParseIP(u.Hostname()) == nil {
			if addresses, err := net.DefaultResolver.LookupHost(ctx, u.Hostname()); err == nil && len(addresses) > 1 && !allLoopback(addresses) {
				urls = urls[:0]
				slices.Sort(addresses)
				for _, a := range addresses {
					at := *u
					at.Host = net.JoinHostPort(a, u.Port())
					urls = append(urls, at.String())
				}
			} else if err != nil {
				for _, p := range s.processes {
					if p.host == t.URL {
						found = append(found, p)
					}
				}
				if len(found) > 0 {
					continue
				}
			}
		}
		for _, address := range urls {
			i := slices.IndexFunc(s.processes, func(p *process) bool { return p.url == address && p.stage == t.Stage })
			if i >= 0 {
				s.processes[i].done = t.Done
				found = append(found, s.processes[i])
			} else if len(found) < maxProcesses {
				found = append(found, &process{stage: t.Stage, url: address, host: t.URL, done: t.Done})
			}
		}
	}
	s.processes = found
}

func allLoopback(addresses []string) bool {
	return !slices.ContainsFunc(addresses, func(a string) bool { ip := net.ParseIP(a); return ip == nil || !ip.IsLoopback() })
}

// scrape asks every process and returns what they said.
func (s *scraper) scrape(ctx context.Context) []process {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resolve(ctx)
	var wg sync.WaitGroup
	slots := make(chan struct{}, processesAtime)
	for _, p := range s.processes {
		if p.done {
			p.up, p.ready, p.why = false, false, ""
			continue // what it said last still holds
		}
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			p.ask(ctx, s)
		})
	}
	wg.Wait()
	out := make([]process, len(s.processes))
	for i, p := range s.processes {
		out[i] = *p
	}
	return out
}

func (p *process) ask(ctx context.Context, s *scraper) {
	p.up, p.ready, p.why, p.families = false, false, "", nil
	status, err := s.get(ctx, p.url+"/readyz", func(io.Reader, http.Header) error { return nil })
	if err != nil {
		p.why = reason(err)
		return
	}
	p.up, p.reached = true, true
	if p.ready = status == http.StatusOK; !p.ready {
		p.why = "not ready"
	}
	status, err = s.get(ctx, p.url+"/metrics", func(r io.Reader, h http.Header) error {
		families := make(map[string]*dto.MetricFamily)
		dec := expfmt.NewDecoder(r, expfmt.ResponseFormat(h))
		for {
			f := new(dto.MetricFamily)
			if err := dec.Decode(f); errors.Is(err, io.EOF) {
				p.families = families
				return nil
			} else if err != nil {
				return err
			}
			families[f.GetName()] = f
		}
	})
	switch {
	case err != nil:
		p.why = "no metrics: " + reason(err)
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		p.why = "no metrics: it wants a token, see --console-target-token"
	case status != http.StatusOK:
		p.why = fmt.Sprintf("no metrics: status %d", status)
	}
}

// get reads what a URL answers with, if it is 200.
func (s *scraper) get(ctx context.Context, address string, read func(io.Reader, http.Header) error) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Accept", string(expfmt.NewFormat(expfmt.TypeProtoDelim)))
	if s.token != "" {
		req.Header.Set("Authorization", "Bearer "+s.token)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	body := io.LimitReader(resp.Body, maxMetrics)
	if resp.StatusCode == http.StatusOK {
		if err := read(body, resp.Header); err != nil {
			return resp.StatusCode, fmt.Errorf("%s: %w", address, err)
		}
	}
	_, _ = io.Copy(io.Discard, body) // so that the connection is used again
	return resp.StatusCode, nil
}

// reason is an error without the URL, which the page shows beside it.
func reason(err error) string {
	var u *url.Error
	if errors.As(err, &u) {
		if u.Timeout() {
			return "no answer within a second"
		}
		err = u.Err
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return "nothing listens there"
	}
	return err.Error()
}

// sum adds up the values of a metric over processes and labels that match; ok is whether there is any.
func sum(ps []process, stage, name string, match ...string) (total float64, ok bool) {
	for _, p := range ps {
		if p.stage != stage {
			continue
		}
		for _, m := range p.families[name].GetMetric() {
			if !labelled(m, match) {
				continue
			}
			ok = true
			switch {
			case m.Counter != nil:
				total += m.Counter.GetValue()
			case m.Gauge != nil:
				total += m.Gauge.GetValue()
			case m.Histogram != nil:
				total += m.Histogram.GetSampleSum()
			}
		}
	}
	return total, ok
}

// count is how many values a histogram has seen.
func count(ps []process, stage, name string) (total float64) {
	for _, p := range ps {
		if p.stage == stage {
			for _, m := range p.families[name].GetMetric() {
				total += float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return total
}

// labelled reports whether a metric has labels, given as name, value, name, value.
func labelled(m *dto.Metric, match []string) bool {
	for i := 0; i+1 < len(match); i += 2 {
		if !slices.ContainsFunc(m.GetLabel(), func(l *dto.LabelPair) bool { return l.GetName() == match[i] && l.GetValue() == match[i+1] }) {
			return false
		}
	}
	return true
}
