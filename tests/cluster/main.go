// Command candela-cluster runs a real single-node Kubernetes cluster in namespaces of its own, for tests and the demo.
// See README.md.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"candela.dev/cluster/internal/component"
	"candela.dev/cluster/internal/control"
	"candela.dev/cluster/internal/gpu"
	"candela.dev/cluster/internal/plan"
	"candela.dev/cluster/internal/state"
	"candela.dev/cluster/internal/supervisor"
)

// command is one word of the command line.
type command struct {
	usage string
	run   func(arguments []string) error
}

var order = []string{"up", "down", "status", "load", "forward", "exec", "kubectl", "kill", "pause", "resume", "restart", "addon", "list"}

func commands() map[string]command {
	return map[string]command{
		"up":      {"start a cluster", up},
		"down":    {"end a cluster and remove everything of it", down},
		"status":  {"show the components and what they use", status},
		"load":    {"load IMAGE.tar into the node", load},
		"forward": {"make NAMESPACE/SERVICE[:PORT] reachable on 127.0.0.1 and print its URL", forward},
		"exec":    {"run `-- COMMAND` inside the cluster's network", enter},
		"kubectl": {"run `-- ARGUMENTS` with kubectl " + plan.Version, kubectl},
		"kill":    {"end COMPONENT at once; it stays down until `restart`", onComponent("kill")},
		"pause":   {"stop COMPONENT where it is", onComponent("pause")},
		"resume":  {"let a paused COMPONENT go on", onComponent("resume")},
		"restart": {"end COMPONENT if it runs, start it, wait until it is healthy", onComponent("restart")},
		"addon":   {"build, once, and start metrics-server or kwok", addon},
		"list":    {"name the clusters of this checkout", list},
	}
}

func main() {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "init":
			os.Exit(supervisor.Main())
		case "component":
			os.Exit(becomeComponent(os.Args[2:]))
		}
	}
	err := dispatch(os.Args[1:])
	var status exitStatus
	switch {
	case err == nil:
	case errors.As(err, &status):
		os.Exit(int(status))
	case errors.Is(err, flag.ErrHelp):
		// The flag package has printed the help.
	default:
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

// exitStatus ends the program without a message: one was printed.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

func dispatch(arguments []string) error {
	if len(arguments) == 0 || arguments[0] == "help" || arguments[0] == "--help" || arguments[0] == "-h" {
		help(os.Stdout)
		return nil
	}
	chosen, ok := commands()[arguments[0]]
	if !ok {
		help(os.Stderr)
		return fmt.Errorf("there is no command `%s`", arguments[0])
	}
	return chosen.run(arguments[1:])
}

func help(out io.Writer) {
	fmt.Fprintln(out, "usage: candela-cluster COMMAND [--name NAME] [flags] [arguments]")
	fmt.Fprintln(out)
	for _, name := range order {
		fmt.Fprintf(out, "  %-8s  %s\n", name, commands()[name].usage)
	}
	fmt.Fprintln(out, "\n`candela-cluster COMMAND --help` lists the flags of a command.")
}

// becomeComponent turns this process into one of the cluster's programs.
func becomeComponent(arguments []string) int {
	if len(arguments) == 0 {
		fmt.Fprintln(os.Stderr, "error: no component was named")
		return 2
	}
	name := arguments[0]
	if name == "device-plugin" {
		if err := gpu.Run(plan.File("accelerators.json"), plan.Kubeconfig("supervisor"), plan.NodeName); err != nil {
			fmt.Fprintln(os.Stderr, "error:", err)
			return 1
		}
		return 0
	}
	if !component.Known(name) {
		fmt.Fprintf(os.Stderr, "error: there is no component `%s`\n", name)
		return 2
	}
	os.Args = arguments
	return component.Run(name)
}

// parse reads the flags of a command; each has --name.
func parse(name string, arguments []string, define func(*flag.FlagSet)) (state.Dir, []string, error) {
	flags := flag.NewFlagSet("candela-cluster "+name, flag.ContinueOnError)
	flags.SetOutput(os.Stderr)
	cluster := flags.String("name", "candela", "name of the cluster")
	if define != nil {
		define(flags)
	}
	if err := flags.Parse(arguments); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return state.Dir{}, nil, err
		}
		// The flag package has printed what is wrong, and the flags.
		return state.Dir{}, nil, exitStatus(2)
	}
	dir, err := state.Open(*cluster)
	return dir, flags.Args(), err
}

// asRoot says what to do when it is missing.
func asRoot() error {
	if os.Geteuid() == 0 {
		return nil
	}
	return fmt.Errorf("a cluster needs root, for its namespaces, mounts and cgroups: run `sudo %s`", strings.Join(append([]string{filepath.Clean(os.Args[0])}, os.Args[1:]...), " "))
}

// explain prints the end of the log that tells more about `err`.
func explain(dir state.Dir, err error) error {
	var failure *control.Failure
	if errors.As(err, &failure) && failure.Component != "" {
		printTail(dir, failure.Component)
	}
	if errors.Is(err, control.ErrDown) {
		return fmt.Errorf("cluster `%s` is not running: start it with `candela-cluster up --name %s`", dir.Name, dir.Name)
	}
	return err
}

func printTail(dir state.Dir, component string) {
	lines := dir.LogTail(component, 20)
	if len(lines) == 0 {
		return
	}
	fmt.Fprintf(os.Stderr, "last lines of %s:\n", dir.File("logs", component+".log"))
	for _, line := range lines {
		if len(line) > 400 {
			line = line[:400] + " …"
		}
		fmt.Fprintln(os.Stderr, "  "+line)
	}
}
