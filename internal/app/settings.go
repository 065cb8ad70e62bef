// Package app wires the services from settings. The binary, the demo and the
// integration tests all run what is built here, so none of them runs something
// else than the others.
package app

import (
	"fmt"
	"log/slog"
	"os"
	"time"

	"onerec/decoder"
	"onerec/filters"
	"onerec/ingest"
	"onerec/internal/config"
	"onerec/internal/history"
	"onerec/publisher"
	"onerec/recommender"
	"onerec/rewarder"
	"onerec/schemas"
	"onerec/semanticid"
	"onerec/sessionizer"
	"onerec/simulator"
	"onerec/trainer"
)

// Groups of settings; a command has the flags of those that it needs.
const (
	GroupCommon      = "common"
	GroupService     = "service" // of every process that runs until it is stopped
	GroupMember      = "member"  // of services that a consumer group shares work out to, or lets one lead
	GroupStage       = "stage"   // of ingest, sessionize and filter
	GroupModel       = "model"
	GroupGap         = "gap"
	GroupLearn       = "learn" // of train and reward
	GroupLog         = "log"
	GroupTopics      = "topics"
	GroupCheckpoints = "checkpoints"
	GroupIngest      = "ingest"
	GroupSessionize  = "sessionize"
	GroupHistory     = "history"
	GroupFilter      = "filter"
	GroupSnapshots   = "snapshots" // of what reads or writes them
	GroupFiles       = "files"     // of what writes them
	GroupSnapshot    = "snapshot"
	GroupTrain       = "train"
	GroupRows        = "rows" // how a session becomes rows
	GroupBackfill    = "backfill"
	GroupDamaged     = "damaged" // of what reads sessions from snapshots
	GroupReward      = "reward"
	GroupServe       = "serve"
	GroupConsole     = "console"
	GroupSimulate    = "simulate"
)

// Settings are all settings of all services.
type Settings struct {
	Brokers             []string
	HTTP, HTTPTokens    string
	TracesEndpoint      string
	TracesShare         float64
	Instance            string
	Static              bool
	Security            Security
	SchemaRegistry      string
	RegisterSchemas     bool
	CommitInterval      time.Duration
	Model               string
	LogLevel, LogFormat string

	Partitions, Replication int
	Bucket                  string
	Auth                    recommender.Auth
	CanaryPercent           float64
	MaxWait, RequestTimeout time.Duration
	MaxModelAge, MaxViewAge time.Duration
	SignKeyFile             string
	TrustKeyFiles           []string
	KeepCheckpoints         int
	KeepCheckpointsFor      time.Duration

	PseudonymKeyFile string
	Bounds           schemas.Bounds

	Sessions sessionizer.Config
	Idle     time.Duration
	History  history.Policy

	RulesFile string

	FromSnapshots, SnapshotsSince string
	SkipDamaged                   bool
	SnapshotDir                   string
	SnapshotSize                  int // MiB
	SnapshotMemory                int // MiB
	SnapshotAge                   time.Duration
	SnapshotDead                  bool

	Train        trainer.Config
	Bootstrap    int
	PublishSteps int
	PublishEvery time.Duration

	Reward            rewarder.CoreConfig
	RewardReports     string
	Align             rewarder.AlignConfig
	RewardEvery       time.Duration
	RewardNewSessions int
	Rounds            int

	Console Console

	Listen             string
	Channel            string
	Beams              int
	Numbers            string
	MaxUsers, MaxItems int
	HistoryCache       int // MiB

	Simulate simulator.Config
}

// Defaults returns the default settings.
func Defaults() *Settings {
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	return &Settings{
		Brokers: []string{"127.0.0.1:9092"}, Instance: host, Model: "default", LogLevel: "info", LogFormat: "text",
		Partitions: 8, Replication: 1, Bucket: "checkpoints", MaxWait: 200 * time.Millisecond, RequestTimeout: 5 * time.Second, CanaryPercent: 5, KeepCheckpoints: 30, KeepCheckpointsFor: 24 * time.Hour, Bounds: schemas.DefaultBounds(),
		Security: Security{SASL: saslNone}, RegisterSchemas: true,
		CommitInterval: 100 * time.Millisecond, TracesShare: 0.001,
		Sessions: sessionizer.DefaultConfig(), Idle: time.Minute, History: history.DefaultPolicy(),
		SnapshotDir: "snapshots", SnapshotSize: 64, SnapshotMemory: 256, SnapshotAge: time.Minute, SnapshotDead: true,
		Train: trainer.DefaultConfig(), Bootstrap: 2000, PublishSteps: 500, PublishEvery: 30 * time.Second,
		Reward: rewarder.DefaultCoreConfig(), Align: rewarder.DefaultAlignConfig(), RewardEvery: 10 * time.Minute, Rounds: 1,
		Console: Console{Listen: "127.0.0.1:8090"},
		Listen:  "127.0.0.1:8080", Channel: publisher.ChannelReleased, Beams: 32, Numbers: decoder.Int16.String(), MaxUsers: 1_000_000, MaxItems: 5_000_000, HistoryCache: 256,
		Simulate: simulator.DefaultConfig(),
	}
}

// Register binds every setting to a set, with its bounds and documentation.
func (s *Settings) Register(c *config.Set) {
	const year = 365 * 24 * time.Hour
	c.Strings(GroupCommon, "brokers", &s.Brokers, "Kafka brokers, host:port separated by commas")
	c.Bool(GroupCommon, "tls", &s.Security.TLS, "speak TLS with the brokers")
	c.String(GroupCommon, "tls-ca", &s.Security.CAFile, "file with the brokers' CA certificates in PEM; empty: the system's")
	c.String(GroupCommon, "tls-cert", &s.Security.CertFile, "file with this client's certificate in PEM; empty: none")
	c.String(GroupCommon, "tls-key", &s.Security.KeyFile, "file with its key in PEM")
	c.String(GroupCommon, "sasl", &s.Security.SASL, "how to sign in at the brokers", saslNone, scram512, scram256, saslPlain)
	c.String(GroupCommon, "sasl-user", &s.Security.User, "user to sign in as")
	c.String(GroupCommon, "sasl-password-file", &s.Security.PasswordFile, "file with the user's password")
	c.String(GroupCommon, "schema-registry", &s.SchemaRegistry, "URL of a schema registry (Confluent's API); values are then written in its wire format, and read with it or without; empty: none")
	c.Bool(GroupCommon, "register-schemas", &s.RegisterSchemas, "register our schemas with the schema registry; without it they must be there, as <topic>-value")
	c.String(GroupService, "http", &s.HTTP, "address of /healthz, /readyz, /metrics and /debug/pprof, e.g. :9464; empty: none")
	c.String(GroupService, "http-tokens", &s.HTTPTokens, "file with the bearer tokens that may read /metrics and /debug/pprof from other machines, one a line; empty: nobody may")
	c.String(GroupStage, "traces-endpoint", &s.TracesEndpoint, "URL of an OpenTelemetry collector (OTLP by HTTP), e.g. http://collector:4318; empty: no traces")
	c.Float(GroupStage, "traces-share", &s.TracesShare, 0, 1, "share of the views that come without a trace and get one from ingest; traces that come with a view go on")
	c.String(GroupMember, "instance", &s.Instance, "name of this process within its service; stable across restarts, it lets a restarted process fence its former self at once")
	c.Bool(GroupMember, "static-membership", &s.Static, "keep the partitions, or the lead, for a restarted process of the same --instance, instead of moving them")
	c.Duration(GroupStage, "commit-interval", &s.CommitInterval, 0, 30*time.Second, "how long a transaction takes up records before it is committed: longer for more records a second, shorter for readers who wait less")
	c.String(GroupModel, "model", &s.Model, "name of the model that checkpoints belong to")
	c.String(GroupLog, "log-level", &s.LogLevel, "least level that is logged", "debug", "info", "warn", "error")
	c.String(GroupLog, "log-format", &s.LogFormat, "format of logs", "text", "json")

	c.Int(GroupTopics, "partitions", &s.Partitions, 1, 10_000, "partitions of the topics keyed by user")
	c.Int(GroupTopics, "replication", &s.Replication, 1, 15, "replicas of each partition")

	c.String(GroupCheckpoints, "checkpoints", &s.Bucket, "bucket of the checkpoints: a folder, or a URL as s3://bucket?region=..., gs://bucket, azblob://container, file:///path; with prefix=a/ a part of it")
	c.String(GroupCheckpoints, "checkpoint-sign-key", &s.SignKeyFile, "file with the ed25519 key (PEM) that signs what is published; empty: nothing is signed")
	c.Strings(GroupCheckpoints, "checkpoint-trust-keys", &s.TrustKeyFiles, "files with the public keys (PEM) by one of which a checkpoint must be signed to be loaded; none: signatures are not looked at")
	c.Int(GroupLearn, "checkpoints-keep", &s.KeepCheckpoints, 0, 1_000_000, "newest checkpoints that are kept, beside those that a channel points at and their parents; older ones are removed after a publish; 0: all are kept")
	c.Duration(GroupLearn, "checkpoints-keep-for", &s.KeepCheckpointsFor, time.Minute, 10*year, "checkpoints younger than this are kept, too")

	c.String(GroupIngest, "pseudonym-key-file", &s.PseudonymKeyFile, "file with the keys of the HMAC that replaces user ids, one a line, later ones with the time from which they hold; empty: ids stay")
	c.Duration(GroupIngest, "max-watch", &s.Bounds.MaxWatch, time.Second, 30*24*time.Hour, "longest watch time of a view")
	c.Duration(GroupIngest, "max-duration", &s.Bounds.MaxDuration, time.Second, 30*24*time.Hour, "longest video")
	c.Duration(GroupIngest, "max-future", &s.Bounds.MaxFuture, 0, 24*time.Hour, "how far event time may lie ahead of the clock")

	c.Duration(GroupGap, "session-gap", &s.Sessions.Gap, time.Second, 7*24*time.Hour, "views at most this far apart belong to one session")
	c.Duration(GroupSessionize, "session-lateness", &s.Sessions.Lateness, 0, 7*24*time.Hour, "how far the watermark trails the newest view")
	c.Int(GroupSessionize, "session-max-views", &s.Sessions.MaxViews, 1, 100_000, "a session with so many views is closed")
	c.Duration(GroupSessionize, "session-max-age", &s.Sessions.MaxAge, time.Minute, 30*24*time.Hour, "a session that lasts so long is closed")
	c.Int(GroupSessionize, "session-max-users", &s.Sessions.MaxUsers, 1, 1_000_000_000, "users that a partition remembers; beyond it the one who is due first is closed and forgotten")
	c.Int(GroupSessionize, "session-max-open-views", &s.Sessions.MaxOpen, 1, 10_000_000, "views of one user that wait for the watermark; beyond it the user's first session is closed at once")
	c.Duration(GroupSessionize, "session-max-skew", &s.Sessions.MaxSkew, 0, 7*24*time.Hour, "how far ahead of the clock an event may be and still move the watermark")
	c.Duration(GroupSessionize, "idle-timeout", &s.Idle, time.Second, 24*time.Hour, "a partition without views for so long moves its watermark by the clock")

	c.Int(GroupHistory, "history-items", &s.History.MaxItems, 1, 10_000, "engaged items that a user's history holds")
	c.Duration(GroupHistory, "history-max-age", &s.History.MaxAge, time.Hour, 10*year, "items older than this, seen from the newest, leave the history")
	c.Duration(GroupHistory, "engaged-watch", &s.History.MinWatch, 0, 24*time.Hour, "a view this long, or of the whole video, is an engagement")

	c.String(GroupFilter, "rules", &s.RulesFile, "YAML file of the rules of a good session; empty: the paper's (5 views, 30 s, one engagement)")

	c.String(GroupSnapshots, "snapshots", &s.SnapshotDir, "folder or bucket (s3://, gs://, azblob://) of the Parquet snapshots")
	c.Int(GroupFiles, "snapshot-size", &s.SnapshotSize, 1, 1024, "MiB that a file is meant to have")
	c.Int(GroupSnapshot, "snapshot-memory", &s.SnapshotMemory, 1, 1<<20, "MiB of records that wait for their files at most")
	c.Bool(GroupSnapshot, "snapshot-dead-letters", &s.SnapshotDead, "write dead letters, too; they hold user ids as producers sent them")
	c.Duration(GroupSnapshot, "snapshot-age", &s.SnapshotAge, 100*time.Millisecond, 24*time.Hour, "longest time that a row waits for its file")

	t := &s.Train
	c.String(GroupBackfill, "from-snapshots", &s.FromSnapshots, "folder or bucket of snapshots that a new model learns first, before the stream; empty: none")
	c.String(GroupBackfill, "snapshots-since", &s.SnapshotsSince, "first day of them, YYYY-MM-DD; empty: all")
	c.Bool(GroupDamaged, "skip-damaged", &s.SkipDamaged, "leave files of the snapshots out that can't be read, rather than end")
	c.String(GroupTrain, "preset", &t.Preset, "size of the decoder", decoder.Presets()...)
	c.Int(GroupTrain, "levels", &t.Levels, 2, 8, "codes of a semantic ID")
	c.Int(GroupTrain, "codes", &t.Codes, 0, 1<<14, "values of a code; 0: as many as the headroom needs")
	c.Float(GroupTrain, "headroom", &t.Headroom, 0, semanticid.MaxHeadroom, "room in the codebook for items to come, as a share of those there are; 1: the catalogue can double")
	c.Float(GroupTrain, "rebuild-after", &t.RebuildAfter, 0, 1000, "growth of the catalogue, as a share, after which the codebook is built anew from the present one; 0: never")
	c.Float(GroupTrain, "rebuild-stick", &t.RebuildStick, 0, 100, "what an item gives to keep its codes then, as a share of the distortion")
	c.Int(GroupRows, "train-history", &t.History, 0, 1024, "items of history in a row")
	c.Int(GroupRows, "train-session", &t.Session, 1, 256, "items of a session in a row; longer sessions make several rows")
	c.Bool(GroupTrain, "compact-rows", &t.CompactRows, "rows without separators between items: fewer tokens to train on and to write")
	c.Int(GroupTrain, "user-buckets", &t.UserBuckets, 0, 1<<20, "buckets into which users are hashed, each with a token that begins their rows; 0: none")
	c.Int(GroupTrain, "embedding-dim", &t.EmbeddingDim, 2, 1024, "width of learned item embeddings")
	c.Int(GroupTrain, "embedding-window", &t.EmbeddingWindow, 1, 100, "items at most so many places apart occur together")
	c.Int(GroupLearn, "batch-tokens", &t.BatchTokens, 128, 1<<20, "tokens of a training step at most")
	c.Float(GroupTrain, "replay-ratio", &t.ReplayRatio, 1, 1000, "rows trained on for each row that arrives")
	c.Float(GroupTrain, "learning-rate", &t.LearningRate, 1e-7, 1, "highest learning rate")
	c.Int(GroupTrain, "warmup-steps", &t.WarmupSteps, 0, 1_000_000, "steps in which the learning rate rises")
	c.Float(GroupTrain, "weight-decay", &t.WeightDecay, 0, 1, "weight decay of AdamW")
	c.Float(GroupTrain, "dropout", &t.Dropout, 0, 0.9, "dropout of the residual branches")
	c.Float(GroupTrain, "embedding-dropout", &t.EmbeddingDropout, 0, 0.9, "dropout of the tokens' embeddings")
	c.Float(GroupRows, "history-weight", &t.HistoryWeight, 0, 1, "weight of the history's codes in the loss, against 1 for the session's")
	c.Float(GroupTrain, "average", &t.Average, 0, 0.99999, "decay, by step, of the moving average that is published")
	c.Int(GroupTrain, "replay-buffer", &t.Buffer, 1, 10_000_000, "rows of the replay buffer")
	c.Int(GroupLearn, "holdout-percent", &t.HoldoutPercent, 0, 50, "percent of users who are never trained on")
	c.Int(GroupTrain, "holdout-sessions", &t.MaxHoldout, 1, 1_000_000, "held-out rows that a candidate is measured on, the newest")
	c.Int(GroupTrain, "bootstrap-sessions", &s.Bootstrap, 1, 10_000_000, "good sessions from which the codebook and the first weights are made")
	c.Int(GroupTrain, "publish-steps", &s.PublishSteps, 1, 10_000_000, "steps after which a candidate is published")
	c.Duration(GroupTrain, "publish-every", &s.PublishEvery, time.Second, year, "time after which a candidate is published")
	c.Uint64(GroupLearn, "seed", &t.Seed, "seed of everything random in training and rounds")

	a := &s.Align
	c.Int(GroupReward, "reward-epochs", &s.Reward.Epochs, 1, 1000, "passes of a new reward model over the sessions")
	c.Float(GroupReward, "reward-learning-rate", &s.Reward.LearningRate, 1e-7, 1, "learning rate of the reward model")
	c.Bool(GroupReward, "second-reward-model", &s.Reward.Second, "learn a second reward model from other users, which must see a round's gain, too")
	c.String(GroupReward, "reward-reports", &s.RewardReports, "folder for each round's figures and a picture of the rewards before and after; empty: none, but in the demo")
	c.Duration(GroupReward, "reward-every", &s.RewardEvery, time.Second, year, "time between rounds")
	c.Int(GroupReward, "reward-new-sessions", &s.RewardNewSessions, 0, 1_000_000_000, "begin a round before its time when so many sessions are new; 0: never")
	c.Int(GroupReward, "rounds", &s.Rounds, 1, 1000, "rounds of a run with --once, and of the demo")
	c.Float(GroupReward, "align-user-percent", &a.UserPercent, 0, 100, "share of the training users for whom candidates are drawn in a round")
	c.Int(GroupReward, "align-users", &a.Users, 1, 1_000_000, "training users for whom candidates are drawn at least, as far as there are so many")
	c.Int(GroupReward, "align-held-out", &a.HeldOut, 1, 1_000_000, "held-out users on whom a round is judged, at most")
	c.Int(GroupReward, "candidates", &a.Candidates, 2, 1024, "candidate sessions for each user (N of the paper, 128 there)")
	c.Int(GroupReward, "candidate-items", &a.Length, 1, 100, "items of a candidate session (m of the paper, 5 there)")
	c.Float(GroupReward, "temperature", &a.Temperature, 0.01, 10, "temperature of sampled candidates")
	c.String(GroupReward, "align-pairs", &a.Pairing, "which candidates are compared: the best with the worst, or random ones with each other", rewarder.PairExtremes, rewarder.PairRandom)
	c.Int(GroupReward, "pairs-a-user", &a.PairsAUser, 1, 64, "pairs of a user; of extremes the best with so many of the worst")
	c.String(GroupReward, "align-loss", &a.Loss, "what is learned from a pair; best is fine-tuning on the best candidate alone", append(decoder.PreferenceLosses(), rewarder.LossBest)...)
	c.Float(GroupReward, "dpo-beta", &a.Beta, 1e-4, 100, "beta of the loss over pairs")
	c.Float(GroupReward, "dpo-lambda", &a.Lambda, 0, 1000, "weight of the loss over pairs against the next-token loss")
	c.Float(GroupReward, "label-smoothing", &a.Smoothing, 0, 0.49, "share of pairs that may be the wrong way round: with dpo this is cDPO, and rdpo needs it")
	c.Float(GroupReward, "simpo-gamma", &a.Gamma, 0, 100, "margin of simpo")
	c.Bool(GroupReward, "average-log-probabilities", &a.Average, "take means of log probabilities over codes, not sums")
	c.Float(GroupReward, "align-learning-rate", &a.LearningRate, 1e-8, 1, "learning rate of a round")
	c.Int(GroupReward, "align-epochs", &a.Epochs, 1, 100, "passes over a round's pairs")
	c.Float(GroupReward, "min-margin", &a.MinMargin, 0, 100, "least difference of reward within a pair; 1 is an ordinary session's reward")
	c.Float(GroupReward, "weight-watch", &a.Weights.Watch, 0, 1000, "weight of watch time in the reward")
	c.Float(GroupReward, "weight-like", &a.Weights.Like, 0, 1000, "weight of likes in the reward")
	c.Float(GroupReward, "weight-dislike", &a.Weights.Dislike, 0, 1000, "weight of dislikes against the reward; less than the others together")
	c.Float(GroupReward, "weight-completion", &a.Weights.Completion, 0, 1000, "weight of completion in the reward")
	c.Float(GroupReward, "max-loss-rise", &a.Gates.MaxLossRise, 0, 10, "gate: how much the held-out next-token loss may rise, relative to the reference's")
	c.Float(GroupReward, "max-kl", &a.Gates.MaxKL, 0, 1000, "gate: largest distance from the reference, nats a session")
	c.Float(GroupReward, "min-coverage", &a.Gates.MinCoverage, 0, 1, "gate: least share of different items among what is served, relative to the reference's")
	c.Float(GroupReward, "min-diversity", &a.Gates.MinDiversity, 0, 1, "gate: least diversity within lists, relative to the reference's")
	c.Float(GroupReward, "max-drop", &a.Gates.MaxDrop, 0, 1, "gate: how much any objective (watch time, likes, completion) may fall, relative to the reference's")
	c.Float(GroupReward, "max-dislikes", &a.Gates.MaxDislikes, 0, 100, "gate: how much predicted dislikes may rise, relative to those of the log")

	c.String(GroupServe, "listen", &s.Listen, "address of the recommendation API; beyond loopback only with tokens or client certificates")
	c.String(GroupServe, "listen-tokens", &s.Auth.TokenFile, "file with the bearer tokens that may ask, one a line; empty: no token is asked for")
	c.String(GroupServe, "listen-tls-cert", &s.Auth.CertFile, "file with the API's certificate in PEM: it speaks TLS")
	c.String(GroupServe, "listen-tls-key", &s.Auth.KeyFile, "file with its key in PEM")
	c.String(GroupServe, "listen-client-ca", &s.Auth.ClientCA, "file with CA certificates in PEM; clients need a certificate from one of them")
	c.Float(GroupServe, "canary-percent", &s.CanaryPercent, 0, 100, "share of the users who are served by what is on the canary channel")
	c.Duration(GroupServe, "max-wait", &s.MaxWait, time.Millisecond, time.Minute, "a request that would wait longer for others is turned away (503); of a user of whom nothing is kept, after three quarters of it")
	c.Duration(GroupServe, "request-timeout", &s.RequestTimeout, 10*time.Millisecond, 10*time.Minute, "time for all of a request")
	c.Duration(GroupServe, "max-model-age", &s.MaxModelAge, 0, 10*year, "not ready when the served checkpoint is older and releases are not held; 0: any age")
	c.Duration(GroupServe, "max-view-age", &s.MaxViewAge, 0, 10*year, "views that were written longer ago are not read at a start; 0: all that the topic holds")
	c.String(GroupServe, "channel", &s.Channel, "channel that is served; until it has a version, the newest candidate is", publisher.ChannelReleased, publisher.ChannelCandidate, publisher.ChannelCanary)
	c.Int(GroupServe, "beams", &s.Beams, 1, 1024, "width of the beam search")
	c.String(GroupServe, "numbers", &s.Numbers, "what searches compute in: int16 answers more requests a second and costs log probabilities less than TF32 would; int8 is for wide beams on processors with AVX-512 VNNI: yet more lists, and log probabilities a few times as far off as bfloat16 weights would make them", decoder.NumbersNames()...)
	c.Int(GroupServe, "max-users", &s.MaxUsers, 1, 1_000_000_000, "users whose history is kept")
	c.Int(GroupServe, "history-cache", &s.HistoryCache, 0, 1<<20, "MiB of what models made of the histories of the users who asked last, for when they come back, at most; 0: none")
	c.Int(GroupServe, "max-items", &s.MaxItems, 1, 1_000_000_000, "items whose popularity is counted, and items that may be withdrawn, each at most")

	k := &s.Console
	c.String(GroupConsole, "console-listen", &k.Listen, "address of the console; beyond loopback only with tokens")
	c.Strings(GroupConsole, "console-targets", &k.Targets, "admin endpoints of services, as filter=http://127.0.0.1:9466; a host with several addresses is as many processes")
	c.String(GroupConsole, "console-target-token", &k.TargetTokenFile, "file with the bearer token for them; empty: none")
	c.String(GroupConsole, "console-recommender", &k.Recommender, "URL of a recommender's API, for users and items; empty: none")
	c.String(GroupConsole, "console-recommender-token", &k.RecommenderTokenFile, "file with the bearer token for it; empty: none")
	c.String(GroupConsole, "console-viewer-tokens", &k.Auth.ViewerTokens, "file with the tokens that may look, one a line; empty, and no operator's: whoever reaches it may")
	c.String(GroupConsole, "console-operator-tokens", &k.Auth.OperatorTokens, "file with the tokens that may look, release, roll back and replay, one a line")
	c.Bool(GroupConsole, "console-operate", &k.Auth.Operate, "without operator tokens: whoever may look may also release, roll back and replay")
	c.String(GroupConsole, "console-tls-cert", &k.Auth.CertFile, "file with the console's certificate in PEM: it speaks TLS")
	c.String(GroupConsole, "console-tls-key", &k.Auth.KeyFile, "file with its key in PEM")
	c.String(GroupConsole, "console-client-ca", &k.Auth.ClientCA, "file with CA certificates in PEM; browsers need a certificate from one of them")

	w := &s.Simulate
	c.Int(GroupSimulate, "sim-users", &w.Users, 1, 100_000_000, "simulated users")
	c.Int(GroupSimulate, "sim-items", &w.Items, 1, 100_000_000, "simulated items")
	c.Int(GroupSimulate, "sim-days", &w.Days, 1, 36_500, "simulated days")
	c.Float(GroupSimulate, "sim-sessions-a-day", &w.SessionsADay, 0.01, 1000, "sessions a day, mean by user")
	c.Uint64(GroupSimulate, "sim-seed", &w.Seed, "seed of the simulated world")
}

// Logger returns the logger that the settings ask for.
func (s *Settings) level() slog.Level {
	var l slog.Level
	_ = l.UnmarshalText([]byte(s.LogLevel)) // the setting allows valid levels only
	return l
}

func (s *Settings) rules() (filters.RuleSet, error) {
	if s.RulesFile == "" {
		return filters.DefaultRules(), nil
	}
	data, err := os.ReadFile(s.RulesFile)
	if err != nil {
		return filters.RuleSet{}, fmt.Errorf("read filter rules: %w", err)
	}
	rules, err := filters.ParseRules(data)
	if err != nil {
		return filters.RuleSet{}, fmt.Errorf("%s: %w", s.RulesFile, err)
	}
	return rules, nil
}

func (s *Settings) pseudonymKeys() (ingest.Keys, error) {
	if s.PseudonymKeyFile == "" {
		return nil, nil
	}
	data, err := os.ReadFile(s.PseudonymKeyFile)
	if err != nil {
		return nil, fmt.Errorf("read the pseudonym keys: %w", err)
	}
	keys, err := ingest.ParseKeys(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.PseudonymKeyFile, err)
	}
	return keys, nil
}
