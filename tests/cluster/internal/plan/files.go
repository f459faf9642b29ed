package plan

import (
	"fmt"
	"net"
	"os"
	"path/filepath"

	"candela.dev/cluster/internal/pki"
	"candela.dev/cluster/internal/sandbox"
	"candela.dev/cluster/internal/state"
)

// WriteFiles writes everything that the components of `options` read, from inside the cluster's namespaces.
func WriteFiles(options state.Options, machine Machine) error {
	for _, dir := range []string{"pki", "kubeconfigs", "cni", "logs", "tmp", "volumes"} {
		if err := os.MkdirAll(File(dir), 0o755); err != nil {
			return err
		}
	}
	if err := credentials(options); err != nil {
		return err
	}
	files := map[string]string{
		"audit-policy.yaml": auditPolicy,
		"containerd.toml":   containerdConfig(machine),
		"cni/10-pods.conflist": fmt.Sprintf(`{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {"type": "ptp", "ipMasq": true, "ipam": {"type": "host-local", "ranges": [[{"subnet": "%s"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}
]}
`, sandbox.NodePodNet),
		"kubelet.yaml":    kubeletConfig(machine),
		"kube-proxy.yaml": proxyConfig,
		"Corefile":        corefile,
		"resolv.conf":     "nameserver " + sandbox.DNSService + "\nsearch default.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n",
	}
	for name, text := range files {
		if err := os.WriteFile(File(filepath.FromSlash(name)), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Machine is what the files must know of the host.
type Machine struct {
	// Cgroup is the cluster's own, below the root of each hierarchy.
	Cgroup string
	// CNIDir holds the CNI plugins.
	CNIDir string
	// Snapshotter of containerd: overlayfs does not stack on overlayfs.
	Snapshotter string
}

func credentials(options state.Options) error {
	authority, err := pki.NewAuthority(File("pki"), "candela-"+options.Name)
	if err != nil {
		return err
	}
	if err := pki.ServiceAccountKeys(File("pki")); err != nil {
		return err
	}
	node, loopback := net.ParseIP(sandbox.NodeIP), net.IPv4(127, 0, 0, 1)
	for _, identity := range []pki.Identity{
		{
			File: "apiserver", CommonName: "kube-apiserver",
			Addresses: []net.IP{node, loopback, net.ParseIP(sandbox.APIService)},
			Names:     []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"},
		},
		{File: "apiserver-kubelet-client", CommonName: "kube-apiserver-kubelet-client", Groups: []string{"system:masters"}},
		{File: "front-proxy-client", CommonName: "front-proxy-client"},
		{File: "kubelet", CommonName: "system:node:" + NodeName, Groups: []string{"system:nodes"}, Addresses: []net.IP{node, loopback}, Names: []string{NodeName}},
	} {
		if err := authority.Issue(identity); err != nil {
			return err
		}
	}
	// Host and cluster reach the API server under the same address and port: the host through the forwarder.
	server := fmt.Sprintf("https://127.0.0.1:%d", options.APIPort)
	for path, identity := range map[string]pki.Identity{
		File("admin.kubeconfig"):              {File: "admin", CommonName: "admin", Groups: []string{"system:masters"}},
		Kubeconfig("supervisor"):              {File: "supervisor", CommonName: "candela-cluster", Groups: []string{"system:masters"}},
		Kubeconfig("kube-controller-manager"): {File: "kube-controller-manager", CommonName: "system:kube-controller-manager"},
		Kubeconfig("kube-scheduler"):          {File: "kube-scheduler", CommonName: "system:kube-scheduler"},
		Kubeconfig("kube-proxy"):              {File: "kube-proxy", CommonName: "system:kube-proxy"},
		Kubeconfig("kubelet"):                 {File: "kubelet-client", CommonName: "system:node:" + NodeName, Groups: []string{"system:nodes"}},
		Kubeconfig("coredns"):                 {File: "coredns", CommonName: "system:coredns"},
	} {
		if err := authority.Kubeconfig(path, "candela-"+options.Name, server, identity); err != nil {
			return err
		}
	}
	return nil
}

// Metadata of every request once it is answered: who, what, which object, and how it ended.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
`

func containerdConfig(machine Machine) string {
	return fmt.Sprintf(`version = 2
root = "%[1]s/containerd"
state = "/run/containerd"
# It would create /opt/containerd on the machine.
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = "%[2]s"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "candela.local/pause:1"
  # Where CAP_SYS_RESOURCE is missing, runc cannot lower the score and dies.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "%[3]s"
    conf_dir = "%[1]s/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "%[4]s"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
`, state.Inside, ContainerdSocket, machine.CNIDir, machine.Snapshotter)
}

func kubeletConfig(machine Machine) string {
	return fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: %[1]s/pki/ca.crt}
authorization: {mode: Webhook}
tlsCertFile: %[1]s/pki/kubelet.crt
tlsPrivateKeyFile: %[1]s/pki/kubelet.key
cgroupDriver: cgroupfs
cgroupRoot: /%[2]s
failCgroupV1: false
failSwapOn: false
containerRuntimeEndpoint: unix://%[3]s
volumePluginDir: %[1]s/volumeplugins
clusterDNS: ["%[4]s"]
clusterDomain: cluster.local
resolvConf: ""
serializeImagePulls: false
# How long a device that a plugin registers is unseen; the default of 10 s makes tests wait.
nodeStatusUpdateFrequency: 1s
# The disk is the developer's own: a full one shall not evict the tests' pods.
evictionHard: {imagefs.available: "1%%", nodefs.available: "1%%"}
imageGCHighThresholdPercent: 100
`, state.Inside, machine.Cgroup, ContainerdSocket, sandbox.DNSService)
}

const proxyConfig = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: ` + state.Inside + `/kubeconfigs/kube-proxy}
mode: nftables
clusterCIDR: ` + sandbox.PodNet + `
# The limit of tracked connections is the machine's, not the cluster's.
conntrack: {maxPerCore: 0, min: 0}
`

const corefile = `cluster.local:53 in-addr.arpa:53 {
  errors
  ready 127.0.0.1:8181
  kubernetes cluster.local in-addr.arpa {
    kubeconfig ` + state.Inside + `/kubeconfigs/coredns
    pods insecure
  }
  cache 5
}
`
