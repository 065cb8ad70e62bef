// Package console is one live page in the browser: the flow with rates, lag and health, why sessions
// fail the rules, how the decoder learns, what each round of alignment changed and which gate decided,
// the lineage of checkpoints, a user, an item, dead letters; and, for who may, release, rollback, hold and
// replay.
//
// It has no database. What it shows it reads from what the services publish anyway:
//
//	the brokers        ends of topics, consumer groups, their lag          watch.go
//	/metrics, /readyz  of each service's admin endpoint                    targets.go
//	topics             the newest of sessions.judged, views.dlq, rounds    tail.go, sessions.go, letters.go
//	checkpoints        manifests, steps of training, channels              versions.go
//	the recommender    a user's history and recommendations, an item       lookup.go
//
// Pages are rendered here ([html/template]); while a browser has the page open, every part of it that changed
// is rendered again once a second, for all browsers together, and pushed as a server-sent event (live.go), which htmx
// merges into the page. Memory is bounded: of each source the newest is kept.
package console
