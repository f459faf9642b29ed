package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"candela.dev/cluster/internal/cgroup"
	"candela.dev/cluster/internal/gpu"
	"candela.dev/cluster/internal/plan"
	"candela.dev/cluster/internal/state"
	"candela.dev/cluster/internal/supervisor"
)

type upFlags struct {
	options state.Options
	mig     string
	addons  string
	kwok    int
	reuse   bool
	tiedTo  int
}

func up(arguments []string) error {
	var flags upFlags
	dir, rest, err := parse("up", arguments, func(set *flag.FlagSet) {
		o := &flags.options
		set.BoolVar(&o.ControlPlaneOnly, "control-plane-only", false, "no node: etcd, API server, controller manager and scheduler")
		set.BoolVar(&o.Audit, "audit", false, "write the metadata of every request to audit.log in the cluster's directory")
		set.IntVar(&o.APIPort, "api-port", 0, "port of the API server on 127.0.0.1 (default: a free one)")
		set.IntVar(&o.GPUs, "gpus", 0, "how many nvidia.com/gpu the node shall offer")
		set.StringVar(&o.GPUProduct, "gpu-product", "", "their product, as the label nvidia.com/gpu.product names it (default: "+gpu.DefaultProduct+")")
		set.IntVar(&o.GPUMemory, "gpu-memory", 0, "their memory in MiB, for a product that is not known here")
		set.StringVar(&flags.mig, "mig", "", "MIG slices to offer beside them, as in 1g.10gb=7,3g.40gb=1")
		set.StringVar(&flags.addons, "addons", "", "addons to start: metrics-server, kwok")
		set.IntVar(&flags.kwok, "fake-nodes", 0, "how many nodes kwok shall fake (starts the addon)")
		set.BoolVar(&flags.reuse, "reuse", false, "succeed when the cluster runs already")
		set.IntVar(&flags.tiedTo, "tied-to", 0, "process that the cluster must not outlive")
	})
	if err != nil {
		return err
	}
	if len(rest) > 0 {
		return fmt.Errorf("`up` takes flags only, not `%s`", rest[0])
	}
	flags.options.Name = dir.Name
	if err := flags.check(); err != nil {
		return err
	}
	lock, err := dir.Lock()
	if errors.Is(err, state.ErrRunning) {
		if flags.reuse {
			fmt.Printf("cluster `%s` runs already\n", dir.Name)
			return nil
		}
		return fmt.Errorf("cluster `%s` runs already: use it with --reuse, end it with `candela-cluster down --name %s`, or choose another --name", dir.Name, dir.Name)
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	err = start(dir, lock, flags)
	if err != nil {
		return err
	}
	return startAddons(dir, flags)
}

// check refuses what cannot work before anything is touched.
func (f *upFlags) check() error {
	if err := asRoot(); err != nil {
		return err
	}
	o := &f.options
	switch {
	case o.GPUs < 0 || o.GPUs > 512:
		return fmt.Errorf("--gpus %d cannot be offered: choose 0 to 512", o.GPUs)
	case o.APIPort < 0 || o.APIPort > 65535:
		return fmt.Errorf("--api-port %d is no port: choose 1 to 65535", o.APIPort)
	case f.kwok < 0 || f.kwok > 5000:
		return fmt.Errorf("--fake-nodes %d cannot be made: choose 0 to 5000", f.kwok)
	case o.GPUMemory < 0:
		return fmt.Errorf("--gpu-memory %d is no size: write it in MiB", o.GPUMemory)
	}
	if owner, taken := reservedPorts[o.APIPort]; taken {
		return fmt.Errorf("--api-port %d is taken inside the cluster by %s: choose another", o.APIPort, owner)
	}
	var err error
	if o.MIG, err = gpu.ParseMIG(f.mig); err != nil {
		return err
	}
	if _, err = gpu.FindProduct(o.GPUProduct, o.GPUMemory); err != nil {
		return err
	}
	for name := range strings.SplitSeq(f.addons, ",") {
		if name != "" {
			o.Addons = append(o.Addons, name)
		}
	}
	if f.kwok > 0 && !contains(o.Addons, "kwok") {
		o.Addons = append(o.Addons, "kwok")
	}
	for _, name := range o.Addons {
		if _, known := addons[name]; !known {
			return unknownAddon(name)
		}
	}
	if !o.ControlPlaneOnly {
		return plan.CheckPackages()
	}
	if o.GPUs > 0 || len(o.MIG) > 0 {
		return errors.New("--control-plane-only leaves no node that could offer GPUs: drop one of the flags")
	}
	return nil
}

func contains(list []string, wanted string) bool {
	for _, item := range list {
		if item == wanted {
			return true
		}
	}
	return false
}

// reservedPorts are those of the components inside the cluster, where the API server keeps its host port.
var reservedPorts = map[int]string{
	53: "CoreDNS", 2379: "etcd", 2380: "etcd", 8181: "CoreDNS", 10248: "kubelet", 10249: "kube-proxy", 10250: "kubelet",
	10254: "metrics-server", 10255: "kubelet", 10256: "kube-proxy", 10257: "kube-controller-manager",
	10259: "kube-scheduler", 10261: "kwok",
}

// listen takes the API server's port of the host.
func listen(port int) (*net.TCPListener, error) {
	for range 20 {
		listener, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
		if errors.Is(err, unix.EADDRINUSE) {
			return nil, fmt.Errorf("port %d of 127.0.0.1 is busy: choose another with --api-port, or leave the flag out for a free one", port)
		}
		if err != nil {
			return nil, fmt.Errorf("cannot listen for the API server: %w", err)
		}
		tcp := listener.(*net.TCPListener)
		got := tcp.Addr().(*net.TCPAddr).Port
		// Inside the cluster this number must be free as well; 30000 to 32767 are for Services.
		_, reserved := reservedPorts[got]
		if port != 0 || !reserved && (got < 30000 || got > 32767) {
			return tcp, nil
		}
		defer tcp.Close()
	}
	return nil, errors.New("found no free port for the API server: choose one with --api-port")
}

// start makes the namespaces with their first process, and waits until that has brought the cluster up.
func start(dir state.Dir, lock *os.File, flags upFlags) (err error) {
	if err := leftovers(dir); err != nil {
		return err
	}
	snapshotter, err := plan.Snapshotter(dir)
	if err != nil {
		return err
	}
	listener, err := listen(flags.options.APIPort)
	if err != nil {
		return errors.Join(err, remove(dir, false))
	}
	defer listener.Close()
	flags.options.APIPort = listener.Addr().(*net.TCPAddr).Port
	if err := cgroup.Create(dir.Cgroup()); err != nil {
		return errors.Join(err, remove(dir, false))
	}
	first, err := launch(dir, lock, listener, flags, plan.Machine{Cgroup: dir.Cgroup(), CNIDir: plan.CNIDir(), Snapshotter: snapshotter})
	if err != nil {
		return errors.Join(err, remove(dir, false))
	}
	interrupted, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	defer context.AfterFunc(interrupted, func() { _ = first.command.Process.Kill() })()
	if err := first.follow(dir, flags.options); err != nil {
		_ = first.command.Process.Kill()
		_ = first.command.Wait()
		if interrupted.Err() != nil {
			err = errors.New("interrupted")
		}
		err = explain(dir, err)
		// The logs stay, for whoever looks into it.
		return errors.Join(err, remove(dir, true))
	}
	return nil
}

// firstProcess is the cluster's, as `up` holds it.
type firstProcess struct {
	command *exec.Cmd
	leash   *os.File
	report  *os.File
}

func launch(dir state.Dir, lock *os.File, listener *net.TCPListener, flags upFlags, machine plan.Machine) (*firstProcess, error) {
	if err := os.MkdirAll(dir.File("logs"), 0o755); err != nil {
		return nil, err
	}
	log, err := os.Create(dir.File("logs", "supervisor.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	leashOut, leash, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer leashOut.Close()
	report, reportIn, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer reportIn.Close()
	listenerFile, err := listener.File()
	if err != nil {
		return nil, err
	}
	defer listenerFile.Close()
	// The order is that of the numbers in package supervisor.
	files := []*os.File{leashOut, reportIn, listenerFile, lock}
	if flags.tiedTo != 0 {
		pidfd, err := unix.PidfdOpen(flags.tiedTo, 0)
		if err != nil {
			return nil, fmt.Errorf("cannot watch process %d of --tied-to: %w", flags.tiedTo, err)
		}
		owner := os.NewFile(uintptr(pidfd), "owner")
		defer owner.Close()
		files = append(files, owner)
	}
	command := &exec.Cmd{
		Path:       "/proc/self/exe",
		Args:       []string{"candela-cluster", "init", dir.Path},
		Env:        []string{"PATH=" + plan.Path},
		Dir:        "/",
		Stdout:     log,
		Stderr:     log,
		ExtraFiles: files,
		SysProcAttr: &syscall.SysProcAttr{
			Setsid:     true,
			Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		},
	}
	if err := command.Start(); err != nil {
		if errors.Is(err, unix.EPERM) {
			return nil, fmt.Errorf("cannot make namespaces, though this is root: a container needs the capability SYS_ADMIN for it: %w", err)
		}
		return nil, fmt.Errorf("cannot make namespaces: %w", err)
	}
	first := &firstProcess{command: command, leash: leash, report: report}
	err = json.NewEncoder(leash).Encode(supervisor.Config{Dir: dir, Options: flags.options, Machine: machine, Owned: flags.tiedTo != 0})
	if err == nil {
		err = dir.Store(state.Facts{Options: flags.options, PID: command.Process.Pid, Started: time.Now(), Version: plan.Version})
	}
	if err != nil {
		_ = command.Process.Kill()
		_ = command.Wait()
		return nil, err
	}
	return first, nil
}

// follow shows the stages as they are reached, and lets go of the cluster once it is ready.
func (f *firstProcess) follow(dir state.Dir, options state.Options) error {
	defer f.report.Close()
	defer f.leash.Close()
	decoder := json.NewDecoder(f.report)
	for {
		var event supervisor.Event
		if err := decoder.Decode(&event); err != nil {
			if errors.Is(err, io.EOF) {
				return supervisor.Crashed()
			}
			return err
		}
		switch {
		case event.Error != "":
			return event.Failure()
		case event.Stage != "":
			fmt.Printf("%-14s ready after %5.1f s\n", event.Stage, event.Seconds)
		case event.Ready:
			if _, err := f.leash.Write([]byte("k")); err != nil {
				return err
			}
			fmt.Printf("cluster `%s` is up: API server at https://127.0.0.1:%d\n", dir.Name, options.APIPort)
			fmt.Printf("export KUBECONFIG=%s\n", dir.Kubeconfig())
			return nil
		}
	}
}

// leftovers removes what a crashed cluster of that name left; the caller holds its lock, so nothing of it lives.
func leftovers(dir state.Dir) error {
	if err := cgroup.Remove(dir.Cgroup()); err != nil {
		return err
	}
	if err := dir.Clear(false); err != nil {
		return fmt.Errorf("cannot remove what an earlier cluster left: %w", err)
	}
	return nil
}
