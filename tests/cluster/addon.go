package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"candela.dev/cluster/internal/control"
	"candela.dev/cluster/internal/state"
)

// addons are programs that few tests need, built when first asked for.
var addons = map[string]string{
	"metrics-server": "sigs.k8s.io/metrics-server/cmd/metrics-server@v0.9.0",
	"kwok":           "sigs.k8s.io/kwok/cmd/kwok@v0.8.0",
}

func unknownAddon(name string) error {
	var names []string
	for known := range addons {
		names = append(names, known)
	}
	sort.Strings(names)
	return fmt.Errorf("there is no addon `%s`: there are %s", name, strings.Join(names, " and "))
}

func addon(arguments []string) error {
	nodes, buildOnly := 0, false
	dir, rest, err := parse("addon", arguments, func(set *flag.FlagSet) {
		set.IntVar(&nodes, "fake-nodes", 100, "how many nodes kwok shall fake")
		set.BoolVar(&buildOnly, "build-only", false, "build the program, start nothing")
	})
	if err != nil {
		return err
	}
	if len(rest) != 1 {
		return errors.New("`addon` needs a name: metrics-server or kwok")
	}
	if buildOnly {
		_, err := buildAddon(rest[0])
		return err
	}
	return startAddon(dir, rest[0], nodes)
}

func startAddons(dir state.Dir, flags upFlags) error {
	for _, name := range flags.options.Addons {
		if err := startAddon(dir, name, flags.kwok); err != nil {
			return err
		}
	}
	return nil
}

func startAddon(dir state.Dir, name string, nodes int) error {
	if _, known := addons[name]; !known {
		return unknownAddon(name)
	}
	if _, err := running(dir); err != nil {
		return err
	}
	built, err := buildAddon(name)
	if err != nil {
		return err
	}
	// The cluster does not see every directory of the machine, but always its own.
	inside := filepath.Join("addons", name)
	if err := os.MkdirAll(dir.File("addons"), 0o755); err != nil {
		return err
	}
	if err := place(built, dir.File(inside)); err != nil {
		return err
	}
	started := time.Now()
	request := control.Request{Operation: "addon", Subject: name, Path: filepath.Join(state.Inside, inside), Count: nodes}
	if err := control.Call(dir, request, nil); err != nil {
		return explain(dir, err)
	}
	fmt.Printf("%-14s ready after %5.1f s\n", name, time.Since(started).Seconds())
	return nil
}

// place links a program into the cluster's directory, or copies it where that is another file system.
func place(from, to string) error {
	err := os.Link(from, to)
	if err == nil || errors.Is(err, os.ErrExist) {
		return nil
	}
	if !errors.Is(err, unix.EXDEV) {
		return err
	}
	program, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, program, 0o755)
}

// buildAddon builds a program of another module at its pinned version, unless that was done.
func buildAddon(name string) (string, error) {
	source, known := addons[name]
	if !known {
		return "", unknownAddon(name)
	}
	// Beside this program, wherever its clusters are kept.
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	_, version, _ := strings.Cut(source, "@")
	dir := filepath.Join(filepath.Dir(self), "bin", name+"-"+version)
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	compiler, err := exec.LookPath("go")
	if err != nil {
		return "", fmt.Errorf("%s must be built first, and there is no Go compiler: install Go 1.25 or later", name)
	}
	fmt.Fprintf(os.Stderr, "building %s (about two minutes, once)\n", source)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	// Built beside and moved, so that what was interrupted is not taken for whole.
	partial, err := os.MkdirTemp(dir, ".build-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(partial)
	command := exec.Command(compiler, "install", "-ldflags=-s -w", source)
	command.Env = append(os.Environ(), "GOBIN="+partial, "GOFLAGS=-buildvcs=false")
	command.Dir = partial
	command.Stdout, command.Stderr = os.Stderr, os.Stderr
	if err := command.Run(); err != nil {
		return "", fmt.Errorf("cannot build %s: %w", source, err)
	}
	return path, os.Rename(filepath.Join(partial, name), path)
}
