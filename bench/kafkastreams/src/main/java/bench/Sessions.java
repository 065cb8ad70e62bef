package bench;

import java.nio.ByteBuffer;
import java.time.Duration;
import java.util.Arrays;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.KeyValue;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.EmitStrategy;
import org.apache.kafka.streams.kstream.Grouped;
import org.apache.kafka.streams.kstream.KTable;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.kstream.SessionWindowedKStream;
import org.apache.kafka.streams.kstream.SessionWindows;
import org.apache.kafka.streams.kstream.Suppressed;
import org.apache.kafka.streams.kstream.Windowed;
import org.apache.kafka.streams.processor.TimestampExtractor;
import org.apache.kafka.streams.state.SessionBytesStoreSupplier;
import org.apache.kafka.streams.state.Stores;

/**
 * The sessionizer's work in Kafka Streams: session windows by user over event time, final results
 * only, exactly once, store in memory with its changelog. A session's value is its views, each
 * behind its length; like onerec it keeps the bytes that came and reads only what it needs.
 *
 * <p>Arguments: brokers, input topic, output topic, gap in ms, grace in ms, commit interval in ms, and
 * the store: memory (results by EmitStrategy.onWindowClose) or rocksdb (by suppress).
 */
public final class Sessions {
  private static final byte[] NONE = new byte[0];

  /** Results are emitted once a second; a store that forgets sooner loses sessions in a replay. */
  private static final Duration RETENTION = Duration.ofDays(1);

  public static void main(String[] args) throws Exception {
    Properties p = new Properties();
    p.put(StreamsConfig.APPLICATION_ID_CONFIG, "streams-sessions");
    p.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, args[0]);
    p.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
    p.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, args[5]);
    p.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, 1);
    p.put(StreamsConfig.REPLICATION_FACTOR_CONFIG, 1);
    p.put(StreamsConfig.STATE_DIR_CONFIG, System.getProperty("state"));
    p.put(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG, "earliest");
    p.put(ConsumerConfig.MAX_POLL_RECORDS_CONFIG, 10_000);
    p.put("producer.compression.type", "snappy");

    Duration gap = Duration.ofMillis(Long.parseLong(args[3]));
    Duration grace = Duration.ofMillis(Long.parseLong(args[4]));
    StreamsBuilder b = new StreamsBuilder();
    SessionWindowedKStream<byte[], byte[]> windows =
        b.stream(
                args[1],
                Consumed.with(Serdes.ByteArray(), Serdes.ByteArray())
                    .withTimestampExtractor(new EventTime()))
            .groupByKey(Grouped.with(Serdes.ByteArray(), Serdes.ByteArray()))
            .windowedBy(SessionWindows.ofInactivityGapAndGrace(gap, grace));
    KTable<Windowed<byte[]>, byte[]> sessions;
    if (args[6].equals("memory")) {
      sessions =
          aggregate(
              windows.emitStrategy(EmitStrategy.onWindowClose()),
              Stores.inMemorySessionStore("sessions", RETENTION));
    } else {
      sessions =
          aggregate(windows, Stores.persistentSessionStore("sessions", RETENTION))
              .suppress(Suppressed.untilWindowCloses(Suppressed.BufferConfig.unbounded()));
    }
    sessions
        .toStream()
        .map(
            (w, session) ->
                KeyValue.pair(w.key(), closed(w.window().start(), w.window().end(), session)))
        .to(args[2], Produced.with(Serdes.ByteArray(), Serdes.ByteArray()));

    KafkaStreams streams = new KafkaStreams(b.build(), p);
    CountDownLatch end = new CountDownLatch(1);
    Runtime.getRuntime()
        .addShutdownHook(
            new Thread(
                () -> {
                  streams.close(Duration.ofSeconds(20));
                  end.countDown();
                }));
    streams.setUncaughtExceptionHandler(
        e -> {
          e.printStackTrace();
          return org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler
              .StreamThreadExceptionResponse.SHUTDOWN_APPLICATION;
        });
    streams.start();
    end.await();
  }

  private static KTable<Windowed<byte[]>, byte[]> aggregate(
      SessionWindowedKStream<byte[], byte[]> windows, SessionBytesStoreSupplier store) {
    return windows.aggregate(
        () -> NONE,
        (user, view, session) -> append(session, view),
        (user, x, y) -> concat(x, y),
        Materialized.<byte[], byte[]>as(store)
            .withKeySerde(Serdes.ByteArray())
            .withValueSerde(Serdes.ByteArray()));
  }

  /** Appends a view, unless its event_id is there already. */
  private static byte[] append(byte[] session, byte[] view) {
    int from = field(view, 1);
    for (int at = 0; at < session.length; ) {
      int size = ByteBuffer.wrap(session, at, 4).getInt();
      at += 4;
      if (sameString(session, at, view, from)) {
        return session;
      }
      at += size;
    }
    byte[] out = Arrays.copyOf(session, session.length + 4 + view.length);
    ByteBuffer.wrap(out, session.length, 4).putInt(view.length);
    System.arraycopy(view, 0, out, session.length + 4, view.length);
    return out;
  }

  /** Compares the event_ids (the first field) of two views. */
  private static boolean sameString(byte[] a, int viewA, byte[] b, int atB) {
    int atA = viewA + 1;
    int n = b[atB];
    return Arrays.equals(a, atA, atA + 1 + n, b, atB, atB + 1 + n);
  }

  private static byte[] concat(byte[] x, byte[] y) {
    byte[] out = Arrays.copyOf(x, x.length + y.length);
    System.arraycopy(y, 0, out, x.length, y.length);
    return out;
  }

  private static byte[] closed(long start, long end, byte[] session) {
    byte[] out = new byte[16 + session.length];
    ByteBuffer.wrap(out).putLong(start).putLong(end);
    System.arraycopy(session, 0, out, 16, session.length);
    return out;
  }

  /** Where the value of a field of an encoded View begins, its length included; -1 if absent. */
  private static int field(byte[] b, int number) {
    for (int at = 0; at < b.length; ) {
      int tag = b[at++];
      if (tag >>> 3 == number) {
        return at;
      }
      if ((tag & 7) == 0) {
        while (b[at++] < 0) {}
      } else {
        at += 1 + b[at]; // ids of the benchmark are short
      }
    }
    return -1;
  }

  /** Reads event_time_ms. */
  public static final class EventTime implements TimestampExtractor {
    @Override
    public long extract(ConsumerRecord<Object, Object> record, long partitionTime) {
      byte[] b = (byte[]) record.value();
      long x = 0;
      int at = field(b, 4);
      for (int shift = 0; ; shift += 7) {
        x |= (long) (b[at] & 0x7f) << shift;
        if (b[at++] >= 0) {
          return x;
        }
      }
    }
  }
}
