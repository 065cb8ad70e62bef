package recommender

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"slices"

	"onerec/decoder"
	"onerec/schemas"
)

// Limits of a request.
const (
	maxBody    = 64 << 10 // bytes
	maxN       = 100
	maxHistory = 1000
	maxExclude = 1000
)

// Request asks for recommendations.
type Request struct {
	UserID string `json:"user_id"`
	// History replaces what is known of the user: items, oldest first.
	History []string `json:"history,omitempty"`
	N       int      `json:"n,omitempty"` // items; 10 if not set
	// Mode is "list", a whole session written item by item, or "next", the n items
	// most likely to be next; "list" if not set.
	Mode string `json:"mode,omitempty"`
	// IncludeSeen allows items of the history.
	IncludeSeen bool `json:"include_seen,omitempty"`
	// Exclude are items that must not be recommended, as those that an earlier answer showed.
	Exclude []string `json:"exclude,omitempty"`
	// Surface is where the items will be shown; it comes back in the answer, for the view events.
	Surface string `json:"surface,omitempty"`
	// Channel asks for the model of a channel, whoever the user is; empty: the user's.
	Channel string `json:"channel,omitempty"`
}

// Answer is a list of recommendations.
type Answer struct {
	RecommendationID string `json:"recommendation_id"` // to be sent back in view events
	// CheckpointVersion is the model's version, to be sent back, too; empty if Source is "popular".
	CheckpointVersion string `json:"checkpoint_version,omitempty"`
	Channel           string `json:"channel,omitempty"`
	Surface           string `json:"surface,omitempty"`
	// Source is "model", or "popular" if no model is loaded, and Why says why.
	Source string `json:"source"`
	Why    string `json:"why,omitempty"`
	// HistoryItems is how many items of the history the model read: the newest of those that it knows.
	HistoryItems int    `json:"history_items"`
	Items        []Item `json:"items"`
}

// Item is one recommendation.
type Item struct {
	ItemID     string   `json:"item_id"`
	SemanticID []uint16 `json:"semantic_id,omitempty"`
	// LogProb is the item's log probability in mode "next", that of the whole list
	// in mode "list", among what could be recommended; answers are in its order.
	LogProb float64 `json:"log_prob,omitempty"`
}

func (q *Request) check() error {
	switch {
	case q.UserID == "" && q.History == nil:
		return badRequest("user_id is empty; name a user, or give a history")
	case len(q.UserID) > schemas.MaxIDBytes:
		return badRequest("user_id has %d bytes, at most %d are allowed", len(q.UserID), schemas.MaxIDBytes)
	case q.N < 0 || q.N > maxN:
		return badRequest("n is %d, allowed is 1 to %d", q.N, maxN)
	case len(q.History) > maxHistory:
		return badRequest("history has %d items, at most %d are allowed", len(q.History), maxHistory)
	case len(q.Exclude) > maxExclude:
		return badRequest("exclude has %d items, at most %d are allowed", len(q.Exclude), maxExclude)
	case q.Mode != "" && q.Mode != "list" && q.Mode != "next":
		return badRequest("mode is %q, allowed are list and next", q.Mode)
	case len(q.Surface) > schemas.MaxIDBytes:
		return badRequest("surface has %d bytes, at most %d are allowed", len(q.Surface), schemas.MaxIDBytes)
	}
	if q.N == 0 {
		q.N = 10
	}
	return nil
}

// Recommend answers one request.
func (s *Service) Recommend(ctx context.Context, q Request) (*Answer, error) {
	if err := q.check(); err != nil {
		return nil, err
	}
	items, before := q.History, 0
	if items == nil {
		items, before = s.known(q.UserID)
	}
	a := &Answer{RecommendationID: rand.Text(), Surface: q.Surface, Items: []Item{}}
	m, err := s.choose(q.UserID, q.Channel)
	if err != nil {
		return nil, err
	}
	if m == nil {
		excluded := q.excluded(items)
		a.Source, a.Why = "popular", "no model has been announced yet"
		for _, item := range s.users.popular(q.N, func(item string) bool { return excluded[item] || s.isWithdrawn(item) }) {
			a.Items = append(a.Items, Item{ItemID: item})
		}
		return a, nil
	}
	a.Source, a.CheckpointVersion, a.Channel = "model", m.ref.Version, m.ref.Channel
	if q.Mode != "next" && q.N > m.longest {
		return nil, badRequest("n is %d, the model writes lists of at most %d items; use mode next", q.N, m.longest)
	}
	o := m.ask(q, items, before, s.Beams, q.History == nil && s.HistoryCache > 0)
	a.HistoryItems = len(o.History)
	done, err := s.admission.admit(ctx, s.pasts.who(q.UserID))
	if err != nil {
		return nil, err
	}
	o.Past = s.pasts.take(q.UserID)
	a.Items, err = m.search(o, q)
	done()
	if err != nil {
		return nil, fmt.Errorf("recommend with %s: %w", m.ref.Version, err)
	}
	if o.Past != nil {
		s.Metrics.read(o.Past)
		s.pasts.put(q.UserID, o.Past)
		s.Metrics.setPasts(s.pasts.size())
	}
	return a, nil
}

// length is how many items the model is to write one after the other.
func (q Request) length() int {
	if q.Mode == "next" {
		return 1
	}
	return q.N
}

// excluded returns the items that must not be recommended to a user with a history.
func (q Request) excluded(history []string) map[string]bool {
	excluded := make(map[string]bool)
	for _, item := range q.Exclude {
		excluded[item] = true
	}
	if !q.IncludeSeen {
		for _, item := range history {
			excluded[item] = true
		}
	}
	return excluded
}

// ask returns what the model is asked for: to go on from the newest items of a history that it knows, as many as there is
// room for; fewer if that keeps the first ones steady. There were some before them.
func (m *model) ask(q Request, items []string, before, beams int, keep bool) decoder.Options {
	o := decoder.Options{User: m.gen.Config().User(q.UserID), Exclude: make(map[int32]bool), Width: beams, Length: q.length()}
	var places []int // of the history's items, among all that the user ever had
	for at, item := range items {
		if i, ok := m.cb.Index(item); ok {
			o.History, places = append(o.History, m.cb.ID(i)), append(places, before+at)
		}
	}
	for item := range q.excluded(items) {
		if i, ok := m.cb.Index(item); ok {
			o.Exclude[i] = true
		}
	}
	room := m.longest - o.Length
	skip := max(0, len(places)-room)
	if keep {
		skip = steady(places, before, room, min(len(items), m.longest)/4)
	}
	o.History = o.History[skip:]
	return o
}

// steady returns how many of a history's oldest items to leave out, so that a model with room for a number of
// items has to read little of it again. A history that is full, or a row of the model's, loses its oldest item with
// each new one, and no two would begin with the same. So it begins at every step-th of all items that the user ever
// had: with less than a step fewer than there is room for, and with the same item for as long. Places are those of
// the items among all, before of which are forgotten.
func steady(places []int, before, room, step int) int {
	first := before
	if over := len(places) - room; over > 0 {
		first = places[over-1] + 1
	}
	step = max(step, 1)
	at, _ := slices.BinarySearch(places, (first+step-1)/step*step)
	return at
}

// search asks the model for what a request wants.
func (m *model) search(o decoder.Options, q Request) ([]Item, error) {
	items := make([]Item, 0, q.N)
	add := func(i int32, logProb float64) {
		items = append(items, Item{m.cb.Item(i), m.cb.ID(i), logProb})
	}
	if q.Mode == "next" {
		o.Width = max(o.Width, q.N)
		next, err := m.gen.Next(o, q.N)
		for _, n := range next {
			add(n.Item, n.LogProb)
		}
		return items, err
	}
	lists, err := m.gen.Generate(o)
	if err != nil || len(lists) == 0 {
		return items, err
	}
	for _, i := range lists[0].Items {
		add(i, lists[0].Score)
	}
	return items, nil
}

// ItemInfo is what a model knows of an item.
type ItemInfo struct {
	ItemID            string      `json:"item_id"`
	SemanticID        []uint16    `json:"semantic_id"`
	CheckpointVersion string      `json:"checkpoint_version"`
	Withdrawn         bool        `json:"withdrawn"`  // it is not recommended
	Neighbours        []Neighbour `json:"neighbours"` // those with most first codes in common, most first
}

// Neighbour is an item whose semantic ID begins with the same codes.
type Neighbour struct {
	ItemID      string   `json:"item_id"`
	SemanticID  []uint16 `json:"semantic_id"`
	CommonCodes int      `json:"common_codes"`
}

// Item returns what the served model knows of an item.
func (s *Service) Item(id string) (*ItemInfo, error) {
	const neighbours = 10
	m := s.loaded.Load()
	if m == nil {
		return nil, &problem{Title: "Service Unavailable", Status: http.StatusServiceUnavailable, Detail: "no model has been announced yet"}
	}
	i, ok := m.cb.Index(id)
	if !ok {
		return nil, &problem{Title: "Not Found", Status: http.StatusNotFound, Detail: fmt.Sprintf("checkpoint %s knows no item %.64q", m.ref.Version, id)}
	}
	out := &ItemInfo{ItemID: id, SemanticID: m.cb.ID(i), CheckpointVersion: m.ref.Version, Withdrawn: s.isWithdrawn(id), Neighbours: []Neighbour{}}
	for _, n := range m.cb.Neighbours(i, neighbours) {
		out.Neighbours = append(out.Neighbours, Neighbour{m.cb.Item(n.Item), m.cb.ID(n.Item), n.Codes})
	}
	return out, nil
}

// UserInfo is what is remembered of a user.
type UserInfo struct {
	UserID            string        `json:"user_id"`
	CheckpointVersion string        `json:"checkpoint_version,omitempty"` // whose semantic IDs they are
	History           []HistoryItem `json:"history"`                      // oldest first
}

// HistoryItem is an item that a user engaged with.
type HistoryItem struct {
	ItemID      string   `json:"item_id"`
	EventTimeMs int64    `json:"event_time_ms"`         // when the view began, ms since the epoch
	SemanticID  []uint16 `json:"semantic_id,omitempty"` // none if the model does not know the item
}

// User returns what is remembered of a user; the history is empty if nothing is.
func (s *Service) User(id string) *UserInfo {
	out := &UserInfo{UserID: id, History: []HistoryItem{}}
	m := s.loaded.Load()
	if m != nil {
		out.CheckpointVersion = m.ref.Version
	}
	items, _ := s.users.history(id)
	for item, ms := range items.All() {
		h := HistoryItem{ItemID: string(item), EventTimeMs: ms}
		if m != nil {
			if i, ok := m.cb.Index(h.ItemID); ok {
				h.SemanticID = m.cb.ID(i)
			}
		}
		out.History = append(out.History, h)
	}
	return out
}
