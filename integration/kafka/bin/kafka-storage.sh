#!/bin/sh
exec java ${KAFKA_HEAP_OPTS:--Xmx512m} -cp "/opt/kafka/libs/*" kafka.tools.StorageTool "$@"
