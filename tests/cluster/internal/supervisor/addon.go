package supervisor

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"candela.dev/cluster/internal/control"
	"candela.dev/cluster/internal/plan"
)

// addon starts a program that was built when it was first asked for, and waits until it serves.
func (s *Supervisor) addon(request control.Request) error {
	switch request.Subject {
	case "metrics-server":
		return s.metricsServer(request.Path)
	case "kwok":
		return s.kwok(request.Path, request.Count)
	default:
		return fmt.Errorf("there is no addon `%s`: there are metrics-server and kwok", request.Subject)
	}
}

// launchOnce starts an addon's program unless it is there already.
func (s *Supervisor) launchOnce(component plan.Component) error {
	s.mu.Lock()
	_, err := s.find(component.Name)
	s.mu.Unlock()
	if err == nil {
		return nil
	}
	return s.start(component)
}

const metricsPort = 10254

func (s *Supervisor) metricsServer(path string) error {
	if s.config.Options.ControlPlaneOnly {
		return errNoNode
	}
	err := s.launchOnce(plan.Component{
		Name: "metrics-server",
		Path: path,
		Args: []string{
			"--kubeconfig=" + plan.Kubeconfig("supervisor"),
			"--authentication-kubeconfig=" + plan.Kubeconfig("supervisor"),
			"--authorization-kubeconfig=" + plan.Kubeconfig("supervisor"),
			fmt.Sprintf("--secure-port=%d", metricsPort),
			"--cert-dir=" + plan.File("tmp", "metrics-server"),
			"--kubelet-certificate-authority=" + plan.File("pki", "ca.crt"),
			"--kubelet-preferred-address-types=InternalIP",
			// Tests wait for it, and it must be above the time that a kubelet has to answer.
			"--metric-resolution=10s",
			"--kubelet-request-timeout=5s",
			// Nothing answers behind the nodes that kwok plays.
			"--node-selector=type!=kwok",
		},
		Health: &plan.Health{URL: fmt.Sprintf("https://127.0.0.1:%d/livez", metricsPort)},
	})
	if err != nil {
		return err
	}
	if err := s.await("metrics-server", bootLimit); err != nil {
		return err
	}
	// Longer than what waits below, so that its last error is the API server's and not this deadline.
	ctx, cancel := context.WithTimeout(context.Background(), 2*bootLimit)
	defer cancel()
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "metrics-server"},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "https", Port: 443, TargetPort: intstr.FromInt32(metricsPort)}}},
	}
	if _, err := s.client.CoreV1().Services("kube-system").Create(ctx, service, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		return err
	}
	slice := endpoints("metrics-server", []discoveryv1.EndpointPort{endpointPort("https", corev1.ProtocolTCP, metricsPort)})
	if _, err := s.client.DiscoveryV1().EndpointSlices("kube-system").Create(ctx, slice, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		return err
	}
	registration, err := json.Marshal(map[string]any{
		"apiVersion": "apiregistration.k8s.io/v1",
		"kind":       "APIService",
		"metadata":   map[string]any{"name": "v1beta1.metrics.k8s.io"},
		"spec": map[string]any{
			"group": "metrics.k8s.io", "version": "v1beta1",
			"service":               map[string]any{"name": "metrics-server", "namespace": "kube-system"},
			"groupPriorityMinimum":  100,
			"versionPriority":       100,
			"insecureSkipTLSVerify": true,
		},
	})
	if err != nil {
		return err
	}
	const registrations = "/apis/apiregistration.k8s.io/v1/apiservices"
	err = s.client.RESTClient().Post().AbsPath(registrations).Body(registration).Do(ctx).Error()
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return err
	}
	return s.until("metrics-server", bootLimit, func() error {
		data, err := s.client.RESTClient().Get().AbsPath("/apis/metrics.k8s.io/v1beta1/nodes/" + plan.NodeName).DoRaw(ctx)
		if err != nil {
			return err
		}
		if len(data) == 0 {
			return fmt.Errorf("no metrics of the node yet")
		}
		return nil
	})
}

// kwokStages tell kwok how a node and a pod come to be ready; its program holds none.
//
//go:embed kwok-stages.yaml
var kwokStages []byte

// kwok plays the kubelets of `count` nodes that do not exist.
func (s *Supervisor) kwok(path string, count int) error {
	if err := os.WriteFile(plan.File("kwok-stages.yaml"), kwokStages, 0o644); err != nil {
		return err
	}
	err := s.launchOnce(plan.Component{
		Name: "kwok",
		Path: path,
		Args: []string{
			"--kubeconfig=" + plan.Kubeconfig("supervisor"),
			"--manage-all-nodes=false",
			"--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
			"--cidr=10.245.0.0/16",
			"--node-ip=10.231.0.3",
			"--node-lease-duration-seconds=40",
			"--config=" + plan.File("kwok-stages.yaml"),
			"--server-address=127.0.0.1:10261",
		},
		Health: &plan.Health{URL: "http://127.0.0.1:10261/healthz"},
	})
	if err != nil {
		return err
	}
	if err := s.await("kwok", bootLimit); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	for i := range count {
		node, err := json.Marshal(fakeNode(i))
		if err != nil {
			return err
		}
		// Applied, so that asking for more nodes leaves those that exist alone.
		_, err = s.client.CoreV1().Nodes().Patch(ctx, fmt.Sprintf("fake-%d", i), types.ApplyPatchType, node, metav1.PatchOptions{FieldManager: "candela-cluster"})
		if err != nil {
			return fmt.Errorf("cannot create node fake-%d: %w", i, err)
		}
	}
	return s.until("kwok", 5*time.Minute, func() error {
		list, err := s.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{LabelSelector: "type=kwok"})
		if err != nil {
			return err
		}
		ready := 0
		for i := range list.Items {
			if nodeIsReady(&list.Items[i]) {
				ready++
			}
		}
		if ready < count {
			return fmt.Errorf("%d of %d nodes are ready", ready, count)
		}
		return nil
	})
}

func nodeIsReady(node *corev1.Node) bool {
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}

// fakeNode is tainted, so that only pods that ask for it land on it.
func fakeNode(index int) map[string]any {
	name := fmt.Sprintf("fake-%d", index)
	return map[string]any{
		"apiVersion": "v1",
		"kind":       "Node",
		"metadata": map[string]any{
			"name":        name,
			"annotations": map[string]string{"kwok.x-k8s.io/node": "fake", "node.alpha.kubernetes.io/ttl": "0"},
			"labels": map[string]string{
				"type":                   "kwok",
				"kubernetes.io/hostname": name,
				"kubernetes.io/arch":     "amd64",
				"kubernetes.io/os":       "linux",
				"node.kubernetes.io/exclude-from-external-load-balancers": "true",
			},
		},
		"spec": map[string]any{
			"taints": []map[string]string{{"key": "kwok.x-k8s.io/node", "value": "fake", "effect": "NoSchedule"}},
		},
	}
}
