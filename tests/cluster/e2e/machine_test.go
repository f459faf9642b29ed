package e2e

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"
)

// machine is what a cluster must leave as it was.
type machine map[string][]string

// look takes down the state of the machine. Cgroups of other clusters, which may come and go meanwhile, are left out.
func look(t *testing.T) machine {
	t.Helper()
	seen := machine{"mounts": lines(t, "/proc/self/mounts"), "routes": lines(t, "/proc/net/route")}
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		seen["links"] = append(seen["links"], link.Name)
	}
	if rules, err := exec.Command("nft", "list", "ruleset").Output(); err == nil {
		seen["firewall rules"] = strings.Split(string(rules), "\n")
	}
	for _, dir := range []string{"/run", "/var/lib", "/var/log", "/opt", "/etc", "/etc/cni", "/usr/libexec", "/run/netns", "/root"} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			seen["directories"] = append(seen["directories"], dir+" is absent")
			continue
		}
		for _, entry := range entries {
			seen["directories"] = append(seen["directories"], filepath.Join(dir, entry.Name()))
		}
	}
	for _, name := range []string{
		"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys",
		"kernel/keys/root_maxbytes", "kernel/hostname", "net/ipv4/ip_forward", "net/netfilter/nf_conntrack_max",
	} {
		value, err := os.ReadFile(filepath.Join("/proc/sys", name))
		if err == nil {
			seen["kernel settings"] = append(seen["kernel settings"], name+"="+strings.TrimSpace(string(value)))
		}
	}
	for _, list := range seen {
		sort.Strings(list)
	}
	return seen
}

// cgroups of a cluster name, in every hierarchy.
func cgroups(t *testing.T, name string) []string {
	t.Helper()
	var found []string
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return nil
		}
		if strings.HasPrefix(entry.Name(), "candela-"+name+"-") {
			found = append(found, path)
			return fs.SkipDir
		}
		return nil
	})
	return found
}

// strayCgroups are those that a kubelet or containerd made outside of any cluster's own.
func strayCgroups(t *testing.T) []string {
	t.Helper()
	var found []string
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return nil
		}
		if strings.HasPrefix(entry.Name(), "candela-") {
			return fs.SkipDir
		}
		if strings.HasPrefix(entry.Name(), "kube") || strings.HasPrefix(entry.Name(), "cri-") {
			found = append(found, path)
		}
		return nil
	})
	return found
}

func lines(t *testing.T, path string) []string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(data)), "\n")
}

// same reports what differs between two looks.
func (m machine) same(t *testing.T, when string, later machine) {
	t.Helper()
	for what, before := range m {
		known := map[string]int{}
		for _, line := range before {
			known[line]++
		}
		for _, line := range later[what] {
			known[line]--
		}
		for line, n := range known {
			if n > 0 {
				t.Errorf("%s: %s lost %q", when, what, line)
			}
			if n < 0 {
				t.Errorf("%s: %s gained %q", when, what, line)
			}
		}
	}
}

// firstProcess is the number of a cluster's first process.
func firstProcess(t *testing.T, root, name string) int {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, name, "cluster.json"))
	if err != nil {
		t.Fatal(err)
	}
	var facts struct{ PID int }
	if err := json.Unmarshal(data, &facts); err != nil {
		t.Fatal(err)
	}
	return facts.PID
}

// namespace identifies one of a process's namespaces.
func namespace(pid int, kind string) string {
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
	if err != nil {
		return ""
	}
	return link
}

// inside lists the processes that are in a namespace. A pod's are in one below the cluster's process namespace, but
// share the cgroup, so they are looked for by that as well.
func inside(network, cgroup string) []string {
	var found []string
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, entry := range entries {
		link, err := os.Readlink(filepath.Join("/proc", entry.Name(), "ns", "net"))
		if err != nil {
			continue
		}
		member, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "cgroup"))
		if err != nil {
			continue
		}
		if link == network || strings.Contains(string(member), "/candela-"+cgroup+"-") {
			command, _ := os.ReadFile(filepath.Join("/proc", entry.Name(), "cmdline"))
			found = append(found, entry.Name()+" "+strings.ReplaceAll(string(command), "\x00", " "))
		}
	}
	return found
}
