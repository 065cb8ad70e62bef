// Package schemas holds the contracts that teams rely on: the Protobuf messages
// (schemas/onerec/v1, generated Go in schemas/onerecv1), the topics that carry
// them, and the rules that every view must keep.
//
// A topic is data here, not configuration somewhere else: [Topics] says who
// writes it, who reads it, by what key it is partitioned and how long it lives,
// and "onerec topics create" applies exactly that.
//
// # Partitions
//
// Topics whose key is the user are co-partitioned: they have the same number of
// partitions, and what a stage writes about a record of partition p goes to
// partition p. A user therefore keeps one order from end to end, also when
// ingest replaces the user id by a pseudonym, whose own hash would differ.
package schemas

//go:generate sh -c "cd .. && go run github.com/bufbuild/buf/cmd/buf@v1.75.0 generate"

import (
	_ "embed"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"

	"onerec/schemas/onerecv1"
)

// Source is the Protobuf source of every contract.
//
//go:embed onerec/v1/onerec.proto
var Source string

// MessageIndex returns the place of a message, by its full name, in [Source].
func MessageIndex(message string) (int, bool) {
	name, ours := strings.CutPrefix(message, "onerec.v1.")
	if !ours {
		return 0, false
	}
	m := onerecv1.File_onerec_v1_onerec_proto.Messages().ByName(protoreflect.Name(name))
	if m == nil {
		return 0, false
	}
	return m.Index(), true
}

// Names of the topics.
const (
	TopicViewsRaw       = "views.raw"
	TopicViews          = "views"
	TopicDeadLetters    = "views.dlq"
	TopicLateViews      = "views.late"
	TopicSessions       = "sessions"
	TopicSessionState   = "sessionizer.state"
	TopicJudgedSessions = "sessions.judged"
	TopicGoodSessions   = "sessions.good"
	TopicItems          = "items"
	TopicCheckpoints    = "checkpoints"
	TopicRounds         = "rounds"
)

// Headers of records, all UTF-8.
const (
	// HeaderContentType names the encoding of a value on views.raw:
	// [ContentTypeJSON], or Protobuf when absent.
	HeaderContentType = "content-type"
	// HeaderProducer names the program that sent an event, for the counter of
	// rejects; optional.
	HeaderProducer = "onerec-producer"
	// HeaderWatermark marks a control record on views: its value, decimal
	// milliseconds since the epoch, is a promise that no older view follows on
	// this partition. A bounded input ends with one; see "onerec replay".
	HeaderWatermark = "onerec-watermark"

	// HeaderReplayed marks a record on views.raw that came back from the dead-letter
	// topic: where it was there, as topic/partition/offset.
	HeaderReplayed = "onerec-replayed-from"

	// Headers of a dead letter; the value is the original's, byte for byte.
	HeaderReason    = "onerec-reason"    // the rule that failed, e.g. "no_user"
	HeaderError     = "onerec-error"     // what was wrong, for a person
	HeaderTopic     = "onerec-topic"     // where the original was
	HeaderPartition = "onerec-partition" // decimal
	HeaderOffset    = "onerec-offset"    // decimal
	HeaderTime      = "onerec-time"      // when it was refused, RFC 3339
)

// ContentTypeJSON says that a value on views.raw is a ViewEvent as JSON.
const ContentTypeJSON = "application/json"

// Topic is the contract of one Kafka topic.
type Topic struct {
	Name      string
	Message   string        // the Protobuf message of a value
	Key       string        // what the key holds
	ByUser    bool          // keyed by user: co-partitioned with the other such topics
	Compacted bool          // the newest record of a key is kept for ever
	Retention time.Duration // 0 for a compacted topic
	Owner     string
	Producers []string
	Consumers []string
	Doc       string
}

const day = 24 * time.Hour

// Topics returns the contract of every topic, in the order of the flow.
func Topics() []Topic {
	return []Topic{
		{Name: TopicViewsRaw, Message: "onerec.v1.ViewEvent", Key: "user_id", ByUser: true, Retention: 7 * day, Owner: "product", Producers: []string{"players"}, Consumers: []string{"ingest"}, Doc: "What players report, as Protobuf or JSON."},
		{Name: TopicViews, Message: "onerec.v1.View", Key: "user_id", ByUser: true, Retention: 7 * day, Owner: "ingest", Producers: []string{"ingest"}, Consumers: []string{"sessionize", "serve"}, Doc: "Views that passed every rule, with pseudonyms if configured."},
		{Name: TopicDeadLetters, Message: "(the original's bytes)", Key: "as received", ByUser: true, Retention: 30 * day, Owner: "ingest", Producers: []string{"ingest"}, Consumers: []string{"snapshot"}, Doc: "What ingest refused; the headers say why and where it was."},
		{Name: TopicLateViews, Message: "onerec.v1.View", Key: "user_id", ByUser: true, Retention: 30 * day, Owner: "sessionize", Producers: []string{"sessionize"}, Doc: "Views that came after their session had closed."},
		{Name: TopicSessionState, Message: "onerec.v1.UserState", Key: "user_id, or that with the number of an addition", ByUser: true, Compacted: true, Owner: "sessionize", Producers: []string{"sessionize"}, Consumers: []string{"sessionize"}, Doc: "The sessionizer's changelog: open sessions and histories, whole or by addition."},
		{Name: TopicSessions, Message: "onerec.v1.Session", Key: "user_id", ByUser: true, Retention: 30 * day, Owner: "sessionize", Producers: []string{"sessionize"}, Consumers: []string{"filter"}, Doc: "Closed sessions, each with the user's history as of its start."},
		{Name: TopicJudgedSessions, Message: "onerec.v1.JudgedSession", Key: "user_id", ByUser: true, Retention: 30 * day, Owner: "filter", Producers: []string{"filter"}, Consumers: []string{"snapshot", "reward"}, Doc: "Every session with its verdict."},
		{Name: TopicGoodSessions, Message: "onerec.v1.GoodSession", Key: "user_id", ByUser: true, Retention: 30 * day, Owner: "filter", Producers: []string{"filter"}, Consumers: []string{"train"}, Doc: "Sessions worth imitating."},
		{Name: TopicItems, Message: "onerec.v1.Item", Key: "item_id", Compacted: true, Owner: "product", Producers: []string{"catalogue"}, Consumers: []string{"train", "reward", "serve"}, Doc: "What is known of videos: attributes, embeddings, whether they may be recommended. Optional: without it embeddings are learned from sessions."},
		{Name: TopicCheckpoints, Message: "onerec.v1.CheckpointRef", Key: "model/channel", Compacted: true, Owner: "publisher", Producers: []string{"train", "reward", "checkpoints"}, Consumers: []string{"train", "reward", "serve"}, Doc: "The current version of each model and channel."},
		{Name: TopicRounds, Message: "onerec.v1.AlignmentRound", Key: "model", Retention: 365 * day, Owner: "reward", Producers: []string{"reward"}, Consumers: []string{"reward"}, Doc: "Every DPO round, released or not, with its figures."},
	}
}

// Settings returns the topic's Kafka settings as "onerec topics create" applies
// them.
func (t Topic) Settings() map[string]string {
	if t.Compacted {
		return map[string]string{"cleanup.policy": "compact"}
	}
	return map[string]string{
		"cleanup.policy": "delete",
		"retention.ms":   strconv.FormatInt(t.Retention.Milliseconds(), 10),
	}
}

// Partitions returns how many partitions the topic has when topics keyed by
// user have userPartitions: that many, or 1 for the others, whose records must
// keep one order.
func (t Topic) Partitions(userPartitions int) int32 {
	if t.ByUser {
		return int32(userPartitions)
	}
	return 1
}
