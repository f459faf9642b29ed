package supervisor

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"candela.dev/cluster/internal/control"
)

// Status is what `status` shows.
type Status struct {
	Ready      bool              `json:"ready"`
	Uptime     float64           `json:"uptimeSeconds"`
	Stages     []Event           `json:"stages"`
	Components []ComponentStatus `json:"components"`
	Forwards   []Forward         `json:"forwards"`
	// ResidentMiB is the memory of everything but the pods. Pages that components share, which are those of the one
	// binary that all of them are, count once.
	ResidentMiB int `json:"residentMiB"`
}

// ComponentStatus is one component's.
type ComponentStatus struct {
	Name string `json:"name"`
	// State is one of running, paused, killed (by command), ended (about to be started again), unhealthy.
	State       string `json:"state"`
	Detail      string `json:"detail,omitempty"`
	Restarts    int    `json:"restarts"`
	ResidentMiB int    `json:"residentMiB"`
}

func (s *Supervisor) handle(request control.Request) (any, error) {
	switch request.Operation {
	case "status":
		return s.status(), nil
	case "kill":
		return nil, s.kill(request.Subject)
	case "pause":
		return nil, s.pause(request.Subject, true)
	case "resume":
		return nil, s.pause(request.Subject, false)
	case "restart":
		return nil, s.restart(request.Subject)
	case "load":
		if s.config.Options.ControlPlaneOnly {
			return nil, errNoNode
		}
		if request.File == nil {
			return nil, fmt.Errorf("no image archive was sent")
		}
		return s.load(request.File)
	case "forward":
		return s.forward(request)
	case "addon":
		return nil, s.addon(request)
	default:
		return nil, fmt.Errorf("the cluster knows no operation `%s`: it was started by another version", request.Operation)
	}
}

var errNoNode = fmt.Errorf("the cluster has no node: it was started with --control-plane-only")

func (s *Supervisor) status() Status {
	s.mu.Lock()
	components := make([]component, 0, len(s.components))
	for _, c := range s.components {
		components = append(components, *c)
	}
	status := Status{Ready: s.booted, Uptime: time.Since(s.started).Seconds(), Stages: s.stages, Forwards: s.listForwards()}
	s.mu.Unlock()
	// The supervisor itself.
	status.ResidentMiB = residentMiB(os.Getpid())
	for i := range components {
		c := &components[i]
		shown := ComponentStatus{Name: c.Name, State: "running", Restarts: c.restarts}
		if c.running {
			shown.ResidentMiB = residentMiB(c.child.PID)
			status.ResidentMiB += shown.ResidentMiB
		}
		switch {
		case c.stopped && !c.running:
			shown.State = "killed"
		case !c.running:
			shown.State, shown.Detail = "ended", c.lastEnd
		case c.paused:
			shown.State = "paused"
		default:
			if err := healthy(c.Component); err != nil {
				shown.State, shown.Detail = "unhealthy", err.Error()
			}
		}
		if shown.State != "running" {
			status.Ready = false
		}
		status.Components = append(status.Components, shown)
	}
	return status
}

// residentMiB is a process's proportional share of memory; 0 when it is gone.
func residentMiB(pid int) int {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "Pss:"); ok {
			kib, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				return 0
			}
			return kib / 1024
		}
	}
	return 0
}
