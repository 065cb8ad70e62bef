package simulator

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

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
			rw.WriteHeader(http.StatusTooManyRequests)
			return
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
	if err := ranked.Run(ranked.Remote(t.Context(), server.URL, "Bearer secret", ranked.Random()), 3, until, func(e *onerecv1.ViewEvent) bool {
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
	if err := clone.Run(clone.Remote(t.Context(), server.URL+"/", "Bearer secret", nil), 3, until, func(e *onerecv1.ViewEvent) bool {
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
	if err := w.Run(w.Remote(t.Context(), server.URL, "", nil), 3, until, func(*onerecv1.ViewEvent) bool { return true }); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("a server that has no such path: %v", err)
	}
}
