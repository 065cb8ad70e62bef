package app

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"onerec/console"
	"onerec/filters"
	"onerec/ingest"
	"onerec/internal/stream"
	"onerec/internal/telemetry"
	"onerec/publisher"
	"onerec/schemas"
)

// Console are the settings of the console.
type Console struct {
	Listen                            string
	Targets                           []string
	TargetTokenFile                   string
	Recommender, RecommenderTokenFile string
	Auth                              console.Auth
}

// RunConsole runs the console until ctx ends.
func (a *App) RunConsole(ctx context.Context) error {
	if err := a.Console.Auth.Check(a.Console.Listen); err != nil {
		return err
	}
	var targets []console.Target
	for _, s := range a.Console.Targets {
		t, err := console.ParseTarget(s)
		if err != nil {
			return fmt.Errorf("--console-targets: %w", err)
		}
		targets = append(targets, t)
	}
	return a.serve(ctx, func(ctx context.Context, h host) error {
		l, err := listen(ctx, a.Console.Listen)
		if err != nil {
			return fmt.Errorf("listen for browsers: %w", err)
		}
		return a.console(ctx, l, a.Console.Auth, func() []console.Target { return targets }, func() string { return a.Console.Recommender }, h.ready)
	})
}

// console runs the console on l.
func (a *App) console(ctx context.Context, l net.Listener, auth console.Auth, targets func() []console.Target, recommender func() string, ready func()) error {
	targetToken, err1 := readToken(a.Console.TargetTokenFile)
	recommenderToken, err2 := readToken(a.Console.RecommenderTokenFile)
	if err := errors.Join(err1, err2); err != nil {
		return errors.Join(err, l.Close())
	}
	return a.withStore(ctx, func(store *publisher.Store) error {
		c, err := console.New(console.Config{
			Cluster: a.cluster(), Store: store, Model: a.Model, Targets: targets, TargetToken: targetToken, Recommender: recommender, RecommenderToken: recommenderToken,
			Rules: filters.RuleNames(), Operations: a, Auth: auth, Log: a.Log.With("service", "console"),
		})
		if err != nil {
			return errors.Join(err, l.Close())
		}
		secure, err := c.TLS()
		if err != nil {
			return errors.Join(err, l.Close())
		}
		scheme := "http"
		if secure != nil {
			l, scheme = tls.NewListener(l, secure), "https"
		}
		a.Log.Info("console", "url", scheme+"://"+l.Addr().String())
		ready()
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { return c.Run(ctx) })
		g.Go(func() error { return telemetry.Serve(ctx, l, c.Handler()) })
		return g.Wait()
	})
}

// readToken reads the one token of a file; without a file there is none.
func readToken(file string) (string, error) {
	if file == "" {
		return "", nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("read a token: %w", err)
	}
	token := strings.TrimSpace(string(data))
	if token == "" || strings.ContainsAny(token, " \n\r") {
		return "", fmt.Errorf("%s must hold one token and nothing else", file)
	}
	return token, nil
}

// maxReplay bounds the dead letters that are replayed at once, which are held in memory.
const maxReplay = 100_000

// Replay sends dead letters to views.raw again: all with a reason or, if it is empty, the one at partition
// and offset. It returns how many.
func (a *App) Replay(ctx context.Context, reason string, partition int32, offset int64) (int, error) {
	var letters []ingest.DeadLetter
	if reason != "" {
		err := a.DeadLetters(ctx, reason, func(d ingest.DeadLetter) error {
			if letters = append(letters, d); len(letters) > maxReplay {
				return fmt.Errorf("there are more than %d dead letters with reason %s; replay them in parts, or play the source again", maxReplay, reason)
			}
			return nil
		})
		if err != nil {
			return 0, err
		}
		return a.ReplayDeadLetters(ctx, letters)
	}
	d, err := a.DeadLetter(ctx, partition, offset)
	if err != nil {
		return 0, err
	}
	return a.ReplayDeadLetters(ctx, []ingest.DeadLetter{d})
}

// DeadLetter reads the dead letter at a partition and an offset.
func (a *App) DeadLetter(ctx context.Context, partition int32, offset int64) (d ingest.DeadLetter, err error) {
	missing := fmt.Errorf("there is no dead letter at partition %d offset %d; \"onerec dlq list\" shows where there are", partition, offset)
	spans, err := a.cluster().Spans(ctx, schemas.TopicDeadLetters)
	if err != nil {
		return d, err
	}
	if span := spans[partition]; offset < span.From || offset >= span.To {
		return d, missing
	}
	found := false
	err = a.cluster().ReadSpan(ctx, schemas.TopicDeadLetters, partition, stream.Span{From: offset, To: offset + 1}, func(r *kgo.Record) error {
		d, found = ingest.ParseDeadLetter(r), true
		return nil
	})
	if err == nil && !found { // it is a mark of a transaction
		err = missing
	}
	return d, err
}
