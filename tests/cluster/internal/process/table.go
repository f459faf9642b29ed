// Package process starts and reaps processes for the first process of a PID namespace, which also inherits those
// that others left behind (the shims of containerd).
package process

import (
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Table knows the children that were started on purpose; all others are reaped in silence.
type Table struct {
	mu       sync.Mutex
	children map[int]chan syscall.WaitStatus
}

// Command is what to start.
type Command struct {
	// Path is the program; Args include its own name.
	Path string
	Args []string
	Env  []string
	Dir  string
	// Stdin may be nil for none. Output takes both others.
	Stdin  *os.File
	Output *os.File
}

// Child is a started process. Its status arrives once on `Done`.
type Child struct {
	PID  int
	Done <-chan syscall.WaitStatus
}

// NewTable starts to reap. It must be the only one that waits for children in this process.
func NewTable() *Table {
	table := &Table{children: map[int]chan syscall.WaitStatus{}}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGCHLD)
	go func() {
		for range signals {
			table.reap()
		}
	}()
	return table
}

func (t *Table) reap() {
	for {
		// Under the lock, so that no status is taken before `Start` has noted the number.
		t.mu.Lock()
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if err != nil || pid <= 0 {
			t.mu.Unlock()
			if err == syscall.EINTR {
				continue
			}
			return
		}
		if done, ok := t.children[pid]; ok {
			delete(t.children, pid)
			done <- status
		}
		t.mu.Unlock()
	}
}

// Start starts `command` in a session of its own.
func (t *Table) Start(command Command) (Child, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return Child{}, err
	}
	defer null.Close()
	stdin := null
	if command.Stdin != nil {
		stdin = command.Stdin
	}
	output := null
	if command.Output != nil {
		output = command.Output
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	pid, err := syscall.ForkExec(command.Path, command.Args, &syscall.ProcAttr{
		Dir:   command.Dir,
		Env:   command.Env,
		Files: []uintptr{stdin.Fd(), output.Fd(), output.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return Child{}, fmt.Errorf("cannot start %s: %w", command.Path, err)
	}
	done := make(chan syscall.WaitStatus, 1)
	t.children[pid] = done
	return Child{PID: pid, Done: done}, nil
}

// Signal sends to a child that still runs; it says false when it does not.
func (t *Table) Signal(child Child, signal syscall.Signal) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.children[child.PID]; !ok {
		return false
	}
	return unix.Kill(child.PID, signal) == nil
}

// Describe says how a process ended.
func Describe(status syscall.WaitStatus) string {
	if status.Signaled() {
		return fmt.Sprintf("was ended by signal %d (%s)", status.Signal(), status.Signal())
	}
	return fmt.Sprintf("exited with status %d", status.ExitStatus())
}
