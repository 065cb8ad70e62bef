package simulator

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cenkalti/backoff/v5"

	"onerec/schemas/onerecv1"
)

// TestRemote: users are shown what the recommender says and no item twice in a session, views say which answer
// they come from, a busy recommender is asked again, and one that has nothing leaves it to the other policy.
func TestRemote(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Users, cfg.Items, cfg.Days = 5, 30, 2
	w, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	asked, empty := 0, true
	busy := []int{http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout}
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		asked++
		var q struct {
			UserID string `json:"user_id"`
			Mode   string
			N      int
		}
		switch err := json.NewDecoder(r.Body).Decode(&q); {
		case r.URL.Path != "/v1/recommendations" || err != nil || !strings.HasPrefix(q.UserID, "u") || q.N < 1 || q.Mode != "next":
			t.Errorf("request %s %+v, %v", r.URL, q, err)
		case r.Header.Get("Authorization") != "Bearer secret":
			t.Errorf("authorization %q", r.Header.Get("Authorization"))
		case asked%3 == 0:
			if kind := asked / 3 % (len(busy) + 1); kind < len(busy) {
				rw.WriteHeader(busy[kind])
				return
			}
			panic(http.ErrAbortHandler) // the connection breaks
		}
		items := []map[string]string{{"item_id": "unheard of"}}
		if !empty {
			for i := range min(q.N, 30) {
				items = append(items, map[string]string{"item_id": w.ItemID(int32(i))})
			}
		}
		_ = json.NewEncoder(rw).Encode(map[string]any{"recommendation_id": "r", "checkpoint_version": "c", "items": items})
	}))
	defer server.Close()
	until := cfg.Start.AddDate(0, 0, 1)
	views := 0
	ranked := w.Clone()
	if err := ranked.Run(ranked.Remote(t.Context(), server.URL, "Bearer secret", time.Minute, ranked.Random()), 3, until, func(e *onerecv1.ViewEvent) bool {
		if views++; e.RecommendationId != "" || e.CheckpointVersion != "" {
			t.Errorf("a view of the other policy says %q, %q", e.RecommendationId, e.CheckpointVersion)
		}
		return true
	}); err != nil || views == 0 {
		t.Fatalf("%d views, %v", views, err)
	}
	empty, views = false, 0
	shown := make(map[string]bool)
	session := ""
	clone := w.Clone()
	if err := clone.Run(clone.Remote(t.Context(), server.URL+"/", "Bearer secret", time.Minute, nil), 3, until, func(e *onerecv1.ViewEvent) bool {
		if views++; e.RecommendationId != "r" || e.CheckpointVersion != "c" {
			t.Errorf("a view says %q, %q", e.RecommendationId, e.CheckpointVersion)
		}
		if id := e.EventId[:strings.LastIndex(e.EventId, "-")]; shown[id+e.ItemId] {
			t.Errorf("item %s twice in session %s, after %s", e.ItemId, id, session)
		} else {
			session, shown[id+e.ItemId] = id, true
		}
		return true
	}); err != nil || views == 0 {
		t.Fatalf("%d views, %v", views, err)
	}
	server.Config.Handler = http.NotFoundHandler()
	if err := w.Run(w.Remote(t.Context(), server.URL, "", time.Minute, nil), 3, until, func(*onerecv1.ViewEvent) bool { return true }); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("a server that has no such path: %v", err)
	}
}

// TestRemoteInsists: a recommender that can't be reached or is too busy is asked again, at growing pauses, until
// patience ends; what asking again would not mend is not asked again, and whoever is told to stop does.
func TestRemoteInsists(t *testing.T) {
	away := errors.New("away")
	for name, c := range map[string]struct {
		answers  int  // the first request that is answered; 0: none
		never    bool // asking again would not mend it
		patience time.Duration
		stop     time.Duration // after which the caller is told to stop; 0: never
		stopWith int           // the request during which it is; 0: none

		asked int
		took  time.Duration
		err   string
	}{
		"there at once":       {answers: 1, patience: 10 * time.Second, asked: 1},
		"there again":         {answers: 8, patience: 10 * time.Second, asked: 8, took: 7100 * time.Millisecond}, // 0.1, 0.2, 0.4, 0.8, 1.6, 2, 2 s
		"away for long":       {patience: 10 * time.Second, asked: 9, took: 9100 * time.Millisecond, err: "after 9.1s: away"},
		"no patience":         {asked: 1, err: "away"},
		"not to be had":       {never: true, patience: 10 * time.Second, asked: 1, err: "away"},
		"stopped in a pause":  {patience: 10 * time.Second, stop: time.Second, asked: 4, took: time.Second, err: "after 1s: context canceled"},
		"stopped as it asked": {patience: 10 * time.Second, stopWith: 2, asked: 2, took: 100 * time.Millisecond, err: "after 100ms: context canceled"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if c.stop > 0 {
					time.AfterFunc(c.stop, cancel)
				}
				begun, asked := time.Now(), 0
				_, err := insist(ctx, c.patience, func() (remoteAnswer, error) {
					switch asked++; asked {
					case c.answers:
						return remoteAnswer{}, nil
					case c.stopWith:
						cancel()
					}
					if c.never {
						return remoteAnswer{}, backoff.Permanent(away)
					}
					return remoteAnswer{}, away
				})
				if asked != c.asked || time.Since(begun) != c.took || (err == nil) != (c.err == "") || err != nil && err.Error() != c.err {
					t.Errorf("asked %d times in %v: %v; want %d in %v: %s", asked, time.Since(begun), err, c.asked, c.took, c.err)
				}
			})
		})
	}
}
