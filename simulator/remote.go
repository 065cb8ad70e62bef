package simulator

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// Remote asks a running recommender what to show: url is where it listens, like
// http://127.0.0.1:8080. It is asked for the user alone, as an app would ask: what the user has watched
// it knows from the views, some moments later, so what the session has had already is passed over here.
// A header of authorization may be empty. While the recommender has nothing to show, as before the first
// views, otherwise does. One that can't be reached or is too busy is asked again until it has not answered
// for the time of patience; that, and an answer that asking again would not change, is an error.
func (w *World) Remote(ctx context.Context, url, authorization string, patience time.Duration, otherwise Policy) Policy {
	client := &http.Client{Timeout: 10 * time.Second}
	url = strings.TrimSuffix(url, "/") + "/v1/recommendations"
	return PolicyFunc(func(v Visit, n int) (List, error) {
		// Few more than n, in case that the latest views are not known there yet.
		body, err := json.Marshal(map[string]any{"user_id": v.User, "mode": "next", "n": min(n+len(v.Session), 100)})
		if err != nil {
			return List{}, err
		}
		answer, err := insist(ctx, patience, func() (remoteAnswer, error) { return post(ctx, client, url, authorization, body) })
		if err != nil {
			return List{}, err
		}
		list := List{RecommendationID: answer.RecommendationID, CheckpointVersion: answer.CheckpointVersion}
		for _, it := range answer.Items {
			if at, ok := w.number[it.ItemID]; ok && len(list.Items) < n && !slices.Contains(v.Session, at) {
				list.Items = append(list.Items, at)
			}
		}
		if len(list.Items) == 0 && otherwise != nil {
			return otherwise.Recommend(v, n)
		}
		return list, nil
	})
}

// remoteAnswer is the part of the recommender's answer that counts here.
type remoteAnswer struct {
	RecommendationID  string `json:"recommendation_id"`
	CheckpointVersion string `json:"checkpoint_version"`
	Items             []struct {
		ItemID string `json:"item_id"`
	} `json:"items"`
}

// insist asks, at pauses that double, until there is an answer, a permanent error, or no patience left.
func insist(ctx context.Context, patience time.Duration, ask backoff.Operation[remoteAnswer]) (remoteAnswer, error) {
	begun := time.Now()
	a, err := backoff.Retry(ctx, ask,
		backoff.WithBackOff(&backoff.ExponentialBackOff{InitialInterval: 100 * time.Millisecond, Multiplier: 2, MaxInterval: 2 * time.Second}),
		backoff.WithMaxElapsedTime(max(patience, 1))) // 0 would be for ever
	if waited := time.Since(begun).Round(time.Millisecond); err != nil && waited > 0 {
		err = fmt.Errorf("after %v: %w", waited, err)
	}
	return a, err
}

// post asks once. An error that asking again would not mend is permanent.
func post(ctx context.Context, client *http.Client, url, authorization string, body []byte) (a remoteAnswer, err error) {
	const most = 1 << 20
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return a, backoff.Permanent(fmt.Errorf("the recommender's address: %w", err))
	}
	req.Header.Set("Content-Type", "application/json")
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	resp, err := client.Do(req)
	if err != nil {
		return a, fmt.Errorf("ask the recommender: %w", err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, most))
	if err != nil {
		return a, fmt.Errorf("read the recommender's answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		err := fmt.Errorf("the recommender at %s answers %s: %.200s", url, resp.Status, data)
		switch resp.StatusCode {
		case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			return a, err
		}
		return a, backoff.Permanent(err)
	}
	if err := json.Unmarshal(data, &a); err != nil {
		return a, backoff.Permanent(fmt.Errorf("the recommender at %s: %w", url, err))
	}
	return a, nil
}
