package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A pod that uses more than its autoscaler wants, and pods that only a fake node takes.
const scaledManifest = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: web
        image: candela.local/web:1
        resources: {requests: {cpu: 10m, memory: 8Mi}}
        volumeMounts: [{name: data, mountPath: /data}]
      volumes: [{name: data, emptyDir: {}}]
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: web}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}
  minReplicas: 1
  maxReplicas: 2
  metrics:
  - {type: Resource, resource: {name: memory, target: {type: AverageValue, averageValue: 1Ki}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: many}
spec:
  replicas: 200
  selector: {matchLabels: {app: many}}
  template:
    metadata: {labels: {app: many}}
    spec:
      nodeSelector: {type: kwok}
      tolerations: [{key: kwok.x-k8s.io/node, operator: Exists}]
      terminationGracePeriodSeconds: 0
      containers: [{name: none, image: nowhere.invalid/none:1, resources: {requests: {cpu: 100m}}}]
`

// Building the addons takes minutes, so this runs only when it is asked for (`make prove`).
func TestAddonsFakeNodesAndMeasurePods(t *testing.T) {
	if os.Getenv("CANDELA_CLUSTER_E2E_ADDONS") == "" {
		t.Skip("set CANDELA_CLUSTER_E2E_ADDONS=1: it may build programs for minutes")
	}
	c := newCLI(t, t.TempDir())
	c.up("e2e-k", "--fake-nodes=100", "--addons=metrics-server")
	kubectl := func(arguments ...string) (string, bool) {
		text, _, ok := c.try(append([]string{"kubectl", "--name", "e2e-k", "--"}, arguments...)...)
		return text, ok
	}
	nodes, _ := kubectl("get", "nodes", "--no-headers")
	if ready := strings.Count(nodes, " Ready "); ready != 101 {
		t.Errorf("%d nodes are ready:\n%s", ready, nodes)
	}
	c.must("load", "--name", "e2e-k", webImage(t))
	manifest := filepath.Join(t.TempDir(), "scaled.yaml")
	if err := os.WriteFile(manifest, []byte(scaledManifest), 0o644); err != nil {
		t.Fatal(err)
	}
	c.must("kubectl", "--name", "e2e-k", "--", "apply", "-f", manifest)
	var seen string
	eventually(t, "the node's use is measured", func() bool {
		text, ok := kubectl("top", "node", "node", "--no-headers")
		seen = text
		return ok && strings.HasPrefix(text, "node ") && !strings.Contains(text, "<unknown>")
	})
	t.Logf("kubectl top node: %s", seen)
	eventually(t, "the autoscaler acts on what is measured", func() bool {
		text, ok := kubectl("get", "hpa", "web", "-o", "json")
		seen = text
		var hpa struct {
			Status struct {
				DesiredReplicas int
				CurrentMetrics  []struct{ Resource struct{ Name string } }
			}
		}
		if !ok || json.Unmarshal([]byte(text), &hpa) != nil {
			return false
		}
		return hpa.Status.DesiredReplicas == 2 && len(hpa.Status.CurrentMetrics) == 1 && hpa.Status.CurrentMetrics[0].Resource.Name == "memory"
	})
	c.must("kubectl", "--name", "e2e-k", "--", "rollout", "status", "deployment/web", "--timeout=60s")
	eventually(t, "both pods' use is measured", func() bool {
		text, ok := kubectl("top", "pods", "-l", "app=web", "--no-headers")
		seen = text
		return ok && strings.Count(text, "Mi") == 2
	})
	t.Logf("kubectl top pods:\n%s", seen)
	c.must("kubectl", "--name", "e2e-k", "--", "rollout", "status", "deployment/many", "--timeout=120s")
	fake, _ := kubectl("get", "pods", "-l", "app=many", "-o", `jsonpath={range .items[*]}{.spec.nodeName}{"\n"}{end}`)
	if n := strings.Count(fake, "fake-"); n != 200 {
		t.Errorf("%d of 200 pods run on fake nodes", n)
	}
}
