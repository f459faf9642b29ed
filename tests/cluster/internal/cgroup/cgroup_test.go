package cgroup

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func touch(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestVersion1HierarchiesAreFoundOnceEach(t *testing.T) {
	root := t.TempDir()
	touch(t, filepath.Join(root, "cpu,cpuacct", "cgroup.procs"), "")
	touch(t, filepath.Join(root, "memory", "cgroup.procs"), "")
	touch(t, filepath.Join(root, "notes"), "")
	for _, link := range []string{"cpu", "cpuacct"} {
		if err := os.Symlink("cpu,cpuacct", filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	found, err := hierarchies(root)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, path := range found {
		names = append(names, filepath.Base(path))
	}
	if got := strings.Join(names, " "); got != "cpu,cpuacct memory" {
		t.Errorf("found %s", got)
	}
}

func TestVersion2IsOneHierarchy(t *testing.T) {
	root := t.TempDir()
	touch(t, filepath.Join(root, "cgroup.controllers"), "cpu memory pids")
	found, err := hierarchies(root)
	if err != nil || len(found) != 1 || found[0] != root {
		t.Errorf("found %v, %v", found, err)
	}
}

func TestMissingCgroupsAreSaid(t *testing.T) {
	if _, err := hierarchies(t.TempDir()); err == nil {
		t.Error("an empty directory passed for cgroups")
	}
}
