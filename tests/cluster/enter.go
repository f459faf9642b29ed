package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"

	"candela.dev/cluster/internal/component"
	"candela.dev/cluster/internal/state"
)

// enter runs a command inside the cluster's network, where Services and pods have their addresses and names. It sees
// the machine's files.
func enter(arguments []string) error {
	dir, rest, err := parse("exec", arguments, nil)
	if err != nil {
		return err
	}
	if len(rest) == 0 {
		return errors.New("`exec` needs a command: write exec -- COMMAND")
	}
	if err := asRoot(); err != nil {
		return err
	}
	path, err := exec.LookPath(rest[0])
	if err != nil {
		return err
	}
	facts, err := running(dir)
	if err != nil {
		return err
	}
	// The thread that enters is the one that becomes the command.
	runtime.LockOSThread()
	if err := join(dir, facts); err != nil {
		return err
	}
	environment := append(os.Environ(), "KUBECONFIG="+dir.Kubeconfig())
	return fmt.Errorf("cannot run %s: %w", path, unix.Exec(path, rest, environment))
}

// join enters the network namespace, and a private mount namespace in which names resolve by the cluster's DNS.
func join(dir state.Dir, facts state.Facts) error {
	network, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", facts.PID))
	if err != nil {
		return fmt.Errorf("cannot find the cluster's network: %w", err)
	}
	defer network.Close()
	if err := unix.Setns(int(network.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("cannot enter the cluster's network: %w", err)
	}
	if facts.Options.ControlPlaneOnly {
		return nil
	}
	target, err := filepath.EvalSymlinks("/etc/resolv.conf")
	if err != nil {
		// Without the file there is nothing that would lead astray.
		return nil
	}
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		return fmt.Errorf("cannot make a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("cannot separate mounts: %w", err)
	}
	if err := unix.Mount(dir.File("resolv.conf"), target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("cannot bind %s: %w", target, err)
	}
	return nil
}

// running gives the facts of a cluster that is up.
func running(dir state.Dir) (state.Facts, error) {
	facts, err := dir.Load()
	if err != nil || !isFirst(dir, facts.PID) {
		return facts, fmt.Errorf("cluster `%s` is not running: start it with `candela-cluster up --name %s`", dir.Name, dir.Name)
	}
	return facts, nil
}

// kubectl is the one of the cluster's own version, linked in.
func kubectl(arguments []string) error {
	dir, rest, err := parse("kubectl", arguments, nil)
	if err != nil {
		return err
	}
	if _, err := running(dir); err != nil {
		return err
	}
	for name, value := range map[string]string{
		"KUBECONFIG": dir.Kubeconfig(),
		// Its cache of what the API server serves would otherwise lie in the home directory, and be another cluster's.
		"KUBECACHEDIR": dir.File("kubectl-cache"),
	} {
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	os.Args = append([]string{"kubectl"}, rest...)
	if status := component.Run("kubectl"); status != 0 {
		return exitStatus(status)
	}
	return nil
}
