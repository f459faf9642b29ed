package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"candela.dev/cluster/internal/cgroup"
	"candela.dev/cluster/internal/state"
)

func down(arguments []string) error {
	keepLogs := false
	dir, rest, err := parse("down", arguments, func(set *flag.FlagSet) {
		set.BoolVar(&keepLogs, "keep-logs", false, "leave the logs in the cluster's directory")
	})
	if err != nil {
		return err
	}
	if len(rest) > 0 {
		return fmt.Errorf("`down` takes flags only, not `%s`: name the cluster with --name", rest[0])
	}
	if err := asRoot(); err != nil {
		return err
	}
	if _, err := os.Stat(dir.Path); errors.Is(err, os.ErrNotExist) {
		fmt.Printf("cluster `%s` is not there\n", dir.Name)
		return nil
	}
	if dir.Running() {
		if err := end(dir); err != nil {
			return err
		}
	}
	lock, err := dir.Lock()
	if err != nil {
		return fmt.Errorf("cannot take over cluster `%s`: %w", dir.Name, err)
	}
	defer lock.Close()
	if err := remove(dir, keepLogs); err != nil {
		return err
	}
	fmt.Printf("cluster `%s` is gone\n", dir.Name)
	return nil
}

// end kills the cluster's first process, with which the kernel ends all others and unmakes the namespaces.
func end(dir state.Dir) error {
	facts, err := firstFacts(dir)
	if err != nil {
		return err
	}
	pidfd, err := unix.PidfdOpen(facts.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return waitUnlocked(dir)
	}
	if err != nil {
		return fmt.Errorf("cannot watch process %d: %w", facts.PID, err)
	}
	defer unix.Close(pidfd)
	// Checked after the process was pinned, so the number cannot have gone to another since.
	if !isFirst(dir, facts.PID) {
		return waitUnlocked(dir)
	}
	if err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("cannot end the cluster: %w", err)
	}
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	deadline := time.Now().Add(time.Minute)
	for {
		n, err := unix.Poll(fds, 1000)
		if n > 0 {
			return waitUnlocked(dir)
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("process %d does not end within a minute", facts.PID)
		}
	}
}

// firstFacts waits for the facts of a cluster that is just starting.
func firstFacts(dir state.Dir) (state.Facts, error) {
	deadline := time.Now().Add(10 * time.Second)
	for {
		facts, err := dir.Load()
		if err == nil {
			return facts, nil
		}
		if time.Now().After(deadline) {
			return facts, fmt.Errorf("cluster `%s` is locked by a process that has not said who it is: %w", dir.Name, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// isFirst says whether `pid` is the first process of this very cluster.
func isFirst(dir state.Dir, pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return false
	}
	arguments := strings.Split(string(data), "\x00")
	return len(arguments) >= 3 && arguments[0] == "candela-cluster" && arguments[1] == "init" && arguments[2] == dir.Path
}

// waitUnlocked waits until the last holder of the lock is gone.
func waitUnlocked(dir state.Dir) error {
	deadline := time.Now().Add(20 * time.Second)
	for dir.Running() {
		if time.Now().After(deadline) {
			return fmt.Errorf("cluster `%s` is held by a process that is not its own: see who has %s open", dir.Name, dir.File("lock"))
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil
}

// remove takes away what a cluster leaves once its processes are gone; the caller holds the lock.
func remove(dir state.Dir, keepLogs bool) error {
	if err := cgroup.Remove(dir.Cgroup()); err != nil {
		return err
	}
	if err := dir.Clear(keepLogs); err != nil {
		return fmt.Errorf("cannot remove %s: %w", dir.Path, err)
	}
	if keepLogs {
		return nil
	}
	if err := os.Remove(dir.File("lock")); err != nil {
		return err
	}
	return os.Remove(dir.Path)
}
