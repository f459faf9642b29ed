package supervisor

import (
	"fmt"
	"os"
	"syscall"
	"time"

	"candela.dev/cluster/internal/control"
	"candela.dev/cluster/internal/plan"
	"candela.dev/cluster/internal/process"
	"candela.dev/cluster/internal/state"
)

// restartPause keeps a component that cannot start from spinning.
const restartPause = time.Second

// component is a program that is kept running, unless a command ended it.
type component struct {
	plan.Component
	child process.Child
	// running is false between an end and the next start.
	running bool
	paused  bool
	// stopped by command: it stays down until it is restarted.
	stopped  bool
	restarts int
	// generation tells a watcher whether its child is still the current one.
	generation int
	lastEnd    string
}

// start adds components and starts them.
func (s *Supervisor) start(list ...plan.Component) error {
	for _, planned := range list {
		added := &component{Component: planned}
		s.mu.Lock()
		s.components = append(s.components, added)
		err := s.launch(added)
		s.mu.Unlock()
		if err != nil {
			return &control.Failure{Component: planned.Name, Message: err.Error()}
		}
	}
	return nil
}

// launch starts a component; the caller holds the lock.
func (s *Supervisor) launch(c *component) error {
	log, err := os.OpenFile(plan.File("logs", c.Name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	if c.Name == "containerd" {
		// The kubelet takes an old socket for a live one.
		_ = os.Remove(plan.ContainerdSocket)
	}
	path, args := c.Path, append([]string{c.Name}, c.Args...)
	if path == "" {
		path, args = "/proc/self/exe", append([]string{"candela-cluster", "component", c.Name}, c.Args...)
	}
	child, err := s.table.Start(process.Command{
		Path:   path,
		Args:   args,
		Dir:    state.Inside,
		Env:    environment(),
		Output: log,
	})
	if err != nil {
		return err
	}
	c.child, c.running, c.paused, c.stopped = child, true, false, false
	c.generation++
	go s.watch(c, c.generation, child)
	return nil
}

func environment() []string {
	return []string{
		"PATH=" + plan.Path,
		"HOME=" + state.Inside,
		"TMPDIR=" + plan.File("tmp"),
		// etcd and the API server would ask the machine's proxies otherwise.
		"NO_PROXY=*",
	}
}

// watch waits for the end of one child and starts the next, unless a command wanted the end.
func (s *Supervisor) watch(c *component, generation int, child process.Child) {
	status := <-child.Done
	end := process.Describe(status)
	s.mu.Lock()
	if c.generation != generation {
		s.mu.Unlock()
		return
	}
	c.running, c.paused, c.lastEnd = false, false, end
	stopped, booted := c.stopped, s.booted
	s.mu.Unlock()
	if stopped {
		return
	}
	if !booted {
		failure := &control.Failure{Component: c.Name, Message: c.Name + " " + end + " while the cluster was starting"}
		select {
		case s.failures <- failure:
		default:
		}
		return
	}
	time.Sleep(restartPause)
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.generation != generation || c.stopped {
		return
	}
	c.restarts++
	if err := s.launch(c); err != nil {
		c.lastEnd = err.Error()
	}
}

// find gives the component of that name; the caller holds the lock.
func (s *Supervisor) find(name string) (*component, error) {
	names := make([]string, 0, len(s.components))
	for _, c := range s.components {
		if c.Name == name {
			return c, nil
		}
		names = append(names, c.Name)
	}
	return nil, fmt.Errorf("the cluster has no component `%s`: it has %v", name, names)
}

func (s *Supervisor) kill(name string) error {
	s.mu.Lock()
	c, err := s.find(name)
	if err != nil {
		s.mu.Unlock()
		return err
	}
	if c.stopped && !c.running {
		s.mu.Unlock()
		return fmt.Errorf("%s is down already: start it with `restart %s`", name, name)
	}
	c.stopped = true
	child := c.child
	s.mu.Unlock()
	s.table.Signal(child, syscall.SIGKILL)
	return s.awaitEnd(c)
}

// awaitEnd waits until the component's child was reaped.
func (s *Supervisor) awaitEnd(c *component) error {
	return poll(20*time.Second, func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if c.running {
			return &control.Failure{Component: c.Name, Message: c.Name + " does not end"}
		}
		return nil
	})
}

func (s *Supervisor) pause(name string, paused bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, err := s.find(name)
	if err != nil {
		return err
	}
	if !c.running {
		return fmt.Errorf("%s is down: start it with `restart %s`", name, name)
	}
	signal, verb := syscall.SIGSTOP, "paused"
	if !paused {
		signal, verb = syscall.SIGCONT, "resumed"
	}
	if !s.table.Signal(c.child, signal) {
		return fmt.Errorf("%s ended before it could be %s", name, verb)
	}
	c.paused = paused
	return nil
}

// restart ends the component, if it runs, starts it, and waits until it is healthy.
func (s *Supervisor) restart(name string) error {
	s.mu.Lock()
	c, err := s.find(name)
	if err != nil {
		s.mu.Unlock()
		return err
	}
	c.stopped = true
	child, running := c.child, c.running
	s.mu.Unlock()
	if running {
		s.table.Signal(child, syscall.SIGKILL)
	}
	if err := s.awaitEnd(c); err != nil {
		return err
	}
	s.mu.Lock()
	err = s.launch(c)
	s.mu.Unlock()
	if err != nil {
		return &control.Failure{Component: name, Message: err.Error()}
	}
	return s.await(name, time.Minute)
}
