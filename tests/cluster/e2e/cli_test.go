// Package e2e tests the program as it is used: from outside, on the machine, as root. Its tests run when
// CANDELA_CLUSTER_E2E names the program (`make go-test` sets it).
package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// cli calls the program for clusters below one root.
type cli struct {
	t       *testing.T
	program string
	root    string
}

func newCLI(t *testing.T, root string) cli {
	t.Helper()
	program := os.Getenv("CANDELA_CLUSTER_E2E")
	if program == "" {
		t.Skip("set CANDELA_CLUSTER_E2E to the path of candela-cluster, and be root")
	}
	return cli{t: t, program: program, root: root}
}

func (c cli) command(arguments ...string) *exec.Cmd {
	command := exec.Command(c.program, arguments...)
	command.Env = append(os.Environ(), "CANDELA_CLUSTER_ROOT="+c.root)
	return command
}

// try runs the program and gives both outputs and whether it succeeded.
func (c cli) try(arguments ...string) (stdout, stderr string, ok bool) {
	command := c.command(arguments...)
	var out, errs bytes.Buffer
	command.Stdout, command.Stderr = &out, &errs
	err := command.Run()
	return out.String(), errs.String(), err == nil
}

// must runs what has to succeed.
func (c cli) must(arguments ...string) string {
	c.t.Helper()
	stdout, stderr, ok := c.try(arguments...)
	if !ok {
		c.t.Fatalf("%s failed:\n%s%s", strings.Join(arguments, " "), stdout, stderr)
	}
	return stdout
}

// refused runs what has to fail, and say so in these words.
func (c cli) refused(words string, arguments ...string) {
	c.t.Helper()
	stdout, stderr, ok := c.try(arguments...)
	if ok || !strings.Contains(stderr, words) {
		c.t.Errorf("%s was not refused with %q:\n%s%s", strings.Join(arguments, " "), words, stdout, stderr)
	}
}

// up starts a cluster that is taken away with the test, and says what the program printed.
func (c cli) up(name string, flags ...string) string {
	c.t.Helper()
	c.t.Cleanup(func() { _, _, _ = c.try("down", "--name", name) })
	started := time.Now()
	text := c.must(append([]string{"up", "--name", name, fmt.Sprintf("--tied-to=%d", os.Getpid())}, flags...)...)
	c.t.Logf("%s up after %.1f s:\n%s", name, time.Since(started).Seconds(), text)
	return text
}

type status struct {
	Running     bool
	Ready       bool
	ResidentMiB int
	Components  []struct {
		Name, State string
		Restarts    int
	}
}

func (c cli) status(name string) status {
	c.t.Helper()
	var s status
	if err := json.Unmarshal([]byte(c.must("status", "--name", name, "--output", "json")), &s); err != nil {
		c.t.Fatal(err)
	}
	return s
}

func (s status) state(component string) string {
	for _, c := range s.Components {
		if c.Name == component {
			return c.State
		}
	}
	return "absent"
}

// eventually repeats `check` until it is content or a minute has passed.
func eventually(t *testing.T, what string, check func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !check() {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
		time.Sleep(100 * time.Millisecond)
	}
}
