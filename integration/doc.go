// Package integration runs onerec as it is deployed: the built services, in containers
// of their own, on a real Apache Kafka. Its tests are the suite; see docs/reliability.md
// for what each shows.
//
//	go test ./integration/...
//
// It needs Docker and a Kafka image: ONEREC_KAFKA_IMAGE, by default the official one;
// integration/kafka/build-image builds one where none can be pulled.
// ONEREC_KAFKA_BROKERS names a running, empty cluster for one test (-run) instead, and
// ONEREC_KAFKA_PROCESS=1 starts a broker for each test as a process, from Maven's jars;
// the services are processes then, and tests that must break a broker or a network are
// skipped.
package integration
