// Package state knows where a cluster keeps its files, and whether it runs.
package state

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Inside is where the cluster's own processes see its directory. It is short, since a socket path may have no more
// than 107 bytes and the directory itself may lie anywhere.
const Inside = "/run/candela"

// RootEnv names the variable that overrides where clusters are kept.
const RootEnv = "CANDELA_CLUSTER_ROOT"

var nameRule = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$`)

// Options are what `up` was asked for.
type Options struct {
	Name             string         `json:"name"`
	ControlPlaneOnly bool           `json:"controlPlaneOnly"`
	Audit            bool           `json:"audit"`
	APIPort          int            `json:"apiPort"`
	GPUs             int            `json:"gpus"`
	GPUProduct       string         `json:"gpuProduct"`
	GPUMemory        int            `json:"gpuMemory,omitempty"`
	MIG              map[string]int `json:"mig,omitempty"`
	Addons           []string       `json:"addons,omitempty"`
}

// Facts are written once the cluster's first process exists.
type Facts struct {
	Options Options `json:"options"`
	// PID is the first process, as the host numbers it. All others of the cluster die with it.
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	Version string    `json:"version"`
}

// Dir is the directory of one cluster, as the host sees it.
type Dir struct {
	Name string
	Path string
}

// Open names the directory of cluster `name` without creating it.
func Open(name string) (Dir, error) {
	if !nameRule.MatchString(name) {
		return Dir{}, fmt.Errorf("cluster name `%s` is not usable: write 1 to 40 lower-case letters, digits and inner dashes", name)
	}
	if name == "bin" || name == "debug" || name == "release" {
		return Dir{}, fmt.Errorf("cluster name `%s` is reserved: choose another with --name", name)
	}
	root, err := Root()
	if err != nil {
		return Dir{}, err
	}
	return Dir{Name: name, Path: filepath.Join(root, name)}, nil
}

// Root is where all clusters of this checkout are kept: the directory that holds the binary, unless the
// environment says otherwise.
func Root() (string, error) {
	if root := os.Getenv(RootEnv); root != "" {
		return filepath.Abs(root)
	}
	exe, err := os.Executable()
	if err != nil {
		return "", err
	}
	exe, err = filepath.EvalSymlinks(exe)
	if err != nil {
		return "", err
	}
	for dir := filepath.Dir(exe); dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "tests", "cluster", "go.mod")); err == nil {
			return filepath.Join(dir, "target", "cluster"), nil
		}
	}
	return "", fmt.Errorf("%s lies in no checkout of the project: set %s to the directory that shall hold clusters", exe, RootEnv)
}

// List names the clusters that have a directory.
func List() ([]Dir, error) {
	root, err := Root()
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(root)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var dirs []Dir
	for _, entry := range entries {
		dir := Dir{Name: entry.Name(), Path: filepath.Join(root, entry.Name())}
		if _, err := os.Stat(dir.File("lock")); err == nil && entry.IsDir() {
			dirs = append(dirs, dir)
		}
	}
	sort.Slice(dirs, func(i, j int) bool { return dirs[i].Name < dirs[j].Name })
	return dirs, nil
}

// File is a path below the directory, as the host sees it.
func (d Dir) File(parts ...string) string {
	return filepath.Join(append([]string{d.Path}, parts...)...)
}

// Kubeconfig is the administrator's, for the host and for `exec` alike.
func (d Dir) Kubeconfig() string { return d.File("admin.kubeconfig") }

// Cgroup is the cluster's own cgroup in each hierarchy. Two checkouts may use the same name, so it carries a
// digest of the directory.
func (d Dir) Cgroup() string {
	sum := sha256.Sum256([]byte(d.Path))
	return "candela-" + d.Name + "-" + hex.EncodeToString(sum[:4])
}

// ErrRunning is returned when another process holds the cluster's lock.
var ErrRunning = errors.New("the cluster is running")

// Lock takes the cluster's lock. The first process of the cluster inherits it, so it is held as long as that lives,
// however it ends.
func (d Dir) Lock() (*os.File, error) {
	if err := os.MkdirAll(d.Path, 0o755); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(d.File("lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		file.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, ErrRunning
		}
		return nil, fmt.Errorf("cannot lock %s: %w", d.File("lock"), err)
	}
	// Whoever held it may have removed the cluster, and the file with it, in between: a lock on that holds nobody off.
	held, err := file.Stat()
	if err != nil {
		file.Close()
		return nil, err
	}
	if named, err := os.Stat(d.File("lock")); err != nil || !os.SameFile(held, named) {
		file.Close()
		return d.Lock()
	}
	return file, nil
}

// Running says whether a process holds the cluster's lock.
func (d Dir) Running() bool {
	if _, err := os.Stat(d.File("lock")); err != nil {
		return false
	}
	file, err := d.Lock()
	if err != nil {
		return errors.Is(err, ErrRunning)
	}
	file.Close()
	return false
}

// Load reads what was written when the cluster started.
func (d Dir) Load() (Facts, error) {
	var facts Facts
	data, err := os.ReadFile(d.File("cluster.json"))
	if err != nil {
		return facts, err
	}
	return facts, json.Unmarshal(data, &facts)
}

// Store writes `facts`, atomically.
func (d Dir) Store(facts Facts) error {
	data, err := json.MarshalIndent(facts, "", "  ")
	if err != nil {
		return err
	}
	temporary := d.File("cluster.json.new")
	if err := os.WriteFile(temporary, append(data, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(temporary, d.File("cluster.json"))
}

// Clear removes everything but the lock (which the caller holds) and, if asked, the logs.
func (d Dir) Clear(keepLogs bool) error {
	entries, err := os.ReadDir(d.Path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.Name() == "lock" || keepLogs && (entry.Name() == "logs" || entry.Name() == "audit.log") {
			continue
		}
		if err := os.RemoveAll(d.File(entry.Name())); err != nil {
			return err
		}
	}
	return nil
}

// LogTail is the last `n` lines of a component's log.
func (d Dir) LogTail(component string, n int) []string {
	data, err := os.ReadFile(d.File("logs", component+".log"))
	if err != nil {
		return nil
	}
	text := strings.TrimRight(string(data), "\n")
	if text == "" {
		return nil
	}
	lines := strings.Split(text, "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return lines
}
