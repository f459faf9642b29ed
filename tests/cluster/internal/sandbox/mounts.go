// Package sandbox furnishes the namespaces that a cluster's first process finds itself in: what the kubelet,
// containerd and CNI hard-code leads into the cluster's own directory, and there is a network without a way out.
package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// shadowed directories are empty for the cluster but for what is bound into them.
var shadowed = []string{"/run", "/var/lib", "/var/log"}

// bound paths lie in the cluster's directory under the same path.
var bound = []string{
	"/var/lib/kubelet",
	"/var/lib/cni",
	"/var/log/pods",
	"/var/log/containers",
	"/run/containerd",
	"/run/netns",
}

// tunables are the kernel settings that the kubelet would change for the whole machine. It leaves a setting alone
// that reads as it wants, so it reads these.
var tunables = map[string]int{
	"vm/overcommit_memory":      1,
	"vm/panic_on_oom":           0,
	"kernel/panic":              10,
	"kernel/panic_on_oops":      1,
	"kernel/keys/root_maxkeys":  1000000,
	"kernel/keys/root_maxbytes": 1000000 * 25,
}

// Mounts separates this process's mount namespace from the machine's and furnishes it. `path` is the cluster's
// directory, which afterwards is found at `inside`.
func Mounts(path, inside string) error {
	// Nothing mounted from here on reaches the machine; below that, pods may ask for propagation.
	if err := mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return err
	}
	// The directory is opened before anything hides it, since it may lie below one of the shadowed ones; and in this
	// namespace, since the kernel does not bind what belongs to another.
	dir, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot open %s: %w", path, err)
	}
	defer unix.Close(dir)
	for _, dir := range shadowed {
		if err := mount("candela", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(inside, 0o755); err != nil {
		return err
	}
	if err := mount(fmt.Sprintf("/proc/self/fd/%d", dir), inside, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	for _, path := range bound {
		source := filepath.Join(inside, "root", path)
		for _, dir := range []string{source, path} {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
		}
		if err := mount(source, path, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	// Process numbers of the new namespace.
	if err := mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	return maskTunables(inside)
}

func maskTunables(inside string) error {
	for name, value := range tunables {
		target := filepath.Join("/proc/sys", name)
		if _, err := os.Stat(target); err != nil {
			continue
		}
		source := filepath.Join(inside, "root", "proc-sys", name)
		if err := os.MkdirAll(filepath.Dir(source), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(source, []byte(strconv.Itoa(value)+"\n"), 0o644); err != nil {
			return err
		}
		if err := mount(source, target, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	return nil
}

func mount(source, target, kind string, flags uintptr, data string) error {
	if err := unix.Mount(source, target, kind, flags, data); err != nil {
		return fmt.Errorf("cannot mount on %s: %w", target, err)
	}
	return nil
}
