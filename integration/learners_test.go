package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"onerec/publisher"
	"onerec/recommender"
	"onerec/schemas"
	"onerec/schemas/onerecv1"
)

// learners are the services behind the filter, learning from sessions that a test writes.
type learners struct {
	c                    *cluster
	checkpoints          string // where the services write them
	train, reward, serve *service
	producer             *kgo.Client
	adm                  *kadm.Client
	rng                  *rand.Rand
	sent                 int
}

// newLearners starts the filter and the learning services and waits for a first round.
func newLearners(c *cluster, checkpoints string) *learners {
	c.t.Helper()
	c.tool("topics", "create", "--partitions", "2")
	l := &learners{
		c: c, checkpoints: checkpoints, rng: rand.New(rand.NewPCG(12, 1)),
		producer: c.client(kgo.DefaultProduceTopic(schemas.TopicSessions)), adm: kadm.NewClient(c.client()),
	}
	learn := []string{"--checkpoints", checkpoints, "--batch-tokens", "1024", "--holdout-percent", "20"}
	with := func(args ...string) []string { return append(args, learn...) }
	c.launch("filter").ready()
	l.feed(300)
	l.train = c.launch(with("train", "--instance", "one", "--static-membership", "--bootstrap-sessions", "100", "--publish-every", "1s", "--train-history", "8", "--replay-ratio", "1")...)
	l.reward = c.launch(with("reward", "--instance", "one", "--static-membership", "--reward-every", "1s", "--align-users", "10", "--candidates", "8", "--candidate-items", "3", "--reward-epochs", "1")...)
	l.serve = c.launch("serve", "--checkpoints", checkpoints)
	eventually(c.t, "a round is recorded", func() error { return l.roundsAfter(0) })
	eventually(c.t, "a model answers", l.answers)
	return l
}

// feed writes n sessions that pass the rules.
func (l *learners) feed(n int) {
	t := l.c.t
	t.Helper()
	for range n {
		start := int64(1_700_000_000_000) + int64(l.sent)*60_000
		s := &onerecv1.Session{SessionId: fmt.Sprintf("%032x", l.sent), UserId: fmt.Sprint("u", l.rng.IntN(100)), StartMs: start, ClosedBy: onerecv1.ClosedBy_CLOSED_BY_GAP}
		first := l.rng.IntN(100) // who watches an item watches the next ones too
		for i := range 8 {
			like := i%3 == 0
			s.Views = append(s.Views, &onerecv1.View{
				EventId: fmt.Sprint("e", l.sent, "-", i), ItemId: fmt.Sprint("i", (first+i)%100), EventTimeMs: start + int64(i)*30_000,
				WatchMs: 25_000, DurationMs: 30_000, Like: like,
			})
			s.TotalWatchMs += 25_000
			if like {
				s.Likes++
			}
		}
		s.EndMs = s.Views[7].EventTimeMs
		l.sent++
		value, err := proto.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		l.producer.Produce(t.Context(), &kgo.Record{Key: []byte(s.UserId), Value: value}, func(_ *kgo.Record, err error) {
			if err != nil && !t.Failed() {
				t.Errorf("the test's own producer: %v", err)
			}
		})
	}
	if err := l.producer.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// rounds returns the rounds that were recorded.
func (l *learners) rounds() (rounds []*onerecv1.AlignmentRound, err error) {
	err = l.c.stream().ReadTopic(l.c.t.Context(), schemas.TopicRounds, func(r *kgo.Record) error {
		round := new(onerecv1.AlignmentRound)
		rounds = append(rounds, round)
		return proto.Unmarshal(r.Value, round)
	})
	return rounds, err
}

// roundsAfter says whether there are more than n rounds.
func (l *learners) roundsAfter(n int) error {
	rounds, err := l.rounds()
	if err == nil && len(rounds) <= n {
		err = fmt.Errorf("%d rounds are recorded", len(rounds))
	}
	return err
}

// candidate returns the newest one that was announced.
func (l *learners) candidate() (*onerecv1.CheckpointRef, error) {
	refs, err := publisher.Current(l.c.t.Context(), l.c.stream(), "default")
	if err != nil {
		return nil, err
	}
	if refs[publisher.ChannelCandidate] == nil {
		return nil, errors.New("no candidate is announced")
	}
	return refs[publisher.ChannelCandidate], nil
}

// answers says whether a model answers.
func (l *learners) answers() error {
	_, err := modelAnswer(l.c.t, l.serve.api, `{"user_id":"u1","n":3}`)
	return err
}

// modelAnswer asks serve with a body that wants three items, and says why if no model
// answers with them.
func modelAnswer(t *testing.T, api, body string) (answer recommender.Answer, err error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+api+"/v1/recommendations", strings.NewReader(body))
	if err != nil {
		return answer, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+apiToken)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return answer, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return answer, err
	}
	if answer.Source != "model" || len(answer.Items) != 3 {
		return answer, fmt.Errorf("answer %+v", answer)
	}
	return answer, nil
}

// learned says whether a candidate has learned from every good session that there is.
func (l *learners) learned(fetch func() error) error {
	ref, err := l.candidate()
	if err != nil {
		return err
	}
	if err := fetch(); err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(l.c.mount, "checkpoints", "versions", ref.Version, "manifest.json"))
	if err != nil {
		return err
	}
	var m publisher.Manifest
	if err := json.Unmarshal(text, &m); err != nil {
		return err
	}
	var at int64
	for _, next := range m.Offsets[schemas.TopicGoodSessions] {
		at += next
	}
	// The filter's transaction markers take offsets too, so that sessions are counted.
	sessions, behind := 0, 0
	if err := l.c.stream().ReadTopic(l.c.t.Context(), schemas.TopicGoodSessions, func(r *kgo.Record) error {
		sessions++
		if r.Offset >= m.Offsets[schemas.TopicGoodSessions][r.Partition] {
			behind++
		}
		return nil
	}); err != nil {
		return err
	}
	if sessions != l.sent || behind > 0 {
		return fmt.Errorf("%s has learned from all but %d of %d sessions, of %d that were sent", ref.Version, behind, sessions, l.sent)
	}
	return nil
}

// check: everything was learned, every version is whole, each comes from one that was
// there before it, and no round released anything twice.
func (l *learners) check(fetch func() error) {
	t := l.c.t
	t.Helper()
	eventually(t, "the newest candidate has learned from every session", func() error { return l.learned(fetch) })
	if out, err := command(t.Context(), t, "checkpoints", "verify", "--checkpoints", filepath.Join(l.c.mount, "checkpoints")).CombinedOutput(); err != nil {
		t.Errorf("checkpoints verify: %v\n%s", err, out)
	}
	store, err := publisher.Open(t.Context(), filepath.Join(l.c.mount, "checkpoints"), publisher.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	versions, err := store.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	known, roots := map[string]bool{}, 0
	for _, v := range versions {
		m, _, err := store.Manifest(t.Context(), v, "")
		if err != nil {
			t.Fatal(err)
		}
		if m.Parent == "" {
			roots++
		} else if !known[m.Parent] {
			t.Errorf("%s comes from %s, which was not there", v, m.Parent)
		}
		known[v] = true
	}
	if roots != 1 {
		t.Errorf("%d models began anew", roots)
	}
	rounds, err := l.rounds()
	if err != nil {
		t.Fatal(err)
	}
	released, accepted := map[string]bool{}, 0
	for _, r := range rounds {
		if r.Published == "" {
			continue
		}
		if accepted++; released[r.Published] || !known[r.Published] {
			t.Errorf("round %d released %s, which another did or nobody has", r.Round, r.Published)
		}
		released[r.Published] = true
	}
	t.Logf("%d sessions, %d versions, %d rounds, %d accepted", l.sent, len(versions), len(rounds), accepted)
}

// TestKillTheLearners: kill -9 of the trainer, the rewarder and the server while sessions
// come, at three moments each.
func TestKillTheLearners(t *testing.T) {
	c := start(t, 1)
	l := newLearners(c, filepath.Join(c.mount, "checkpoints"))
	here := func() error { return nil }
	moment := time.NewTimer(0)
	kill := func(svc *service) time.Time {
		l.feed(70)
		moment.Reset(time.Duration(l.rng.IntN(1500)) * time.Millisecond)
		<-moment.C // where in a step, a publish or a round it is, is up to chance
		svc.kill()
		// Enough for a step in any case: the last one may have trained on more rows than had
		// been paid for.
		l.feed(100)
		return time.Now()
	}
	<-moment.C
	for round := range 3 {
		killed := kill(l.train)
		before, err := l.candidate()
		if err != nil {
			t.Fatal(err)
		}
		l.train.again()
		eventually(t, "a newer candidate is announced", func() error {
			ref, err := l.candidate()
			if err == nil && ref.Version <= before.Version {
				err = fmt.Errorf("the newest is %s", ref.Version)
			}
			return err
		})
		t.Logf("round %d: train was killed; a newer candidate came after %.1f s", round+1, time.Since(killed).Seconds())

		killed = kill(l.reward)
		rounds, err := l.rounds()
		if err != nil {
			t.Fatal(err)
		}
		l.reward.again()
		eventually(t, "another round is recorded", func() error { return l.roundsAfter(len(rounds)) })
		t.Logf("round %d: reward was killed; the next round was recorded after %.1f s", round+1, time.Since(killed).Seconds())

		l.serve.kill()
		killed = time.Now()
		l.serve.again()
		eventually(t, "a model answers", l.answers)
		t.Logf("round %d: serve was killed; a model answers after %.1f s", round+1, time.Since(killed).Seconds())
	}
	l.check(here)
}

// TestDiskIsFullUnderCheckpoints: the trainer can't write checkpoints for a while; it
// trains on, the server serves on, and with room again everything is in the next one.
func TestDiskIsFullUnderCheckpoints(t *testing.T) {
	c := startWith(t, 1, setup{volume: smallVolume(t, 512<<20)})
	needBroker(t, c)
	l := newLearners(c, small+"/checkpoints")
	fetch := func() error {
		_, err := c.shell(fmt.Sprintf("rm -rf %[2]s && cp -r %[1]s/checkpoints %[2]s && chmod -R a+rwX %[2]s", small, filepath.Join(c.mount, "checkpoints")))
		return err
	}
	l.reward.stop() // it would take the room that is made
	if out, err := c.shell("dd if=/dev/zero of=" + small + "/filler bs=64k; dd if=/dev/zero of=" + small + "/rest bs=1k"); err == nil {
		t.Fatalf("the disk is not full: %s", out)
	}
	l.feed(200)
	eventually(t, "the trainer counts a checkpoint that could not be written", func() error {
		code, metrics := get(t, l.train.http, "/metrics")
		if code != http.StatusOK || !strings.Contains(metrics, "\nonerec_train_checkpoints_failed_total ") || strings.Contains(metrics, "\nonerec_train_checkpoints_failed_total 0\n") {
			return errors.New("not yet")
		}
		return nil
	})
	if err := l.answers(); err != nil {
		t.Errorf("meanwhile: %v", err)
	}
	if state, err := l.train.State(context.Background()); err != nil || !state.Running {
		t.Errorf("the trainer has ended: %+v, %v", state, err)
	}
	l.feed(100)
	if _, err := c.shell("rm " + small + "/filler " + small + "/rest"); err != nil {
		t.Fatal(err)
	}
	freed := time.Now()
	eventually(t, "the newest candidate has learned from every session", func() error { return l.learned(fetch) })
	t.Logf("everything was in a checkpoint %.1f s after there was room again", time.Since(freed).Seconds())
	l.check(fetch)
}
