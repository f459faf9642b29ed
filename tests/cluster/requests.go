package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"candela.dev/cluster/internal/control"
	"candela.dev/cluster/internal/state"
	"candela.dev/cluster/internal/supervisor"
)

// fullStatus adds what the host knows to what the cluster says.
type fullStatus struct {
	Name       string        `json:"name"`
	Running    bool          `json:"running"`
	Kubeconfig string        `json:"kubeconfig,omitempty"`
	Server     string        `json:"server,omitempty"`
	AuditLog   string        `json:"auditLog,omitempty"`
	Logs       string        `json:"logs,omitempty"`
	Options    state.Options `json:"options"`
	supervisor.Status
}

func status(arguments []string) error {
	output := ""
	dir, _, err := parse("status", arguments, func(set *flag.FlagSet) {
		set.StringVar(&output, "output", "text", "text or json")
	})
	if err != nil {
		return err
	}
	if output != "text" && output != "json" {
		return fmt.Errorf("--output `%s` is not known: write text or json", output)
	}
	full := fullStatus{Name: dir.Name}
	err = control.Call(dir, control.Request{Operation: "status"}, &full.Status)
	if err != nil && !errors.Is(err, control.ErrDown) {
		return explain(dir, err)
	}
	if err == nil {
		facts, err := dir.Load()
		if err != nil {
			return err
		}
		full.Running, full.Options, full.Kubeconfig, full.Logs = true, facts.Options, dir.Kubeconfig(), dir.File("logs")
		full.Server = fmt.Sprintf("https://127.0.0.1:%d", facts.Options.APIPort)
		if facts.Options.Audit {
			full.AuditLog = dir.File("audit.log")
		}
	}
	if output == "json" {
		encoder := json.NewEncoder(os.Stdout)
		encoder.SetIndent("", "  ")
		if err := encoder.Encode(full); err != nil {
			return err
		}
	} else if full.Running {
		printStatus(full)
	}
	if !full.Running && output == "text" {
		return explain(dir, control.ErrDown)
	}
	return nil
}

func printStatus(full fullStatus) {
	fmt.Printf("cluster `%s` at %s, up for %.0f s, %d MiB resident without pods\n", full.Name, full.Server, full.Uptime, full.ResidentMiB)
	for _, stage := range full.Stages {
		fmt.Printf("  %s ready after %.1f s\n", stage.Stage, stage.Seconds)
	}
	for _, c := range full.Components {
		fmt.Printf("  %-24s %-10s %5d MiB  %d restarts  %s\n", c.Name, c.State, c.ResidentMiB, c.Restarts, c.Detail)
	}
	for _, f := range full.Forwards {
		fmt.Printf("  %s is at %s\n", f.Service, f.URL)
	}
	fmt.Printf("export KUBECONFIG=%s\n", full.Kubeconfig)
}

func load(arguments []string) error {
	dir, rest, err := parse("load", arguments, nil)
	if err != nil {
		return err
	}
	if len(rest) == 0 {
		return errors.New("`load` needs the image: write load IMAGE.tar")
	}
	for _, path := range rest {
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		var names []string
		err = control.Call(dir, control.Request{Operation: "load", File: file}, &names)
		file.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", path, explain(dir, err))
		}
		for _, name := range names {
			fmt.Println(name)
		}
	}
	return nil
}

func forward(arguments []string) error {
	port, output := 0, ""
	dir, rest, err := parse("forward", arguments, func(set *flag.FlagSet) {
		set.IntVar(&port, "port", 0, "port on 127.0.0.1 (default: a free one)")
		set.StringVar(&output, "output", "text", "text or json")
	})
	if err != nil {
		return err
	}
	if len(rest) != 1 {
		return errors.New("`forward` needs one Service: write forward NAMESPACE/SERVICE or NAMESPACE/SERVICE:PORT")
	}
	listener, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return fmt.Errorf("cannot listen: %w", err)
	}
	defer listener.Close()
	// The listener belongs to the host's network and is carried into the cluster as an open file.
	file, err := listener.(*net.TCPListener).File()
	if err != nil {
		return err
	}
	defer file.Close()
	var made supervisor.Forward
	if err := control.Call(dir, control.Request{Operation: "forward", Subject: rest[0], File: file}, &made); err != nil {
		return explain(dir, err)
	}
	if output == "json" {
		return json.NewEncoder(os.Stdout).Encode(made)
	}
	fmt.Println(made.URL)
	return nil
}

// onComponent is a command whose only argument names a component.
func onComponent(operation string) func([]string) error {
	return func(arguments []string) error {
		dir, rest, err := parse(operation, arguments, nil)
		if err != nil {
			return err
		}
		if len(rest) != 1 {
			return fmt.Errorf("`%s` needs one component, such as kube-apiserver: `status` names them", operation)
		}
		return explain(dir, control.Call(dir, control.Request{Operation: operation, Subject: rest[0]}, nil))
	}
}

func list(arguments []string) error {
	if len(arguments) > 0 && !slices.Contains([]string{"-h", "--help"}, arguments[0]) {
		return fmt.Errorf("`list` takes nothing, not `%s`", strings.Join(arguments, " "))
	}
	dirs, err := state.List()
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		word := "ended"
		if dir.Running() {
			word = "running"
		}
		fmt.Printf("%s  %s\n", dir.Name, word)
	}
	return nil
}
