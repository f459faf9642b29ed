// Package plan says which programs make up a cluster, with which flags and files, and how to ask each whether it is
// healthy. It starts nothing.
package plan

import (
	"fmt"
	"path/filepath"

	"candela.dev/cluster/internal/sandbox"
	"candela.dev/cluster/internal/state"
)

// Version is that of Kubernetes; go.mod names the same.
const Version = "v1.35.0"

// NodeName is the one real node of a cluster.
const NodeName = "node"

// Component is a program of the cluster.
type Component struct {
	Name string
	// Path is empty for a program of this very binary.
	Path string
	Args []string
	// Health is nil for a program that has no way to ask.
	Health *Health
}

// Health is a question and where to ask it.
type Health struct {
	// URL is answered with 200 by a healthy component. Socket is accepted on by one that speaks no HTTP.
	URL    string
	Socket string
}

// File is a path below the cluster's directory as its own processes see it.
func File(parts ...string) string {
	return filepath.Join(append([]string{state.Inside}, parts...)...)
}

// Kubeconfig is that of one component.
func Kubeconfig(name string) string { return File("kubeconfigs", name) }

// ContainerdSocket is where the container runtime listens.
const ContainerdSocket = state.Inside + "/containerd.sock"

// ControlPlane lists what every cluster has, in the order in which it is started.
func ControlPlane(options state.Options) []Component {
	apiserver := Component{
		Name: "kube-apiserver",
		Args: []string{
			"--etcd-servers=http://127.0.0.1:2379",
			"--advertise-address=" + sandbox.NodeIP,
			"--bind-address=0.0.0.0",
			fmt.Sprintf("--secure-port=%d", options.APIPort),
			"--cert-dir=" + File("pki"),
			"--client-ca-file=" + File("pki/ca.crt"),
			"--tls-cert-file=" + File("pki/apiserver.crt"),
			"--tls-private-key-file=" + File("pki/apiserver.key"),
			"--kubelet-client-certificate=" + File("pki/apiserver-kubelet-client.crt"),
			"--kubelet-client-key=" + File("pki/apiserver-kubelet-client.key"),
			// The node's name resolves nowhere; its address does.
			"--kubelet-preferred-address-types=InternalIP",
			"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
			"--service-account-key-file=" + File("pki/sa.pub"),
			"--service-account-signing-key-file=" + File("pki/sa.key"),
			"--authorization-mode=Node,RBAC",
			"--enable-admission-plugins=NodeRestriction",
			"--service-cluster-ip-range=" + sandbox.ServiceNet,
			"--allow-privileged=true",
			"--endpoint-reconciler-type=lease",
			// The aggregation layer, for metrics-server. Both CA flags name one file, so the name must be pinned.
			"--proxy-client-cert-file=" + File("pki/front-proxy-client.crt"),
			"--proxy-client-key-file=" + File("pki/front-proxy-client.key"),
			"--requestheader-client-ca-file=" + File("pki/ca.crt"),
			"--requestheader-allowed-names=front-proxy-client",
			"--requestheader-extra-headers-prefix=X-Remote-Extra-",
			"--requestheader-group-headers=X-Remote-Group",
			"--requestheader-username-headers=X-Remote-User",
			"--profiling=false",
		},
		Health: &Health{URL: fmt.Sprintf("https://127.0.0.1:%d/readyz", options.APIPort)},
	}
	if options.Audit {
		apiserver.Args = append(apiserver.Args,
			"--audit-policy-file="+File("audit-policy.yaml"),
			"--audit-log-path="+File("audit.log"),
			// What is read at rest must be whole: no batching, and no rotation below 100 GB.
			"--audit-log-mode=blocking",
			"--audit-log-maxsize=100000",
		)
	}
	return []Component{
		{
			Name: "etcd",
			Args: []string{
				"--data-dir=" + File("etcd"),
				"--log-level=warn",
				"--listen-client-urls=http://127.0.0.1:2379",
				"--advertise-client-urls=http://127.0.0.1:2379",
				"--listen-peer-urls=http://127.0.0.1:2380",
				// The data need not outlive the machine, only the process.
				"--unsafe-no-fsync",
			},
			Health: &Health{URL: "http://127.0.0.1:2379/health"},
		},
		apiserver,
		{
			Name: "kube-controller-manager",
			Args: []string{
				"--kubeconfig=" + Kubeconfig("kube-controller-manager"),
				"--authentication-kubeconfig=" + Kubeconfig("kube-controller-manager"),
				"--authorization-kubeconfig=" + Kubeconfig("kube-controller-manager"),
				"--bind-address=127.0.0.1",
				"--service-account-private-key-file=" + File("pki/sa.key"),
				"--root-ca-file=" + File("pki/ca.crt"),
				"--cluster-signing-cert-file=" + File("pki/ca.crt"),
				"--cluster-signing-key-file=" + File("pki/ca.key"),
				"--use-service-account-credentials=true",
				"--allocate-node-cidrs=true",
				"--cluster-cidr=" + sandbox.PodNet,
				"--service-cluster-ip-range=" + sandbox.ServiceNet,
				"--leader-elect=false",
				"--profiling=false",
				// Autoscalers look every 15 s otherwise, and tests wait for them.
				"--horizontal-pod-autoscaler-sync-period=5s",
				// Each controller asks for an account of its own at the start; at the default of 20 a second that takes 5 s.
				"--kube-api-qps=300",
				"--kube-api-burst=600",
			},
			Health: &Health{URL: "https://127.0.0.1:10257/healthz"},
		},
		{
			Name: "kube-scheduler",
			Args: []string{
				"--kubeconfig=" + Kubeconfig("kube-scheduler"),
				"--authentication-kubeconfig=" + Kubeconfig("kube-scheduler"),
				"--authorization-kubeconfig=" + Kubeconfig("kube-scheduler"),
				"--bind-address=127.0.0.1",
				"--leader-elect=false",
				"--profiling=false",
			},
			Health: &Health{URL: "https://127.0.0.1:10259/healthz"},
		},
	}
}

// Containerd comes first on a node: it needs no API server.
func Containerd(path string) Component {
	return Component{
		Name:   "containerd",
		Path:   path,
		Args:   []string{"--config", File("containerd.toml")},
		Health: &Health{Socket: ContainerdSocket},
	}
}

// Node lists the rest of the one real node.
func Node() []Component {
	return []Component{
		{
			Name: "kubelet",
			Args: []string{
				"--config=" + File("kubelet.yaml"),
				"--kubeconfig=" + Kubeconfig("kubelet"),
				"--hostname-override=" + NodeName,
				"--node-ip=" + sandbox.NodeIP,
				"--cert-dir=" + File("pki"),
				"--v=2",
			},
			Health: &Health{URL: "http://127.0.0.1:10248/healthz"},
		},
		{
			Name: "kube-proxy",
			Args: []string{
				"--config=" + File("kube-proxy.yaml"),
				"--hostname-override=" + NodeName,
			},
			Health: &Health{URL: "http://127.0.0.1:10256/healthz"},
		},
		{
			Name:   "coredns",
			Args:   []string{"-conf", File("Corefile")},
			Health: &Health{URL: "http://127.0.0.1:8181/ready"},
		},
	}
}

// DevicePlugin advertises the fake accelerators.
func DevicePlugin() Component {
	return Component{Name: "device-plugin"}
}
