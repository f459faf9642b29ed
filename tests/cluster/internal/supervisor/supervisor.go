// Package supervisor is the first process of a cluster's namespaces: it starts the components in order, watches
// them, and answers commands. When it ends, however it ends, the kernel ends every other process of the cluster.
package supervisor

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"candela.dev/cluster/internal/control"
	"candela.dev/cluster/internal/plan"
	"candela.dev/cluster/internal/process"
	"candela.dev/cluster/internal/sandbox"
	"candela.dev/cluster/internal/state"
)

// Files that the command `up` hands to the first process, by number.
const (
	// LeashFD brings the configuration; while `up` has not let go of the cluster, its end is the cluster's end.
	LeashFD = 3 + iota
	// ReportFD takes events, one JSON object a line.
	ReportFD
	// ListenerFD is the host's listener for the API server.
	ListenerFD
	// LockFD is the cluster's lock, held as long as this process lives.
	LockFD
	// OwnerFD is the process that the cluster must not outlive, if any.
	OwnerFD
)

// Config is what the first process must know.
type Config struct {
	Dir     state.Dir     `json:"dir"`
	Options state.Options `json:"options"`
	Machine plan.Machine  `json:"machine"`
	// Owned says that OwnerFD was given.
	Owned bool `json:"owned"`
}

// Event tells `up` how far the cluster is. Exactly one of `Stage`, `Error` and `Ready` is set.
type Event struct {
	Stage     string  `json:"stage,omitempty"`
	Seconds   float64 `json:"seconds,omitempty"`
	Error     string  `json:"error,omitempty"`
	Component string  `json:"component,omitempty"`
	Ready     bool    `json:"ready,omitempty"`
}

// Supervisor holds the running cluster.
type Supervisor struct {
	config  Config
	table   *process.Table
	client  *kubernetes.Clientset
	started time.Time

	mu         sync.Mutex
	components []*component
	forwards   map[string]*forwarded
	// seconds until each stage was reached, for `status`.
	stages []Event
	booted bool
	// failures of components that ended while the cluster was starting.
	failures chan *control.Failure
}

// Main is the whole life of the first process; it returns only an exit status.
func Main() int {
	report := os.NewFile(ReportFD, "report")
	leash := os.NewFile(LeashFD, "leash")
	for fd := LeashFD; fd <= OwnerFD; fd++ {
		unix.CloseOnExec(fd)
	}
	events := json.NewEncoder(report)
	fail := func(err error) int {
		event := Event{Error: err.Error()}
		if failure, ok := err.(*control.Failure); ok {
			event.Component = failure.Component
		}
		_ = events.Encode(event)
		return 1
	}
	decoder := json.NewDecoder(leash)
	var config Config
	if err := decoder.Decode(&config); err != nil {
		return fail(fmt.Errorf("cannot read the configuration: %w", err))
	}
	listener, err := net.FileListener(os.NewFile(ListenerFD, "listener"))
	if err != nil {
		return fail(fmt.Errorf("cannot take over the API server's port: %w", err))
	}
	s := &Supervisor{
		config:   config,
		started:  time.Now(),
		forwards: map[string]*forwarded{},
		failures: make(chan *control.Failure, 16),
	}
	go s.obeyLeash(io.MultiReader(decoder.Buffered(), leash))
	if config.Owned {
		go outlive()
	}
	if err := s.boot(listener, func(event Event) { _ = events.Encode(event) }); err != nil {
		return fail(err)
	}
	_ = events.Encode(Event{Ready: true})
	report.Close()
	select {}
}

// obeyLeash ends the cluster when `up` ends before it has let go by writing one byte.
func (s *Supervisor) obeyLeash(leash io.Reader) {
	buffer := make([]byte, 1)
	for {
		n, err := leash.Read(buffer)
		if n == 1 && buffer[0] == 'k' {
			return
		}
		if err != nil {
			os.Exit(1)
		}
	}
}

// outlive ends the cluster with its owner, whose pidfd becomes readable when it exits.
func outlive() {
	for {
		fds := []unix.PollFd{{Fd: OwnerFD, Events: unix.POLLIN}}
		n, err := unix.Poll(fds, -1)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n > 0 {
			os.Exit(0)
		}
	}
}

// furnish makes the namespaces usable and writes all files.
func (s *Supervisor) furnish() error {
	if err := sandbox.Mounts(s.config.Dir.Path, state.Inside); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(plan.NodeName)); err != nil {
		return fmt.Errorf("cannot set the host name: %w", err)
	}
	if err := sandbox.Network(); err != nil {
		return err
	}
	if err := plan.WriteFiles(s.config.Options, s.config.Machine); err != nil {
		return fmt.Errorf("cannot write the cluster's files: %w", err)
	}
	s.table = process.NewTable()
	rest, err := clientcmd.BuildConfigFromFlags("", plan.Kubeconfig("supervisor"))
	if err != nil {
		return err
	}
	rest.QPS, rest.Burst = 200, 200
	rest.UserAgent = "candela-cluster"
	s.client, err = kubernetes.NewForConfig(rest)
	return err
}

// Failure is the error that an event tells of.
func (e Event) Failure() error {
	return &control.Failure{Component: e.Component, Message: e.Error}
}

// Crashed is the error when the first process ended without a word.
func Crashed() error {
	return &control.Failure{Component: "supervisor", Message: "the cluster's first process ended while it was starting"}
}
