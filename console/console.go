package console

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"onerec/internal/access"
	"onerec/internal/stream"
	"onerec/publisher"
)

// Every is how often everything is looked at, and pushed to browsers.
const Every = time.Second

// Config says what a console watches, and who may use it.
type Config struct {
	Cluster stream.Cluster
	Store   *publisher.Store
	Model   string // whose checkpoints and rounds
	// Targets returns the services' admin endpoints as of now; nil: there are none. Without them health is what the consumer groups say,
	// and there are fewer figures.
	Targets func() []Target
	// TargetToken is the bearer token for them, or empty.
	TargetToken string
	// Recommender returns the URL of a recommender's API, as http://127.0.0.1:8080, or "" while there is none; nil:
	// there never is. RecommenderToken is the bearer token for it, or empty.
	Recommender      func() string
	RecommenderToken string
	// Rules are the names of the filters' rules in their order.
	Rules []string
	// Operations is what an operator may do; nil: nobody may do anything.
	Operations Operations
	Auth       Auth
	Log        *slog.Logger
}

// Operations change what is served, or send records again.
type Operations interface {
	// Promote points a channel at a version and returns what it pointed at before, and why releases are held, if they are.
	Promote(ctx context.Context, version, channel string) (before, held string, err error)
	// Rollback releases an earlier version again, the one before if none is named, and holds releases.
	Rollback(ctx context.Context, version, why string) (from, to string, err error)
	// Hold keeps services from releasing another version, and says why; with an empty why they may again.
	Hold(ctx context.Context, why string) (released string, err error)
	// Withdraw takes the canary away from its users.
	Withdraw(ctx context.Context) (before string, err error)
	// WithdrawItem takes an item out of recommendations or, with gone unset, lets it be recommended again.
	WithdrawItem(ctx context.Context, item string, gone bool) error
	// Replay sends dead letters to views.raw again: all with a reason or, if it is empty, the one at
	// partition and offset.
	Replay(ctx context.Context, reason string, partition int32, offset int64) (n int, err error)
}

// Auth says who may look and who may act. Without tokens anyone on this machine may look, and act if
// Operate is set.
type Auth struct {
	ViewerTokens   string // file of tokens that may look, one a line
	OperatorTokens string // file of tokens that may look and act
	Operate        bool   // without tokens: who may look may act
	access.Certificates
}

// Check says whether the console may listen at an address as it is protected.
func (a Auth) Check(address string) error {
	if err := a.Certificates.Check(); err != nil {
		return fmt.Errorf("%w: set --console-tls-cert and --console-tls-key", err)
	}
	if a.Operate && a.OperatorTokens != "" {
		return errors.New("--console-operate lets everyone act, --console-operator-tokens only some; set one of them")
	}
	if access.Loopback(address) {
		return nil
	}
	if a.ViewerTokens == "" && a.OperatorTokens == "" {
		return fmt.Errorf("anyone who reaches %q could look: set --console-viewer-tokens or --console-operator-tokens, or listen on 127.0.0.1", address)
	}
	return nil
}

// Console is a running console.
type Console struct {
	Config
	viewers, operators access.Tokens
	watch              *watcher
	sessions           *sessions
	letters            *letters
	rounds             *rounds
	versions           *versions
	lookup             lookup
	hub                *hub
	signedIn           *signedIn
	pages              *pages
}

// New returns a console; Run then keeps it up to date.
func New(c Config) (*Console, error) {
	viewers, err := access.ReadTokens(c.Auth.ViewerTokens)
	if err != nil {
		return nil, fmt.Errorf("console: %w", err)
	}
	operators, err := access.ReadTokens(c.Auth.OperatorTokens)
	if err != nil {
		return nil, fmt.Errorf("console: %w", err)
	}
	pages, err := newPages()
	if err != nil {
		return nil, fmt.Errorf("console: %w", err)
	}
	con := &Console{
		Config: c, viewers: viewers, operators: operators, pages: pages,
		sessions: newSessions(c.Rules), letters: newLetters(), rounds: new(rounds), versions: newVersions(c.Store),
		lookup: lookup{at: c.Recommender, token: c.RecommenderToken}, hub: newHub(), signedIn: newSignedIn(),
	}
	con.watch = newWatcher(c.Cluster, newScraper(c.Targets, c.TargetToken), c.Log)
	return con, nil
}

// TLS returns the server's TLS configuration; nil: none.
func (c *Console) TLS() (*tls.Config, error) { return c.Auth.TLS() }

// Run watches until ctx ends. What fails is tried again; the page says so meanwhile.
func (c *Console) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	again := func(what string, fn func(context.Context) error) {
		g.Go(func() error {
			for ctx.Err() == nil {
				if err := fn(ctx); err != nil && ctx.Err() == nil {
					c.Log.Warn("the console can't read", "what", what, "error", err)
				}
				pause(ctx, 2*time.Second)
			}
			return nil
		})
	}
	g.Go(func() error { c.watch.run(ctx); return nil })
	again("sessions", func(ctx context.Context) error { return c.sessions.follow(ctx, c.Cluster) })
	again("dead letters", func(ctx context.Context) error { return c.letters.follow(ctx, c.Cluster) })
	again("rounds", func(ctx context.Context) error { return c.rounds.follow(ctx, c.Cluster, c.Model) })
	again("channels", func(ctx context.Context) error { return c.versions.follow(ctx, c.Cluster, c.Model) })
	again("checkpoints", c.versions.list)
	g.Go(func() error { c.push(ctx); return nil })
	return g.Wait()
}

// push renders what changed, once a tick, while somebody looks.
func (c *Console) push(ctx context.Context) {
	tick := time.NewTicker(Every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			c.hub.close()
			return
		case <-tick.C:
			if c.hub.watched() {
				parts, err := c.parts()
				if err != nil { // a template that fails on data is a bug, and the page stays as it was
					c.Log.Error("the console can't render", "error", err)
					continue
				}
				c.hub.publish(parts)
			}
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// guarded is a value that one goroutine writes and others read.
type guarded[T any] struct {
	mu sync.Mutex
	v  T
}

func (g *guarded[T]) get() T {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.v
}

func (g *guarded[T]) set(v T) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.v = v
}
