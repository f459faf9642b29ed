package state

import (
	"errors"
	"os"
	"strings"
	"testing"
)

func open(t *testing.T, name string) Dir {
	t.Helper()
	t.Setenv(RootEnv, t.TempDir())
	dir, err := Open(name)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestUnusableNamesAreRefusedWithTheRule(t *testing.T) {
	t.Setenv(RootEnv, t.TempDir())
	for _, name := range []string{"", "A", "a/b", "..", "-a", "a-", "bin", strings.Repeat("a", 41)} {
		if _, err := Open(name); err == nil {
			t.Errorf("name %q was accepted", name)
		}
	}
	if _, err := Open(strings.Repeat("a", 40)); err != nil {
		t.Error(err)
	}
}

func TestLockIsHeldByOneAndSeenByOthers(t *testing.T) {
	dir := open(t, "one")
	if dir.Running() {
		t.Fatal("runs before it was locked")
	}
	lock, err := dir.Lock()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dir.Lock(); !errors.Is(err, ErrRunning) {
		t.Fatalf("second lock: %v", err)
	}
	if !dir.Running() {
		t.Fatal("a held lock was not seen")
	}
	lock.Close()
	if dir.Running() {
		t.Fatal("still running after the lock was released")
	}
}

func TestClearKeepsTheLockAndLogsOnly(t *testing.T) {
	dir := open(t, "one")
	lock, err := dir.Lock()
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	for _, sub := range []string{"logs", "etcd/member"} {
		if err := os.MkdirAll(dir.File(sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := dir.Store(Facts{PID: 1}); err != nil {
		t.Fatal(err)
	}
	if err := dir.Clear(true); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir.Path)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	if got := strings.Join(names, " "); got != "lock logs" {
		t.Errorf("left: %s", got)
	}
}

func TestCgroupsOfEqualNamesInTwoRootsDiffer(t *testing.T) {
	a, b := open(t, "one"), open(t, "one")
	if a.Cgroup() == b.Cgroup() {
		t.Errorf("both are %s", a.Cgroup())
	}
}

func TestLogTailGivesTheLastLines(t *testing.T) {
	dir := open(t, "one")
	if err := os.MkdirAll(dir.File("logs"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir.File("logs", "etcd.log"), []byte("a\nb\nc\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(dir.LogTail("etcd", 2), ","); got != "b,c" {
		t.Errorf("tail is %s", got)
	}
	if got := dir.LogTail("absent", 2); got != nil {
		t.Errorf("tail of an absent log is %v", got)
	}
}
