package e2e

import (
	"os"
	"strings"
	"testing"
)

// Building the addons takes minutes, so this runs only when it is asked for (`make prove`).
func TestAddonsFakeNodesAndMeasurePods(t *testing.T) {
	if os.Getenv("CANDELA_CLUSTER_E2E_ADDONS") == "" {
		t.Skip("set CANDELA_CLUSTER_E2E_ADDONS=1: it may build programs for minutes")
	}
	c := newCLI(t, t.TempDir())
	c.up("e2e-k", "--fake-nodes=100", "--addons=metrics-server")
	nodes := c.must("kubectl", "--name", "e2e-k", "--", "get", "nodes", "--no-headers")
	if ready := strings.Count(nodes, " Ready "); ready != 101 {
		t.Errorf("%d nodes are ready:\n%s", ready, nodes)
	}
	eventually(t, "the node's use is measured", func() bool {
		text, _, ok := c.try("kubectl", "--name", "e2e-k", "--", "top", "node", "node", "--no-headers")
		return ok && strings.HasPrefix(text, "node ")
	})
}
