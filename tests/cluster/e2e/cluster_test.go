package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"candela.dev/cluster/internal/image"
)

const webManifest = `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      securityContext: {runAsNonRoot: true, runAsUser: 1000, seccompProfile: {type: RuntimeDefault}}
      terminationGracePeriodSeconds: 0
      containers:
      - name: web
        image: candela.local/web:1
        securityContext: {readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
        resources: {limits: {memory: 64Mi, RESOURCE: 2}}
        readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
        volumeMounts: [{name: data, mountPath: /data}]
      volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]
`

// webImage builds the test's own image.
func webImage(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	build := exec.Command("go", "build", "-ldflags=-s -w", "-o", filepath.Join(dir, "web"), "./web")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("cannot build the image's program: %v\n%s", err, text)
	}
	program, err := os.ReadFile(filepath.Join(dir, "web"))
	if err != nil {
		t.Fatal(err)
	}
	archive, err := image.Archive(image.Spec{
		Name: "candela.local/web:1", Entrypoint: []string{"/web"}, User: "1000:1000",
		Files: map[string][]byte{"web": program},
	})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "web.tar")
	if err := os.WriteFile(path, archive, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// longRoot is a directory below which no socket path would fit.
func longRoot(t *testing.T) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), strings.Repeat("long", 30))
	if err := os.MkdirAll(root, 0o755); err != nil {
		t.Fatal(err)
	}
	return root
}

// served gets the body that a URL answers with, once it answers.
func served(t *testing.T, url string) string {
	t.Helper()
	var body string
	eventually(t, url+" answers", func() bool {
		response, err := http.Get(url)
		if err != nil {
			return false
		}
		defer response.Body.Close()
		data, err := io.ReadAll(response.Body)
		body = string(data)
		return err == nil && response.StatusCode == http.StatusOK
	})
	return body
}

func TestTwoClustersWithGPUsSideBySideLeaveTheMachineAsItWas(t *testing.T) {
	root := longRoot(t)
	c := newCLI(t, root)
	archive := webImage(t)
	before := look(t)
	type wanted struct{ name, resource, devices, flag, product string }
	clusters := []wanted{
		{"e2e-a", "nvidia.com/gpu", "GPU-", "--gpus=4", "NVIDIA-H100-80GB-HBM3"},
		{"e2e-b", "nvidia.com/mig-1g.10gb", "MIG-", "--mig=1g.10gb=7", "NVIDIA-A100-SXM4-80GB"},
	}
	// Network namespaces of both, to look for what outlives them.
	networks := make([]string, len(clusters))
	t.Run("up", func(t *testing.T) {
		var both sync.WaitGroup
		for _, w := range clusters {
			both.Go(func() { c.up(w.name, w.flag, "--gpu-product="+w.product) })
		}
		both.Wait()
	})
	for i, w := range clusters {
		networks[i] = namespace(firstProcess(t, root, w.name), "net")
		t.Logf("%s uses %d MiB without pods", w.name, c.status(w.name).ResidentMiB)
		checkAccelerators(t, c, w.name, w.resource, w.product)
		checkPod(t, c, w.name, w.resource, w.devices, archive)
	}
	before.same(t, "with two clusters", look(t))
	if stray := strayCgroups(t); len(stray) > 0 {
		t.Errorf("cgroups outside the clusters' own: %v", stray)
	}
	for i, w := range clusters {
		if len(cgroups(t, w.name)) == 0 || len(inside(networks[i], w.name)) < 8 {
			t.Errorf("the test would not see what %s leaves", w.name)
		}
		started := time.Now()
		c.must("down", "--name", w.name)
		t.Logf("%s down after %.1f s", w.name, time.Since(started).Seconds())
		if left := cgroups(t, w.name); len(left) > 0 {
			t.Errorf("%s left cgroups %v", w.name, left)
		}
		if left := inside(networks[i], w.name); len(left) > 0 {
			t.Errorf("%s left processes %v", w.name, left)
		}
	}
	before.same(t, "after two clusters", look(t))
	if left, err := os.ReadDir(root); err != nil || len(left) > 0 {
		t.Errorf("files are left: %v, %v", left, err)
	}
}

func checkAccelerators(t *testing.T, c cli, name, resource, product string) {
	t.Helper()
	path := strings.ReplaceAll(resource, ".", `\.`)
	offered := c.must("kubectl", "--name", name, "--", "get", "node", "node", "-o", `jsonpath={.metadata.labels.nvidia\.com/gpu\.product} {.status.allocatable.`+path+`}`)
	want := map[string]string{"nvidia.com/gpu": "4", "nvidia.com/mig-1g.10gb": "7"}[resource]
	if offered != product+" "+want {
		t.Errorf("%s offers %s", name, offered)
	}
}

// checkPod runs a restricted pod with a device and a volume, and reaches it in every way there is.
func checkPod(t *testing.T, c cli, name, resource, devices, archive string) {
	t.Helper()
	if loaded := c.must("load", "--name", name, archive); strings.TrimSpace(loaded) != "candela.local/web:1" {
		t.Errorf("loaded %q", loaded)
	}
	manifest := filepath.Join(t.TempDir(), "web.yaml")
	if err := os.WriteFile(manifest, []byte(strings.ReplaceAll(webManifest, "RESOURCE", resource)), 0o644); err != nil {
		t.Fatal(err)
	}
	c.must("kubectl", "--name", name, "--", "apply", "-f", manifest)
	c.must("kubectl", "--name", name, "--", "rollout", "status", "deployment/web", "--timeout=60s")
	url := strings.TrimSpace(c.must("forward", "--name", name, "default/web:http"))
	if body := served(t, url); strings.Count(body, devices) != 2 {
		t.Errorf("%s: a pod with two devices sees %q", name, body)
	}
	if again := strings.TrimSpace(c.must("forward", "--name", name, "default/web:http")); again != url {
		t.Errorf("%s: forwarding twice gave %s and %s", name, url, again)
	}
	if found := c.must("exec", "--name", name, "--", "getent", "hosts", "web.default.svc.cluster.local"); !strings.HasPrefix(found, "10.96.") {
		t.Errorf("%s: the Service's name resolves to %q", name, found)
	}
	claims, err := filepath.Glob(filepath.Join(c.root, name, "volumes", "*", "written"))
	if err != nil || len(claims) != 1 {
		t.Errorf("%s: the claim's directory holds %v, %v", name, claims, err)
	}
	c.must("kubectl", "--name", name, "--", "delete", "deployment/web", "pvc/data", "--wait")
	eventually(t, "the released volume's directory goes", func() bool {
		left, err := os.ReadDir(filepath.Join(c.root, name, "volumes"))
		return err == nil && len(left) == 0
	})
}

func TestComponentsEndPauseAndComeBack(t *testing.T) {
	c := newCLI(t, t.TempDir())
	c.up("e2e-c", "--gpus=2", "--audit")
	c.must("kill", "--name", "e2e-c", "kube-scheduler")
	if got := c.status("e2e-c").state("kube-scheduler"); got != "killed" {
		t.Errorf("a killed component is %s", got)
	}
	c.refused("is down already", "kill", "--name", "e2e-c", "kube-scheduler")
	c.must("restart", "--name", "e2e-c", "kube-scheduler")
	c.must("pause", "--name", "e2e-c", "kube-controller-manager")
	if got := c.status("e2e-c").state("kube-controller-manager"); got != "paused" {
		t.Errorf("a paused component is %s", got)
	}
	c.must("resume", "--name", "e2e-c", "kube-controller-manager")
	for _, component := range []string{"etcd", "kube-apiserver", "containerd", "kubelet", "device-plugin"} {
		c.must("restart", "--name", "e2e-c", component)
	}
	eventually(t, "everything is well again", func() bool {
		offered, _, _ := c.try("kubectl", "--name", "e2e-c", "--", "get", "node", "node", "-o", `jsonpath={.status.allocatable.nvidia\.com/gpu}`)
		return c.status("e2e-c").Ready && offered == "2"
	})
	c.refused("it has", "kill", "--name", "e2e-c", "nothing")
	c.refused("has no Service `absent`: it has kubernetes", "forward", "--name", "e2e-c", "default/absent")
	c.refused("runs already", "up", "--name", "e2e-c")
	c.must("up", "--name", "e2e-c", "--reuse")
	audit, err := os.ReadFile(filepath.Join(c.root, "e2e-c", "audit.log"))
	if err != nil || !strings.Contains(string(audit), `"kind":"Event","apiVersion":"audit.k8s.io/v1"`) {
		t.Errorf("the audit log holds no events: %v", err)
	}
}

func TestACrashedClusterIsClearedByTheNextUpAndByDown(t *testing.T) {
	root := t.TempDir()
	c := newCLI(t, root)
	for _, next := range []string{"up", "down"} {
		c.up("e2e-d", "--control-plane-only")
		pid := firstProcess(t, root, "e2e-d")
		network := namespace(pid, "net")
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the crash ends every process", func() bool { return len(inside(network, "e2e-d")) == 0 })
		c.refused("is not running", "status", "--name", "e2e-d")
		if len(cgroups(t, "e2e-d")) == 0 {
			t.Error("a crash left nothing, so this test proves nothing")
		}
		if next == "up" {
			c.up("e2e-d", "--control-plane-only")
			c.must("kubectl", "--name", "e2e-d", "--", "get", "namespace", "default")
		}
		c.must("down", "--name", "e2e-d")
		if left := cgroups(t, "e2e-d"); len(left) > 0 {
			t.Errorf("after %s cgroups are left: %v", next, left)
		}
	}
}

func TestAClusterEndsWithItsOwner(t *testing.T) {
	root := t.TempDir()
	c := newCLI(t, root)
	owner := exec.Command("sleep", "600")
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _, _ = c.try("down", "--name", "e2e-o") })
	c.must("up", "--name", "e2e-o", "--control-plane-only", "--tied-to", strconv.Itoa(owner.Process.Pid))
	network := namespace(firstProcess(t, root, "e2e-o"), "net")
	_ = owner.Process.Kill()
	_ = owner.Wait()
	eventually(t, "the cluster ends", func() bool { return len(inside(network, "e2e-o")) == 0 })
}

func TestPlainErrors(t *testing.T) {
	c := newCLI(t, t.TempDir())
	busy, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	port := busy.Addr().(*net.TCPAddr).Port
	c.refused(fmt.Sprintf("port %d of 127.0.0.1 is busy", port), "up", "--name", "e2e-p", "--api-port", strconv.Itoa(port))
	c.refused("is not known: name one of", "up", "--name", "e2e-p", "--gpus=1", "--gpu-product=none")
	c.refused("leaves no node", "up", "--name", "e2e-p", "--gpus=1", "--control-plane-only")
	c.refused("is not usable", "up", "--name", "E2E")
	c.refused("there is no command", "start")
	// Opened here, since another user may not reach the file by its path.
	program, err := os.Open(c.program)
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	command := exec.Command("/proc/self/fd/3", "up", "--name", "e2e-p")
	command.Env = []string{"CANDELA_CLUSTER_ROOT=/tmp"}
	command.Dir = "/"
	command.ExtraFiles = []*os.File{program}
	command.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	text, err := command.CombinedOutput()
	if err == nil || !strings.Contains(string(text), "a cluster needs root") {
		t.Errorf("a plain user was told: %v %s", err, text)
	}
	if left, err := os.ReadDir(c.root); err != nil || len(left) > 0 {
		t.Errorf("refused commands left %v, %v", left, err)
	}
}
