package process

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// One table for the package: it reaps every child of this process.
var table = NewTable()

func wait(t *testing.T, child Child) syscall.WaitStatus {
	t.Helper()
	select {
	case status := <-child.Done:
		return status
	case <-time.After(20 * time.Second):
		t.Fatal("the child's status never arrived")
		return 0
	}
}

func TestStatusOfAChildThatEndsAtOnceIsNotLost(t *testing.T) {
	for range 50 {
		child, err := table.Start(Command{Path: "/bin/sh", Args: []string{"sh", "-c", "exit 7"}})
		if err != nil {
			t.Fatal(err)
		}
		if status := wait(t, child); status.ExitStatus() != 7 {
			t.Fatalf("child %s", Describe(status))
		}
	}
}

func TestSignalReachesALivingChildOnly(t *testing.T) {
	child, err := table.Start(Command{Path: "/bin/sleep", Args: []string{"sleep", "60"}})
	if err != nil {
		t.Fatal(err)
	}
	if !table.Signal(child, syscall.SIGKILL) {
		t.Fatal("a living child was not signalled")
	}
	if got := Describe(wait(t, child)); got != "was ended by signal 9 (killed)" {
		t.Errorf("the child %s", got)
	}
	if table.Signal(child, syscall.SIGKILL) {
		t.Error("an ended child was signalled")
	}
}

func TestOutputGoesToTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	child, err := table.Start(Command{Path: "/bin/sh", Args: []string{"sh", "-c", "echo out; echo err >&2"}, Output: file})
	if err != nil {
		t.Fatal(err)
	}
	wait(t, child)
	file.Close()
	text, err := os.ReadFile(path)
	if err != nil || string(text) != "out\nerr\n" {
		t.Errorf("log is %q, %v", text, err)
	}
}

func TestMissingProgramIsAnError(t *testing.T) {
	if _, err := table.Start(Command{Path: "/absent/program", Args: []string{"program"}}); err == nil {
		t.Error("a missing program started")
	}
}
