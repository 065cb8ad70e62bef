package console

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"onerec/internal/stream"
	"onerec/recommender"
	"onerec/schemas"
	"onerec/schemas/onerecv1"
)

// lookup asks a recommender about users and items.
type lookup struct {
	at    func() string
	token string
}

// errNoRecommender says that there is nobody to ask.
var errNoRecommender = errors.New("no recommender runs, or none is named by --console-recommender, so there are no histories, recommendations and semantic IDs")

// Bounds of an answer, and how long it may take.
const (
	maxAnswer     = 4 << 20
	lookupTimeout = 5 * time.Second
)

// client is used again, so that connections are.
var client = &http.Client{Timeout: lookupTimeout}

// ask sends a request, with a body if there is one, and reads the answer into out.
func (l lookup) ask(ctx context.Context, path string, body, out any) error {
	base := ""
	if l.at != nil {
		base = strings.TrimRight(l.at(), "/")
	}
	if base == "" {
		return errNoRecommender
	}
	method, reader := http.MethodGet, io.Reader(nil)
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		method, reader = http.MethodPost, bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, base+path, reader)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	if l.token != "" {
		req.Header.Set("Authorization", "Bearer "+l.token)
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("the recommender at %s: %s", base, reason(err))
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("the recommender at %s: %w", base, err)
	}
	if resp.StatusCode != http.StatusOK {
		var p struct {
			Detail string `json:"detail"`
		}
		if json.Unmarshal(data, &p) != nil || p.Detail == "" {
			p.Detail = resp.Status
		}
		return fmt.Errorf("the recommender says: %s", p.Detail)
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("the recommender at %s answers with something else: %w", base, err)
	}
	return nil
}

// userView is what the page shows of a user.
type userView struct {
	ID       string
	Asked    bool
	Err      string // why the recommender said nothing
	Known    *recommender.UserInfo
	Answer   *recommender.Answer
	Watched  map[string]string // by recommended item: how long the user watched it in the sessions below
	Sessions []userSession     // the newest first
	Why      string            // why there are no sessions
}

// userSession is a session of the user.
type userSession struct {
	*onerecv1.Session
	Good   bool
	Failed []string
}

// Bounds of a user's page.
const (
	userSessions    = 5
	recommendations = 10
)

// user collects what is known of a user.
func (c *Console) user(ctx context.Context, id string) userView {
	ctx, cancel := context.WithTimeout(ctx, 2*lookupTimeout)
	defer cancel()
	v := userView{ID: id, Asked: id != "", Watched: make(map[string]string)}
	if id == "" {
		return v
	}
	known := new(recommender.UserInfo)
	if err := c.lookup.ask(ctx, "/v1/users/"+url.PathEscape(id), nil, known); err != nil {
		v.Err = err.Error()
	} else {
		slices.Reverse(known.History) // the newest first
		v.Known = known
		answer := new(recommender.Answer)
		if err := c.lookup.ask(ctx, "/v1/recommendations", recommender.Request{UserID: id, N: recommendations, Mode: "next"}, answer); err != nil {
			v.Err = err.Error()
		} else {
			v.Answer = answer
		}
	}
	var err error
	if v.Sessions, err = c.sessionsOf(ctx, id); err != nil {
		v.Why = "the sessions can't be read: " + err.Error()
	} else if len(v.Sessions) == 0 {
		v.Why = fmt.Sprintf("none of the newest %s sessions is of this user", grouped(keptSessions))
	}
	for _, s := range v.Sessions {
		for _, view := range s.Views {
			if _, ok := v.Watched[view.ItemId]; !ok {
				v.Watched[view.ItemId] = fmt.Sprintf("%.0f s", float64(view.WatchMs)/1000)
			}
		}
	}
	return v
}

// sessionsOf reads the newest sessions of a user from their topic.
func (c *Console) sessionsOf(ctx context.Context, user string) (out []userSession, err error) {
	for _, p := range c.sessions.places(user, userSessions) {
		// An older record that was removed meanwhile is not waited for.
		spans, err := c.Cluster.Spans(ctx, schemas.TopicJudgedSessions)
		if err != nil {
			return nil, err
		}
		if p.offset < spans[p.partition].From {
			continue
		}
		err = c.Cluster.ReadSpan(ctx, schemas.TopicJudgedSessions, p.partition, stream.Span{From: p.offset, To: p.offset + 1}, func(r *kgo.Record) error {
			j := new(onerecv1.JudgedSession)
			if proto.Unmarshal(r.Value, j) == nil && j.Session.GetUserId() == user {
				out = append(out, userSession{j.Session, j.Verdict.GetGood(), j.Verdict.GetFailedRules()})
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// itemView is what the page shows of an item.
type itemView struct {
	ID    string
	Asked bool
	Err   string
	Info  *recommender.ItemInfo
}

func (c *Console) item(ctx context.Context, id string) itemView {
	v := itemView{ID: id, Asked: id != ""}
	if id == "" {
		return v
	}
	info := new(recommender.ItemInfo)
	if err := c.lookup.ask(ctx, "/v1/items/"+url.PathEscape(id), nil, info); err != nil {
		v.Err = err.Error()
		return v
	}
	v.Info = info
	return v
}
