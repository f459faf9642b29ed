// Package cgroup makes and removes the cluster's own cgroup, in every hierarchy that the machine has.
package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Root is where the kernel's hierarchies are mounted.
const Root = "/sys/fs/cgroup"

// hierarchies lists the mounted ones: the one of version 2, or those of version 1 (beside an unused version 2).
func hierarchies(root string) ([]string, error) {
	if _, err := os.Stat(filepath.Join(root, "cgroup.controllers")); err == nil {
		return []string{root}, nil
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, fmt.Errorf("cgroups are not mounted at %s: %w", root, err)
	}
	seen := map[string]bool{}
	var found []string
	for _, entry := range entries {
		// `cpu` and `cpuacct` may be links to one hierarchy.
		path, err := filepath.EvalSymlinks(filepath.Join(root, entry.Name()))
		if err != nil || seen[path] {
			continue
		}
		if _, err := os.Stat(filepath.Join(path, "cgroup.procs")); err == nil {
			seen[path] = true
			found = append(found, path)
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("no cgroup hierarchy is mounted at %s", root)
	}
	return found, nil
}

// Create makes `name` in every hierarchy, with all controllers that the machine lends.
func Create(name string) error {
	roots, err := hierarchies(Root)
	if err != nil {
		return err
	}
	for _, root := range roots {
		path := filepath.Join(root, name)
		if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := inheritCPUSet(root, path); err != nil {
			return err
		}
		if err := delegate(root); err != nil {
			return err
		}
	}
	return nil
}

// inheritCPUSet fills the two files without which no process can enter a new cpuset of version 1.
func inheritCPUSet(parent, path string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		current, err := os.ReadFile(filepath.Join(path, file))
		if err != nil || strings.TrimSpace(string(current)) != "" {
			continue
		}
		value, err := os.ReadFile(filepath.Join(parent, file))
		if err != nil || strings.TrimSpace(string(value)) == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(path, file), value, 0o644); err != nil {
			return fmt.Errorf("cannot set %s of %s: %w", file, path, err)
		}
	}
	return nil
}

// delegate lends the controllers of a version 2 hierarchy to its children. The kubelet does so from there on.
func delegate(root string) error {
	data, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if err != nil {
		return nil
	}
	controllers := strings.Fields(string(data))
	if len(controllers) == 0 {
		return nil
	}
	lent, err := os.ReadFile(filepath.Join(root, "cgroup.subtree_control"))
	if err != nil {
		return err
	}
	have := map[string]bool{}
	for _, controller := range strings.Fields(string(lent)) {
		have[controller] = true
	}
	for _, controller := range controllers {
		if have[controller] {
			continue
		}
		err := os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+"+controller), 0o644)
		needed := controller == "cpu" || controller == "memory" || controller == "pids"
		if err != nil && needed {
			return fmt.Errorf("cannot lend the cgroup controller %s below %s: %w", controller, root, err)
		}
	}
	return nil
}

// Remove deletes `name` and everything below it from every hierarchy. Its processes must have ended, but the kernel
// may still be taking them apart.
func Remove(name string) error {
	roots, err := hierarchies(Root)
	if err != nil {
		return err
	}
	deadline := time.Now().Add(10 * time.Second)
	for _, root := range roots {
		for {
			err := removeTree(filepath.Join(root, name))
			if err == nil {
				break
			}
			if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
				return err
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	return nil
}

// removeTree removes the directories deepest first; the files in them are the kernel's and go with them.
func removeTree(top string) error {
	var dirs []string
	err := filepath.WalkDir(top, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if entry.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	if err != nil {
		return err
	}
	sort.Sort(sort.Reverse(sort.StringSlice(dirs)))
	for _, dir := range dirs {
		if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("cannot remove cgroup %s: %w", dir, err)
		}
	}
	return nil
}
