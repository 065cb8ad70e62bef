package console

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"onerec/internal/access"
	"onerec/publisher"
	"onerec/schemas"
)

// role is what somebody may do.
type role int

const (
	nobody role = iota
	viewer
	operator
)

// CanAct reports whether the role may change something.
func (r role) CanAct() bool { return r == operator }

// policy lets the browser load nothing from elsewhere, and run no script but ours.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

// Handler serves the console.
func (c *Console) Handler() http.Handler {
	open, inside := http.NewServeMux(), http.NewServeMux()
	open.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	open.HandleFunc("GET /assets/{hash}/{name}", c.pages.serveAsset)
	open.HandleFunc("GET /favicon.ico", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, c.pages.base+"icon.svg", http.StatusFound)
	})
	open.HandleFunc("GET /sign-in", func(w http.ResponseWriter, r *http.Request) { c.show(w, r, "sign-in", http.StatusOK, nil) })
	open.HandleFunc("POST /sign-in", c.signIn)
	open.HandleFunc("POST /sign-out", c.signOut)
	open.Handle("/", c.look(inside))

	inside.HandleFunc("GET /{$}", c.index)
	inside.HandleFunc("GET /events", c.events)
	inside.HandleFunc("GET /user", func(w http.ResponseWriter, r *http.Request) {
		c.show(w, r, "user-page", http.StatusOK, func(p *page) { p.Title, p.User = "User", c.user(r.Context(), input(r, "id")) })
	})
	inside.HandleFunc("GET /item", func(w http.ResponseWriter, r *http.Request) {
		c.show(w, r, "item-page", http.StatusOK, func(p *page) {
			p.Title, p.Item, p.Message = "Item", c.item(r.Context(), input(r, "id")), done[input(r, "done")]
		})
	})
	inside.HandleFunc("GET /rounds", func(w http.ResponseWriter, r *http.Request) {
		c.show(w, r, "rounds-page", http.StatusOK, func(p *page) {
			p.Title, p.Data = "Rounds", c.rounds.view(number(r, "page"), int32(number(r, "round")))
		})
	})
	inside.HandleFunc("GET /checkpoints", func(w http.ResponseWriter, r *http.Request) {
		c.show(w, r, "checkpoints-page", http.StatusOK, func(p *page) {
			p.Title, p.Data = "Checkpoints", c.versions.view(number(r, "page"))
		})
	})
	inside.HandleFunc("GET /compare", func(w http.ResponseWriter, r *http.Request) {
		c.show(w, r, "compare-page", http.StatusOK, func(p *page) {
			p.Title, p.Data = "Two checkpoints", c.versions.compare(input(r, "a"), input(r, "b"))
		})
	})
	inside.HandleFunc("GET /letters", func(w http.ResponseWriter, r *http.Request) {
		c.show(w, r, "letters-page", http.StatusOK, func(p *page) {
			p.Title, p.Data = "Dead letters", c.letters.view(number(r, "page"), input(r, "reason"))
		})
	})
	inside.HandleFunc("GET /confirm", c.confirm)
	inside.HandleFunc("POST /act", c.act)
	inside.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		c.fail(w, r, http.StatusNotFound, "there is no such page")
	})
	return c.secure(http.NewCrossOriginProtection().Handler(open))
}

// secure sets what every answer carries and refuses what can't come from a page of ours.
func (c *Console) secure(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		if r.TLS != nil {
			h.Set("Strict-Transport-Security", "max-age=31536000")
		}
		// Without tokens the address is the only protection, so a name that was made to resolve to it
		// (DNS rebinding) must not pass for it.
		if !c.hasTokens() && c.Auth.ClientCA == "" && !access.Loopback(r.Host) {
			http.Error(w, "this console answers to 127.0.0.1 and localhost only; set tokens to reach it by another name", http.StatusMisdirectedRequest)
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
		next.ServeHTTP(w, r)
	})
}

func (c *Console) hasTokens() bool { return c.viewers != nil || c.operators != nil }

// role says what who sent a request may do.
func (c *Console) role(r *http.Request) role {
	got := c.signedIn.role(r)
	if token, ok := access.Bearer(r); ok {
		got = max(got, c.tokenRole(token))
	}
	// What a request calls the console is the sender's word, where it comes from is not.
	here := access.Loopback(r.Host) && access.Loopback(r.RemoteAddr)
	if c.viewers == nil && (c.operators == nil || here) {
		got = max(got, viewer) // whoever reaches it may look
		if c.Auth.Operate {
			got = operator
		}
	}
	if c.Operations == nil {
		got = min(got, viewer)
	}
	return got
}

func (c *Console) tokenRole(token string) role {
	switch {
	case c.operators.Has(token):
		return operator
	case c.viewers.Has(token):
		return viewer
	}
	return nobody
}

// look lets through who may look.
func (c *Console) look(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c.role(r) >= viewer {
			next.ServeHTTP(w, r)
			return
		}
		if r.Method == http.MethodGet && r.URL.Path == "/" {
			http.Redirect(w, r, "/sign-in", http.StatusSeeOther)
			return
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="onerec console"`)
		c.fail(w, r, http.StatusUnauthorized, "sign in first: a token is needed")
	})
}

// show renders a page; fill adds what is its own.
func (c *Console) show(w http.ResponseWriter, r *http.Request, name string, status int, fill func(*page)) {
	p := &page{Model: c.Model, Role: c.role(r), SignIn: c.hasTokens(), Now: time.Now()}
	if fill != nil {
		fill(p)
	}
	var b bytes.Buffer
	if err := c.pages.ExecuteTemplate(&b, name, p); err != nil {
		c.Log.Error("the console can't render", "page", name, "error", err)
		http.Error(w, "the console can't render this; its log says why", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes()) // the browser has gone if this fails
}

func (c *Console) fail(w http.ResponseWriter, r *http.Request, status int, why string) {
	c.show(w, r, "error-page", status, func(p *page) { p.Title, p.Data = http.StatusText(status), why })
}

func (c *Console) index(w http.ResponseWriter, r *http.Request) {
	c.show(w, r, "index", http.StatusOK, func(p *page) {
		p.live = c.live()
		p.Message = done[input(r, "done")]
	})
}

// done are the messages after an operation; only these can be shown, whatever a link says.
var done = map[string]string{
	"promote":       "Done: the channel points at the version, and fleets load it.",
	"rollback":      "Done: the earlier version is released again, and fleets load it. No other is released until you resume.",
	"hold":          "Done: no other version is released until you resume.",
	"resume":        "Done: the next round that passes its gates is released.",
	"withdraw":      "Done: the canary's users get what is released.",
	"withdraw-item": "Done: no answer holds it as soon as the recommenders have read so.",
	"restore-item":  "Done: it is recommended again as soon as the recommenders have read so.",
	"replay":        "Done: the dead letters were sent to views.raw again.",
	"sign-in":       "You are signed in.",
	"sign-out":      "You are signed out.",
}

// input is a parameter of a request, of a length that anything here can have.
func input(r *http.Request, name string) string {
	s := strings.TrimSpace(r.FormValue(name))
	return s[:min(len(s), 512)]
}

func number(r *http.Request, name string) int {
	n, err := strconv.ParseInt(input(r, name), 10, 32)
	if err != nil {
		return 0
	}
	return int(n)
}

// operation is what somebody wants to do, as a form carries it.
type operation struct {
	Do                string // promote, rollback, hold, resume, withdraw, withdraw-item, restore-item, replay
	Version, Channel  string
	Expect            string // what was released when the question was asked
	Item              string
	Reason            string
	Why               string // releases are held
	Asks              string // what is to be typed in as Why, if something is
	Partition, Offset string
	Title, Question   string
	Letters           int64
}

func (c *Console) operation(r *http.Request) (o operation, err error) {
	o = operation{Do: input(r, "do"), Version: input(r, "version"), Channel: input(r, "channel"), Expect: input(r, "expect"), Item: input(r, "item"), Reason: input(r, "reason"), Partition: input(r, "partition"), Offset: input(r, "offset"), Why: input(r, "why")}
	released := c.versions.at(publisher.ChannelReleased)
	or := func(version, other string) string {
		if version == "" {
			return other
		}
		return version
	}
	switch o.Do {
	case "promote":
		if !c.versions.has(o.Version) {
			return o, fmt.Errorf("there is no version %q", o.Version)
		}
		switch o.Channel {
		case publisher.ChannelReleased:
			o.Title = "Release " + o.Version
			o.Question = fmt.Sprintf("Every user gets version %s instead of %s. Fleets load it at once.", o.Version, or(released, "popular items"))
		case publisher.ChannelCanary:
			o.Title = "Give " + o.Version + " to the canary's users"
			o.Question = fmt.Sprintf("A share of the users gets version %s, the others what they have now. Fleets load it at once.", o.Version)
		default:
			return o, fmt.Errorf("there is no channel %q to promote to", o.Channel)
		}
	case "rollback":
		if !c.versions.has(o.Version) {
			return o, fmt.Errorf("there is no version %q", o.Version)
		}
		o.Title = "Roll back to " + o.Version
		o.Question = fmt.Sprintf("Version %s is released again instead of %s. Fleets load it at once, and no other is released until you resume. The trainer goes on from it at its next checkpoint.", o.Version, or(released, "nothing"))
		o.Asks = "Why, for whom it concerns"
	case "hold", "resume":
		if released == "" {
			return o, fmt.Errorf("nothing is released")
		}
		if o.Do == "hold" {
			o.Title = "Hold releases"
			o.Question = fmt.Sprintf("Users go on to get %s. Training and rounds go on; what passes the gates is published, but not released until you resume.", released)
			o.Asks = "Why, for whom it concerns"
			return o, nil
		}
		o.Title = "Resume releases"
		o.Question = "The next round that passes its gates is released. What passed them meanwhile is not; you can release it by hand."
	case "withdraw":
		canary := c.versions.at(publisher.ChannelCanary)
		if canary == "" {
			return o, fmt.Errorf("nothing is on the canary channel")
		}
		o.Title = "Withdraw the canary"
		o.Question = fmt.Sprintf("The users who get %s get %s again.", canary, or(released, "popular items"))
	case "withdraw-item", "restore-item":
		if o.Item == "" || len(o.Item) > schemas.MaxIDBytes {
			return o, fmt.Errorf("an item's id has 1 to %d bytes, this one %d", schemas.MaxIDBytes, len(o.Item))
		}
		if o.Do == "withdraw-item" {
			o.Title = "Take " + o.Item + " out of recommendations"
			o.Question = fmt.Sprintf("No answer that begins a moment later holds item %s, whatever model serves. It stays in users' histories.", o.Item)
			return o, nil
		}
		o.Title = "Recommend " + o.Item + " again"
		o.Question = fmt.Sprintf("Item %s is recommended to whom the models think it suits, as before it was withdrawn.", o.Item)
	case "replay":
		if o.Reason != "" {
			o.Title = "Replay dead letters"
			o.Question = fmt.Sprintf("All dead letters that %s refused are sent to views.raw again. What is refused again becomes a new dead letter; what was accepted before is a duplicate.", o.Reason)
			return o, nil
		}
		p, err1 := strconv.ParseInt(o.Partition, 10, 32)
		n, err2 := strconv.ParseInt(o.Offset, 10, 64)
		if err1 != nil || err2 != nil || p < 0 || n < 0 {
			return o, fmt.Errorf("%q, %q are no partition and offset", o.Partition, o.Offset)
		}
		o.Title = "Replay a dead letter"
		o.Question = fmt.Sprintf("The dead letter at partition %d, offset %d is sent to views.raw again, as it was.", p, n)
	default:
		return o, fmt.Errorf("there is nothing called %q to do", o.Do)
	}
	return o, nil
}

// ofVersions reports whether what is done changes which version serves.
func (o operation) ofVersions() bool {
	return slices.Contains([]string{"promote", "rollback", "withdraw", "hold", "resume"}, o.Do)
}

// confirm asks whether something is meant.
func (c *Console) confirm(w http.ResponseWriter, r *http.Request) {
	if !c.mayAct(w, r) {
		return
	}
	o, err := c.operation(r)
	if err != nil {
		c.fail(w, r, http.StatusBadRequest, err.Error())
		return
	}
	o.Expect = c.versions.at(publisher.ChannelReleased)
	c.show(w, r, "confirm", http.StatusOK, func(p *page) { p.Title, p.Data = o.Title, o })
}

func (c *Console) mayAct(w http.ResponseWriter, r *http.Request) bool {
	if c.role(r).CanAct() {
		return true
	}
	why := "you may look, not act: sign in with an operator's token"
	if c.operators == nil {
		why = "nobody may act here: start the console with --console-operator-tokens or, on this machine alone, --console-operate"
	}
	c.fail(w, r, http.StatusForbidden, why)
	return false
}

// act does what was confirmed.
func (c *Console) act(w http.ResponseWriter, r *http.Request) {
	if !c.mayAct(w, r) {
		return
	}
	o, err := c.operation(r)
	if err != nil {
		c.fail(w, r, http.StatusBadRequest, err.Error())
		return
	}
	if released := c.versions.at(publisher.ChannelReleased); o.ofVersions() && released != o.Expect {
		c.fail(w, r, http.StatusConflict, fmt.Sprintf("nothing was done: meanwhile %s was released, when you were asked it was %s; look again", released, o.Expect))
		return
	}
	ctx, next := r.Context(), "/?done="
	switch o.Do {
	case "promote":
		_, _, err = c.Operations.Promote(ctx, o.Version, o.Channel)
	case "rollback":
		_, _, err = c.Operations.Rollback(ctx, o.Version, o.Why)
	case "hold":
		_, err = c.Operations.Hold(ctx, cmp.Or(o.Why, "held in the console"))
	case "resume":
		_, err = c.Operations.Hold(ctx, "")
	case "withdraw":
		_, err = c.Operations.Withdraw(ctx)
	case "withdraw-item", "restore-item":
		err = c.Operations.WithdrawItem(ctx, o.Item, o.Do == "withdraw-item")
		next = "/item?id=" + url.QueryEscape(o.Item) + "&done="
	case "replay":
		partition, _ := strconv.ParseInt(o.Partition, 10, 32) // operation has looked at them
		offset, _ := strconv.ParseInt(o.Offset, 10, 64)
		_, err = c.Operations.Replay(ctx, o.Reason, int32(partition), offset)
	}
	c.Log.Info("console operation", "do", o.Do, "version", o.Version, "channel", o.Channel, "item", o.Item, "reason", o.Reason, "why", o.Why, "partition", o.Partition, "offset", o.Offset, "from", r.RemoteAddr, "error", err)
	if err != nil {
		c.fail(w, r, http.StatusBadGateway, "nothing was done: "+err.Error())
		return
	}
	http.Redirect(w, r, next+url.QueryEscape(o.Do), http.StatusSeeOther)
}

// cookie names a browser that has signed in.
const cookie = "onerec-console"

// Bounds of signing in.
const (
	maxSignedIn  = 1000
	signedInFor  = 12 * time.Hour
	failureDelay = 500 * time.Millisecond // before a wrong token is answered
)

func (c *Console) signIn(w http.ResponseWriter, r *http.Request) {
	got := c.tokenRole(input(r, "token"))
	if got == nobody {
		pause(r.Context(), failureDelay)
		c.show(w, r, "sign-in", http.StatusUnauthorized, func(p *page) { p.Data = "That token is not known." })
		return
	}
	http.SetCookie(w, &http.Cookie{
		Name: cookie, Value: c.signedIn.add(got, time.Now()), Path: "/", MaxAge: int(signedInFor.Seconds()),
		HttpOnly: true, SameSite: http.SameSiteStrictMode, Secure: r.TLS != nil,
	})
	http.Redirect(w, r, "/?done=sign-in", http.StatusSeeOther)
}

func (c *Console) signOut(w http.ResponseWriter, r *http.Request) {
	if k, err := r.Cookie(cookie); err == nil {
		c.signedIn.remove(k.Value)
	}
	http.SetCookie(w, &http.Cookie{Name: cookie, Path: "/", MaxAge: -1, HttpOnly: true, SameSite: http.SameSiteStrictMode, Secure: r.TLS != nil})
	http.Redirect(w, r, "/?done=sign-out", http.StatusSeeOther)
}

// signedIn are the browsers that have signed in.
type signedIn struct {
	mu       sync.Mutex
	sessions map[string]session
}

type session struct {
	role  role
	until time.Time
}

func newSignedIn() *signedIn { return &signedIn{sessions: make(map[string]session)} }

// add lets a browser in and returns the cookie's value. Beyond the limit the one that ends first goes.
func (s *signedIn) add(of role, now time.Time) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.sessions) >= maxSignedIn {
		first := ""
		for id, other := range s.sessions {
			if first == "" || other.until.Before(s.sessions[first].until) {
				first = id
			}
		}
		delete(s.sessions, first)
	}
	id := rand.Text()
	s.sessions[id] = session{of, now.Add(signedInFor)}
	return id
}

func (s *signedIn) remove(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sessions, id)
}

func (s *signedIn) role(r *http.Request) role {
	k, err := r.Cookie(cookie)
	if err != nil {
		return nobody
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	of, ok := s.sessions[k.Value]
	if !ok || time.Now().After(of.until) {
		delete(s.sessions, k.Value)
		return nobody
	}
	return of.role
}
