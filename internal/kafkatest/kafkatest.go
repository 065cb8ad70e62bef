// Package kafkatest starts a real Apache Kafka broker for tests and benchmarks, as a
// process of this machine: Java and Kafka's jars, which Maven brings, are all it needs.
package kafkatest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// Jars returns the folder with Kafka's jars: what the environment variable
// ONEREC_KAFKA_JARS names, else a folder of the user's cache, which Maven fills once.
// It skips the test where Java or Maven is missing.
func Jars(t testing.TB) string {
	t.Helper()
	if dir := os.Getenv("ONEREC_KAFKA_JARS"); dir != "" {
		return dir
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Skipf("a real broker needs a folder for Kafka's jars: %v; name one in ONEREC_KAFKA_JARS", err)
	}
	dir := filepath.Join(cache, "onerec", "kafka-jars")
	Maven(t, "integration/kafka", "dependency:copy-dependencies", "-DoutputDirectory="+dir)
	return dir
}

// Maven runs Maven on a pom below the module's root. It skips the test where Java or
// Maven is missing.
func Maven(t testing.TB, dir string, args ...string) {
	t.Helper()
	for _, tool := range []string{"java", "mvn"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs Java 17 and Maven (on Debian: apt-get install openjdk-17-jdk-headless maven): %v", err)
		}
	}
	mvn := exec.CommandContext(t.Context(), "mvn", append([]string{"-q", "-B"}, args...)...)
	mvn.Dir = filepath.Join(Root(t), dir)
	if out, err := mvn.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", mvn, err, out)
	}
}

// Root returns the folder of go.mod.
func Root(t testing.TB) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "env", "GOMOD").Output()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Dir(strings.TrimSpace(string(out)))
}

// Start runs a broker of one node (KRaft) until the test ends and returns its address.
// More properties are lines of Kafka's server.properties. wrap, if any, is put before
// the command, e.g. "taskset", "-c", "0".
func Start(t testing.TB, jars string, properties []string, wrap ...string) string {
	t.Helper()
	dir := t.TempDir()
	address, controller := FreeAddress(t), FreeAddress(t)
	config := filepath.Join(dir, "server.properties")
	lines := append([]string{
		"process.roles=broker,controller",
		"node.id=1",
		"controller.quorum.voters=1@" + controller,
		"listeners=PLAINTEXT://" + address + ",CONTROLLER://" + controller,
		"advertised.listeners=PLAINTEXT://" + address,
		"listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
		"controller.listener.names=CONTROLLER",
		"log.dirs=" + filepath.Join(dir, "data"),
		"offsets.topic.replication.factor=1",
		"offsets.topic.num.partitions=4",
		"transaction.state.log.replication.factor=1",
		"transaction.state.log.min.isr=1",
		"transaction.state.log.num.partitions=4",
		"group.initial.rebalance.delay.ms=0",
		"auto.create.topics.enable=false",
	}, properties...)
	if err := os.WriteFile(config, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	classpath := filepath.Join(jars, "*")
	format := exec.CommandContext(t.Context(), "java", "-cp", classpath, "kafka.tools.StorageTool", "format", "-t", "onerec-kafkatest-000001", "-c", config)
	if out, err := format.CombinedOutput(); err != nil {
		t.Fatalf("format the broker's storage: %v\n%s", err, out)
	}
	args := append(slices.Clone(wrap), "java", "-Xmx1g", "-Xms256m", "-cp", classpath, "kafka.Kafka", config)
	broker := exec.CommandContext(context.WithoutCancel(t.Context()), args[0], args[1:]...) // it outlives the test's context, until Cleanup
	log := new(bytes.Buffer)
	broker.Stdout, broker.Stderr = log, log
	if err := broker.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = broker.Process.Kill() // its data goes with the test
		_ = broker.Wait()
	})
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		c, err := (&net.Dialer{Timeout: time.Second}).DialContext(t.Context(), "tcp", address)
		if err == nil {
			_ = c.Close()
			return address
		}
		if time.Now().After(deadline) {
			_ = broker.Process.Kill()
			_ = broker.Wait()
			t.Fatalf("the broker did not answer within a minute: %v\n%s", err, log)
		}
	}
}

// FreeAddress returns a loopback address on which nobody listens.
func FreeAddress(t testing.TB) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().(*net.TCPAddr)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", address.Port)
}
