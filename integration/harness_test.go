package integration

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	dockernet "github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/network"
	"github.com/twmb/franz-go/pkg/kgo"

	"onerec/internal/kafkatest"
	"onerec/internal/stream"
)

const (
	defaultImage = "apache/kafka:4.1.0"
	patience     = 2 * time.Minute // for something that must happen
	adminPort    = "9464/tcp"      // of a service
	apiPort      = "8080/tcp"      // of serve
	externalPort = "19092/tcp"     // of a broker, for this process
)

// binary builds onerec once, without C.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "onerec-integration-*")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "onerec")
	build := exec.Command("go", "build", "-o", path, "onerec/cmd/onerec")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%v: %w: %s", build, err, out)
	}
	return path, nil
})

// image builds the services' image once: the last stage of deploy/Dockerfile over the
// binary that was built here, since the first stage's base can't be had everywhere.
var image = sync.OnceValues(func() (string, error) {
	path, err := binary()
	if err != nil {
		return "", err
	}
	dockerfile, err := os.ReadFile("../deploy/Dockerfile")
	if err != nil {
		return "", err
	}
	_, last, found := bytes.Cut(dockerfile, []byte("FROM scratch\nCOPY --from=build /out /\n"))
	if !found {
		return "", errors.New("deploy/Dockerfile has no last stage that copies /out of the stage build")
	}
	build := filepath.Dir(path)
	last = append([]byte("FROM scratch\nCOPY onerec /\n"), last...)
	if err := os.WriteFile(filepath.Join(build, "Dockerfile"), last, 0o600); err != nil {
		return "", err
	}
	provider, err := testcontainers.NewDockerProvider()
	if err != nil {
		return "", err
	}
	defer provider.Close()
	return provider.BuildImage(context.Background(), &testcontainers.ContainerRequest{
		FromDockerfile: testcontainers.FromDockerfile{Context: build, Repo: "onerec", Tag: "integration", KeepImage: true},
	})
})

// command returns an onerec command of this process, without the suite's own settings
// in its environment.
func command(ctx context.Context, t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "ONEREC_") })
	return cmd
}

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := binary(); err == nil {
		_ = os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

// cluster is Kafka, and the services on it.
type cluster struct {
	t       *testing.T
	network *testcontainers.DockerNetwork // nil: an existing cluster, services as processes
	brokers []*broker
	outside string // addresses for this process
	inside  string // and for the services
	setup   setup
	mount   string // a folder that the services and this process share, under one name
}

type broker struct {
	*testcontainers.DockerContainer
	address string // for this process
}

// start starts a cluster of n brokers. More properties are lines of server.properties.
func start(t *testing.T, n int, properties ...string) *cluster {
	t.Helper()
	return startWith(t, n, setup{properties: properties})
}

// setup is how brokers differ from the usual.
type setup struct {
	properties []string                       // lines of server.properties; the last of a name counts
	files      []testcontainers.ContainerFile // for the brokers
	format     string                         // arguments of kafka-storage.sh format
	client     []kgo.Opt                      // options of this process's clients
	tool       []string                       // settings of this process's onerec commands
	mount      string                         // the folder shared with the services; empty: a new one
	volume     string                         // a volume that brokers and services see as /small; empty: none
}

func startWith(t *testing.T, n int, with setup) *cluster {
	t.Helper()
	if with.mount == "" {
		with.mount = t.TempDir()
	}
	c := &cluster{t: t, mount: with.mount, setup: with}
	properties := with.properties
	if c.outside = os.Getenv("ONEREC_KAFKA_BROKERS"); c.outside != "" {
		c.inside = c.outside
		return c
	}
	if os.Getenv("ONEREC_KAFKA_PROCESS") != "" {
		if n > 1 {
			t.Skip("needs several brokers: only in Docker")
		}
		if with.format != "" {
			t.Skip("needs a broker of its own kind: only in Docker")
		}
		c.outside = kafkatest.Start(t, kafkatest.Jars(t), properties)
		c.inside = c.outside
		return c
	}
	needDocker(t)
	nw, err := network.New(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := nw.Remove(context.Background()); err != nil {
			t.Errorf("remove the network: %v", err)
		}
	})
	c.network = nw
	var voters, inside, outside []string
	for id := range n {
		voters = append(voters, fmt.Sprintf("%d@kafka-%d:9093", id+1, id+1))
		inside = append(inside, fmt.Sprintf("kafka-%d:9092", id+1))
		outside = append(outside, kafkatest.FreeAddress(t))
	}
	var wg sync.WaitGroup
	c.brokers = make([]*broker, n)
	for id := range n {
		wg.Go(func() { c.brokers[id] = c.startBroker(id, n, voters, outside[id], properties) })
	}
	wg.Wait()
	c.inside, c.outside = strings.Join(inside, ","), strings.Join(outside, ",")
	if t.Failed() {
		t.FailNow()
	}
	c.await()
	return c
}

// needDocker skips the test where Docker is missing, unless the environment says that
// it must be there.
func needDocker(t *testing.T) {
	t.Helper()
	provider, err := testcontainers.NewDockerProvider()
	if err == nil {
		err = provider.Health(t.Context())
		_ = provider.Close()
	}
	switch {
	case err == nil:
	case os.Getenv("ONEREC_NEED_DOCKER") != "":
		t.Fatalf("Docker is needed: %v", err)
	default:
		t.Skipf("needs Docker (on Debian: apt-get install docker.io, then start dockerd), or a cluster in ONEREC_KAFKA_BROKERS: %v", err)
	}
}

func (c *cluster) startBroker(id, n int, voters []string, outside string, properties []string) *broker {
	replicas := strconv.Itoa(min(n, 3))
	config := append([]string{
		"process.roles=broker,controller",
		fmt.Sprintf("node.id=%d", id+1),
		"controller.quorum.voters=" + strings.Join(voters, ","),
		"listeners=INSIDE://0.0.0.0:9092,OUTSIDE://0.0.0.0:19092,CONTROLLER://0.0.0.0:9093",
		fmt.Sprintf("advertised.listeners=INSIDE://kafka-%d:9092,OUTSIDE://%s", id+1, outside),
		"listener.security.protocol.map=INSIDE:PLAINTEXT,OUTSIDE:PLAINTEXT,CONTROLLER:PLAINTEXT",
		"inter.broker.listener.name=INSIDE",
		"controller.listener.names=CONTROLLER",
		"log.dirs=/tmp/data",
		"auto.create.topics.enable=false",
		"group.initial.rebalance.delay.ms=0",
		"offsets.topic.num.partitions=4",
		"offsets.topic.replication.factor=" + replicas,
		"transaction.state.log.num.partitions=4",
		"transaction.state.log.replication.factor=" + replicas,
		fmt.Sprintf("transaction.state.log.min.isr=%d", min(n, 2)),
	}, properties...)
	name := os.Getenv("ONEREC_KAFKA_IMAGE")
	if name == "" {
		name = defaultImage
	}
	const file = "/tmp/server.properties"
	b, err := testcontainers.Run(c.t.Context(), name,
		network.WithNetwork([]string{fmt.Sprintf("kafka-%d", id+1)}, c.network),
		testcontainers.WithEnv(map[string]string{"KAFKA_HEAP_OPTS": "-Xmx512m"}),
		testcontainers.WithEntrypoint("sh", "-c", "/opt/kafka/bin/kafka-storage.sh format --ignore-formatted -t onerec-integration-01 -c "+file+" "+c.setup.format+" && exec /opt/kafka/bin/kafka-server-start.sh "+file),
		testcontainers.WithFiles(append(slices.Clone(c.setup.files), testcontainers.ContainerFile{Reader: strings.NewReader(strings.Join(config, "\n") + "\n"), ContainerFilePath: file, FileMode: 0o644})...),
		testcontainers.WithExposedPorts(externalPort),
		bindPort(c.t, externalPort, outside),
		testcontainers.WithHostConfigModifier(func(h *container.HostConfig) {
			h.Binds = append(h.Binds, c.binds()...)
			// The name of a broker that is down must be unknown at once: without a network
			// beyond the engine's, its resolver would wait for one.
			h.DNS, h.DNSOptions = []netip.Addr{netip.MustParseAddr("127.0.0.1")}, []string{"timeout:1", "attempts:1"}
		}),
	)
	if b != nil {
		c.t.Cleanup(func() { c.terminate(fmt.Sprintf("broker %d", id+1), b) })
	}
	if err != nil {
		c.t.Errorf("start broker %d: %v", id+1, err)
		return nil
	}
	return &broker{b, outside}
}

// binds are the folders that containers share with this process and each other.
func (c *cluster) binds() []string {
	binds := []string{c.mount + ":" + c.mount}
	if c.setup.volume != "" {
		binds = append(binds, c.setup.volume+":"+small)
	}
	return binds
}

// small is where services see the volume of a setup.
const small = "/small"

// hostName is this process's machine for a container.
const hostName = "host.docker.internal"

// smallVolume makes a volume of so many bytes, in memory, that is gone after the test.
func smallVolume(t *testing.T, bytes int) string {
	t.Helper()
	needDocker(t)
	engine, name := docker(t), fmt.Sprintf("onerec-integration-%d", time.Now().UnixNano())
	if _, err := engine.VolumeCreate(t.Context(), client.VolumeCreateOptions{Name: name, Driver: "local", DriverOpts: map[string]string{
		"type": "tmpfs", "device": "tmpfs", "o": fmt.Sprintf("size=%d,mode=1777", bytes),
	}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := engine.VolumeRemove(context.Background(), name, client.VolumeRemoveOptions{}); err != nil {
			t.Errorf("remove the volume: %v", err)
		}
	})
	return name
}

// shell runs a command in the first broker's container.
func (c *cluster) shell(command string) (string, error) {
	c.t.Helper()
	code, r, err := c.brokers[0].Exec(context.Background(), []string{"sh", "-c", command})
	if err != nil {
		return "", err
	}
	out, err := io.ReadAll(r)
	if err == nil && code != 0 {
		err = fmt.Errorf("%s: code %d: %s", command, code, out)
	}
	return string(out), err
}

// bindPort binds a container's port to an address that is known before it starts, and
// stays when it starts again.
func bindPort(t *testing.T, port, address string) testcontainers.CustomizeRequestOption {
	host, hostPort, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	return testcontainers.WithHostConfigModifier(func(h *container.HostConfig) {
		if h.PortBindings == nil {
			h.PortBindings = dockernet.PortMap{}
		}
		h.PortBindings[dockernet.MustParsePort(port)] = []dockernet.PortBinding{{HostIP: netip.MustParseAddr(host), HostPort: hostPort}}
	})
}

// terminate removes a container; after a failure it shows the end of its log.
func (c *cluster) terminate(name string, d *testcontainers.DockerContainer) {
	ctx := context.Background()
	if c.t.Failed() {
		if r, err := d.Logs(ctx); err == nil {
			text, _ := io.ReadAll(r) // what there is
			c.t.Logf("log of %s:\n%s", name, lastLines(string(text), 40))
			_ = r.Close()
		}
	}
	if err := d.Terminate(ctx, testcontainers.StopTimeout(0)); err != nil {
		c.t.Errorf("remove the container of %s: %v", name, err)
	}
}

// client returns a client of this process, closed when the test ends.
func (c *cluster) client(opts ...kgo.Opt) *kgo.Client {
	c.t.Helper()
	cl, err := c.stream().Client(opts...)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(cl.Close)
	return cl
}

func (c *cluster) stream() stream.Cluster {
	return stream.Cluster{Brokers: strings.Split(c.outside, ","), Options: c.setup.client}
}

// await returns once every broker answers.
func (c *cluster) await() {
	c.t.Helper()
	cl := c.client()
	eventually(c.t, "every broker answers", func() error {
		ctx, cancel := context.WithTimeout(c.t.Context(), 5*time.Second)
		defer cancel()
		if err := cl.Ping(ctx); err != nil {
			return err
		}
		if n := len(cl.DiscoveredBrokers()); n < len(c.brokers) {
			cl.ForceMetadataRefresh()
			return fmt.Errorf("%d of %d brokers are known", n, len(c.brokers))
		}
		return nil
	})
}

// tool runs an onerec command to its end, as an operator would, and returns what it
// printed.
func (c *cluster) tool(args ...string) string {
	c.t.Helper()
	out, err := c.tryTool(args...)
	if err != nil {
		c.t.Fatalf("onerec %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (c *cluster) tryTool(args ...string) (string, error) {
	c.t.Helper()
	out, err := command(c.t.Context(), c.t, append(append(args, "--brokers", c.outside), c.setup.tool...)...).CombinedOutput()
	return string(out), err
}

// service is one of onerec's services, in a container, or as a process on an existing
// cluster.
type service struct {
	t    *testing.T
	name string
	http string // health and metrics, for this process
	api  string // recommendations, of serve

	*testcontainers.DockerContainer // nil: a process
	cmd                             *exec.Cmd
	done                            chan struct{}
	log                             lockedBuffer
}

// lockedBuffer is a buffer for several goroutines.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// service starts a service and waits until it is ready.
func (c *cluster) service(args ...string) *service {
	c.t.Helper()
	s := c.launch(args...)
	s.ready()
	return s
}

// apiToken lets the suite ask the recommender, and every service for its metrics, which in a container are not
// on loopback alone.
const apiToken = "suite-0123456789abcdef"

// launch starts a service.
func (c *cluster) launch(args ...string) *service {
	c.t.Helper()
	s := &service{t: c.t, name: args[0], http: kafkatest.FreeAddress(c.t), api: kafkatest.FreeAddress(c.t)}
	tokens := filepath.Join(c.mount, "tokens")
	if err := os.WriteFile(tokens, []byte(apiToken+"\n"), 0o644); err != nil {
		c.t.Fatal(err)
	}
	args = append(args, "--brokers", c.inside, "--http-tokens", tokens)
	if s.name == "serve" {
		listen := s.api
		if c.network != nil {
			listen = "0.0.0.0:8080"
		}
		args = append(args, "--listen", listen, "--listen-tokens", tokens)
	}
	if c.network == nil {
		s.run(append(args, "--http", s.http))
		return s
	}
	name, err := image()
	if err != nil {
		c.t.Fatal(err)
	}
	s.DockerContainer, err = testcontainers.Run(c.t.Context(), name,
		network.WithNetwork(nil, c.network),
		testcontainers.WithCmd(append(args, "--http", ":9464")...),
		testcontainers.WithExposedPorts(adminPort, apiPort),
		bindPort(c.t, adminPort, s.http),
		bindPort(c.t, apiPort, s.api),
		testcontainers.WithHostConfigModifier(func(h *container.HostConfig) {
			h.Binds = append(h.Binds, c.binds()...)
			h.ExtraHosts = append(h.ExtraHosts, hostName+":host-gateway")
		}),
		testcontainers.WithConfigModifier(func(cfg *container.Config) { cfg.User = fmt.Sprintf("%d:%d", os.Getuid(), os.Getgid()) }),
	)
	if s.DockerContainer != nil {
		c.t.Cleanup(func() { c.terminate(s.name, s.DockerContainer) })
	}
	if err != nil {
		c.t.Fatalf("start %s: %v", s.name, err)
	}
	return s
}

// run starts the service as a process.
func (s *service) run(args []string) {
	s.t.Helper()
	s.cmd, s.done = command(context.Background(), s.t, args...), make(chan struct{})
	pipe, err := s.cmd.StderrPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	go func() {
		defer close(s.done)
		for lines := bufio.NewScanner(pipe); lines.Scan(); {
			fmt.Fprintln(&s.log, lines.Text())
		}
		_ = s.cmd.Wait() // the state says how it ended
	}()
	s.t.Cleanup(func() {
		_ = s.cmd.Process.Kill() // it may have ended
		<-s.done
		if s.t.Failed() {
			s.t.Logf("log of %s:\n%s", s.name, &s.log)
		}
	})
}

// ready waits until the service says that it is.
func (s *service) ready() {
	s.t.Helper()
	eventually(s.t, s.name+" is ready", func() error {
		code, body := get(s.t, s.http, "/readyz")
		if code == http.StatusOK {
			return nil
		}
		if s.over() {
			text, err := s.output()
			s.t.Fatalf("%s has ended: %s (%v)", s.name, lastLines(text, 10), err)
		}
		return fmt.Errorf("/readyz answers %d %s", code, body)
	})
}

// over says whether the service has ended.
func (s *service) over() bool {
	s.t.Helper()
	if s.DockerContainer == nil {
		select {
		case <-s.done:
			return true
		default:
			return false
		}
	}
	state, err := s.State(context.Background())
	if err != nil {
		s.t.Fatal(err)
	}
	return !state.Running
}

func lastLines(text string, n int) string {
	lines := strings.Split(text, "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// kill ends the service at once, as kill -9 does.
func (s *service) kill() {
	s.t.Helper()
	if s.DockerContainer == nil {
		_ = s.cmd.Process.Kill() // it may have ended
		<-s.done
		return
	}
	killContainer(s.t, s.DockerContainer)
}

// stop asks the service to end and checks that it does so well.
func (s *service) stop() {
	s.t.Helper()
	if s.DockerContainer == nil {
		if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			s.t.Fatal(err)
		}
		<-s.done
		if code := s.cmd.ProcessState.ExitCode(); code != 0 {
			s.t.Errorf("%s ended with code %d", s.name, code)
		}
		return
	}
	grace := 30 * time.Second
	if err := s.Stop(context.Background(), &grace); err != nil {
		s.t.Fatal(err)
	}
	if state, err := s.State(context.Background()); err != nil || state.ExitCode != 0 {
		s.t.Errorf("%s ended with %+v, %v", s.name, state, err)
	}
}

// again starts a service again that was killed or stopped, with its old settings.
func (s *service) again() {
	s.t.Helper()
	if s.DockerContainer == nil {
		s.run(s.cmd.Args[1:])
	} else if err := s.Start(context.Background()); err != nil {
		s.t.Fatal(err)
	}
	s.ready()
}

// logs says whether the service has logged something.
func (s *service) logs(what string) error {
	s.t.Helper()
	text, err := s.output()
	if err == nil && !strings.Contains(text, what) {
		err = fmt.Errorf("%q is not in its log", what)
	}
	return err
}

// ended says whether the service has ended with an error that holds some words.
func (s *service) ended(why string) error {
	s.t.Helper()
	if !s.over() {
		return errors.New("it runs")
	}
	if s.DockerContainer != nil {
		if state, err := s.State(context.Background()); err != nil {
			return err
		} else if state.ExitCode == 0 {
			return errors.New("it ended well")
		}
	}
	return s.logs(why)
}

// output returns what the service has logged.
func (s *service) output() (string, error) {
	s.t.Helper()
	if s.DockerContainer == nil {
		return s.log.String(), nil
	}
	r, err := s.Logs(context.Background())
	if err != nil {
		return "", err
	}
	defer r.Close()
	text, err := io.ReadAll(r)
	return string(text), err
}

// docker returns the engine's client.
func docker(t *testing.T) *testcontainers.DockerClient {
	t.Helper()
	cl, err := testcontainers.NewDockerClientWithOpts(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cl.Close() })
	return cl
}

func killContainer(t *testing.T, d *testcontainers.DockerContainer) {
	t.Helper()
	if _, err := docker(t).ContainerKill(context.Background(), d.GetContainerID(), client.ContainerKillOptions{Signal: "KILL"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the killed container has ended", func() error {
		state, err := d.State(context.Background())
		if err == nil && state.Running {
			return errors.New("it runs")
		}
		return err
	})
}

func get(t *testing.T, address, path string) (code int, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+apiToken)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(text)
}

// eventually waits until something is so; ok says why it is not yet.
func eventually(t *testing.T, what string, ok func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s: %v", patience, what, err)
		}
		<-tick.C
	}
}
