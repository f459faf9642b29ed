package plan

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sys/unix"

	"candela.dev/cluster/internal/state"
)

// programs of the host that a node needs, with the Debian package of each.
var programs = map[string]string{
	"containerd":              "containerd",
	"containerd-shim-runc-v2": "containerd",
	"ctr":                     "containerd",
	"runc":                    "runc",
	"nft":                     "nftables",
	"iptables":                "iptables",
	"conntrack":               "conntrack",
	"mount":                   "mount",
}

var cniPlugins = []string{"ptp", "portmap", "host-local", "loopback"}

// Distributions put the plugins in one of these.
var cniDirs = []string{"/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"}

// Path makes the programs findable that a plain user's PATH leaves out.
const Path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// CNIDir is the directory that holds all needed plugins, or "".
func CNIDir() string { return cniDir(cniDirs) }

func cniDir(dirs []string) string {
	for _, dir := range dirs {
		complete := true
		for _, plugin := range cniPlugins {
			if _, err := os.Stat(filepath.Join(dir, plugin)); err != nil {
				complete = false
			}
		}
		if complete {
			return dir
		}
	}
	return ""
}

// CheckPackages says what is missing for a node, and the line that installs it.
func CheckPackages() error { return checkPackages(LookPath, CNIDir()) }

func checkPackages(look func(string) (string, error), cni string) error {
	var missing []string
	packages := map[string]bool{}
	for program, pkg := range programs {
		if _, err := look(program); err != nil {
			missing = append(missing, program)
			packages[pkg] = true
		}
	}
	if cni == "" {
		missing = append(missing, "CNI plugins "+strings.Join(cniPlugins, ", "))
		packages["containernetworking-plugins"] = true
	}
	if len(missing) == 0 {
		return nil
	}
	var names []string
	for pkg := range packages {
		names = append(names, pkg)
	}
	sort.Strings(missing)
	sort.Strings(names)
	return fmt.Errorf("a node needs programs that are not installed: %s\ninstall them with: apt-get install --yes --no-install-recommends %s\nor pass --control-plane-only for a cluster without a node",
		strings.Join(missing, ", "), strings.Join(names, " "))
}

// LookPath finds a program of the host in the usual directories, whatever PATH says.
func LookPath(program string) (string, error) {
	for _, dir := range filepath.SplitList(Path) {
		path := filepath.Join(dir, program)
		if info, err := os.Stat(path); err == nil && info.Mode()&0o111 != 0 && !info.IsDir() {
			return path, nil
		}
	}
	return "", exec.ErrNotFound
}

// Snapshotter chooses how containerd keeps file systems below `dir`.
func Snapshotter(dir state.Dir) (string, error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(dir.Path, &stat); err != nil {
		return "", err
	}
	if stat.Type == unix.OVERLAYFS_SUPER_MAGIC {
		return "native", nil
	}
	return "overlayfs", nil
}
