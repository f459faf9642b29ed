package plan

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	kubeletconfig "k8s.io/kubelet/config/v1beta1"
	"sigs.k8s.io/yaml"

	"candela.dev/cluster/internal/state"
)

func TestMissingProgramsAreNamedWithTheLineThatInstallsThem(t *testing.T) {
	look := func(program string) (string, error) {
		if program == "runc" || program == "ctr" {
			return "", exec.ErrNotFound
		}
		return "/usr/bin/" + program, nil
	}
	err := checkPackages(look, "")
	if err == nil {
		t.Fatal("nothing was missed")
	}
	for _, want := range []string{"CNI plugins ptp", "ctr, runc", "apt-get install --yes --no-install-recommends containerd containernetworking-plugins runc\n"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q lacks %q", err, want)
		}
	}
	if err := checkPackages(func(string) (string, error) { return "/x", nil }, "/usr/lib/cni"); err != nil {
		t.Errorf("complete machine: %v", err)
	}
}

func TestAnIncompletePluginDirectoryIsPassedOver(t *testing.T) {
	partial, whole := t.TempDir(), t.TempDir()
	for i, plugin := range cniPlugins {
		for _, dir := range []string{partial, whole} {
			if dir == partial && i == 0 {
				continue
			}
			if err := os.WriteFile(filepath.Join(dir, plugin), nil, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := cniDir([]string{"/absent", partial, whole}); got != whole {
		t.Errorf("chose %s", got)
	}
}

func TestSocketPathsFitWhateverTheDirectory(t *testing.T) {
	if len(ContainerdSocket) > 107 {
		t.Errorf("%s has %d bytes", ContainerdSocket, len(ContainerdSocket))
	}
}

func TestAuditLogIsOnlyWrittenWhenAskedFor(t *testing.T) {
	flags := func(audit bool) []string {
		for _, component := range ControlPlane(state.Options{APIPort: 6443, Audit: audit}) {
			if component.Name == "kube-apiserver" {
				return component.Args
			}
		}
		t.Fatal("no API server")
		return nil
	}
	if slices.Contains(flags(false), "--audit-log-path="+File("audit.log")) || !slices.Contains(flags(true), "--audit-log-path="+File("audit.log")) {
		t.Error("the audit flag does not decide")
	}
}

func TestKubeletConfigIsStrictlyValid(t *testing.T) {
	var config kubeletconfig.KubeletConfiguration
	if err := yaml.UnmarshalStrict([]byte(kubeletConfig(Machine{Cgroup: "candela-a-1"})), &config); err != nil {
		t.Fatal(err)
	}
	if config.CgroupRoot != "/candela-a-1" {
		t.Errorf("cgroup root is %s", config.CgroupRoot)
	}
}
