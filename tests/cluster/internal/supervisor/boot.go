package supervisor

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"candela.dev/cluster/internal/control"
	"candela.dev/cluster/internal/forward"
	"candela.dev/cluster/internal/gpu"
	"candela.dev/cluster/internal/image"
	"candela.dev/cluster/internal/plan"
	"candela.dev/cluster/internal/process"
	"candela.dev/cluster/internal/provisioner"
	"candela.dev/cluster/internal/sandbox"
)

// A loaded machine is slow, not broken.
const bootLimit = 2 * time.Minute

// boot starts everything in order and reports each stage.
func (s *Supervisor) boot(listener net.Listener, report func(Event)) error {
	if err := s.furnish(); err != nil {
		return err
	}
	stage := func(name string) {
		event := Event{Stage: name, Seconds: time.Since(s.started).Seconds()}
		s.mu.Lock()
		s.stages = append(s.stages, event)
		s.mu.Unlock()
		report(event)
	}
	node := !s.config.Options.ControlPlaneOnly
	controlPlane := plan.ControlPlane(s.config.Options)
	if err := s.start(controlPlane[0]); err != nil {
		return err
	}
	paused := make(chan error, 1)
	if node {
		path, err := plan.LookPath("containerd")
		if err != nil {
			return err
		}
		if err := s.start(plan.Containerd(path)); err != nil {
			return err
		}
		go func() { paused <- s.loadPause() }()
	}
	// An API server that finds no etcd tries again only after a second.
	if err := s.await("etcd", bootLimit); err != nil {
		return err
	}
	if err := s.start(controlPlane[1]); err != nil {
		return err
	}
	if err := s.await("kube-apiserver", bootLimit); err != nil {
		return err
	}
	api := fmt.Sprintf("127.0.0.1:%d", s.config.Options.APIPort)
	go forward.Serve(listener, func() (net.Conn, error) { return net.Dial("tcp", api) })
	if err := s.start(controlPlane[2:]...); err != nil {
		return err
	}
	if err := s.createObjects(node); err != nil {
		return err
	}
	accelerators := gpu.FromOptions(s.config.Options)
	if node {
		if err := s.startNode(accelerators); err != nil {
			return err
		}
	}
	if err := s.controlPlaneReady(); err != nil {
		return err
	}
	stage("control plane")
	if node {
		if err := <-paused; err != nil {
			return err
		}
		if err := s.nodeReady(); err != nil {
			return err
		}
		stage("node and DNS")
		go provisioner.Run(s.client, plan.File("volumes"), plan.NodeName)
	}
	if !accelerators.Empty() {
		if err := s.devicesReady(accelerators); err != nil {
			return err
		}
		stage("accelerators")
	}
	s.mu.Lock()
	s.booted = true
	s.mu.Unlock()
	return control.Serve(plan.File("control.sock"), s.handle)
}

// controlPlaneReady waits until a Pod could be created: its namespace has a service account.
func (s *Supervisor) controlPlaneReady() error {
	for _, name := range []string{"kube-controller-manager", "kube-scheduler"} {
		if err := s.await(name, bootLimit); err != nil {
			return err
		}
	}
	return s.until("kube-controller-manager", bootLimit, func() error {
		_, err := s.client.CoreV1().ServiceAccounts("default").Get(context.Background(), "default", metav1.GetOptions{})
		return err
	})
}

// nodeReady waits until a Pod would be scheduled, and would find its Services.
func (s *Supervisor) nodeReady() error {
	err := s.until("kubelet", bootLimit, func() error {
		node, err := s.client.CoreV1().Nodes().Get(context.Background(), plan.NodeName, metav1.GetOptions{})
		if err != nil {
			return err
		}
		return schedulable(node)
	})
	if err != nil {
		return err
	}
	for _, name := range []string{"kube-proxy", "coredns"} {
		if err := s.await(name, bootLimit); err != nil {
			return err
		}
	}
	return s.until("coredns", bootLimit, func() error { return resolveOnce(sandbox.DNSService) })
}

func schedulable(node *corev1.Node) error {
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady && condition.Status != corev1.ConditionTrue {
			return fmt.Errorf("the node is not ready: %s", condition.Message)
		}
	}
	if len(node.Status.Conditions) == 0 {
		return fmt.Errorf("the node has not reported yet")
	}
	for _, taint := range node.Spec.Taints {
		if taint.Effect != corev1.TaintEffectPreferNoSchedule {
			return fmt.Errorf("the node is tainted %s", taint.Key)
		}
	}
	return nil
}

// startNode starts the node's programs, with the device plugin where there is something to offer.
func (s *Supervisor) startNode(accelerators gpu.Accelerators) error {
	if err := s.start(plan.Node()...); err != nil {
		return err
	}
	if accelerators.Empty() {
		return nil
	}
	if err := os.WriteFile(plan.File("accelerators.json"), accelerators.Encode(), 0o644); err != nil {
		return err
	}
	return s.start(plan.DevicePlugin())
}

// devicesReady waits until the node offers what was asked for.
func (s *Supervisor) devicesReady(accelerators gpu.Accelerators) error {
	return s.until("device-plugin", bootLimit, func() error {
		node, err := s.client.CoreV1().Nodes().Get(context.Background(), plan.NodeName, metav1.GetOptions{})
		if err != nil {
			return err
		}
		return accelerators.Offered(node)
	})
}

// loadPause imports the image of the pods' own process as soon as containerd serves.
func (s *Supervisor) loadPause() error {
	if err := s.await("containerd", bootLimit); err != nil {
		return err
	}
	archive, err := image.Pause()
	if err != nil {
		return err
	}
	path := plan.File("tmp", "pause.tar")
	if err := os.WriteFile(path, archive, 0o644); err != nil {
		return err
	}
	defer os.Remove(path)
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = s.load(file)
	return err
}

// load imports an image archive into containerd and names the images that it brought.
func (s *Supervisor) load(archive *os.File) ([]string, error) {
	text, err := s.ctr(archive, "images", "import", "-")
	if err != nil {
		return nil, fmt.Errorf("cannot import the image: %w", err)
	}
	var names []string
	for line := range strings.Lines(text) {
		// `unpacking NAME (sha256:…)...done`
		if rest, ok := strings.CutPrefix(line, "unpacking "); ok {
			names = append(names, strings.Fields(rest)[0])
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("the archive held no image: write it as an OCI layout or by `docker save`")
	}
	return names, nil
}

func (s *Supervisor) ctr(stdin *os.File, args ...string) (string, error) {
	path, err := plan.LookPath("ctr")
	if err != nil {
		return "", err
	}
	output, err := os.CreateTemp(plan.File("tmp"), "ctr-")
	if err != nil {
		return "", err
	}
	defer os.Remove(output.Name())
	defer output.Close()
	child, err := s.table.Start(process.Command{
		Path:   path,
		Args:   append([]string{"ctr", "--address", plan.ContainerdSocket, "--namespace", "k8s.io"}, args...),
		Env:    environment(),
		Stdin:  stdin,
		Output: output,
	})
	if err != nil {
		return "", err
	}
	status := <-child.Done
	text, err := os.ReadFile(output.Name())
	if err != nil {
		return "", err
	}
	if status.ExitStatus() != 0 {
		return "", fmt.Errorf("ctr %s: %s", process.Describe(status), strings.TrimSpace(string(text)))
	}
	return string(text), nil
}
