#!/bin/sh
exec java ${KAFKA_HEAP_OPTS:--Xmx512m} -Dlog4j2.level=${KAFKA_LOG_LEVEL:-WARN} -cp "/opt/kafka/libs/*" kafka.Kafka "$@"
