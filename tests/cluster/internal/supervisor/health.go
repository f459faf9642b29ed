package supervisor

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"time"

	"candela.dev/cluster/internal/control"
	"candela.dev/cluster/internal/plan"
)

const pollPause = 20 * time.Millisecond

// probes go to loopback inside the cluster's own network, where nobody else listens, so certificates are not
// checked; kube-scheduler and kube-controller-manager sign their own.
var probes = &http.Client{
	Timeout: 5 * time.Second,
	Transport: &http.Transport{
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
		DisableKeepAlives: true,
	},
}

// healthy asks a component once.
func healthy(component plan.Component) error {
	switch health := component.Health; {
	case health == nil:
		return nil
	case health.Socket != "":
		conn, err := net.DialTimeout("unix", health.Socket, time.Second)
		if err != nil {
			return err
		}
		conn.Close()
		return nil
	default:
		response, err := probes.Get(health.URL)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode == http.StatusOK {
			return nil
		}
		body, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
		return fmt.Errorf("%s answers %d: %s", health.URL, response.StatusCode, unready(string(body)))
	}
}

// unready keeps the lines of a health report that tell what is wrong.
func unready(report string) string {
	var bad []string
	for line := range strings.Lines(report) {
		if strings.HasPrefix(line, "[-]") {
			bad = append(bad, strings.TrimSpace(line))
		}
	}
	if len(bad) > 0 {
		return strings.Join(bad, ", ")
	}
	return strings.TrimSpace(report)
}

// poll repeats `check` until it passes; the last error tells why it did not.
func poll(limit time.Duration, check func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := check()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(pollPause)
	}
}

// await waits until the component `name` is healthy, or another one failed while the cluster starts.
func (s *Supervisor) await(name string, limit time.Duration) error {
	s.mu.Lock()
	c, err := s.find(name)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if err := s.until(name, limit, func() error { return healthy(c.Component) }); err != nil {
		return err
	}
	log.Printf("%s is healthy after %.2f s", name, time.Since(s.started).Seconds())
	return nil
}

// until waits for `check`, and blames `name` when it does not pass in time.
func (s *Supervisor) until(name string, limit time.Duration, check func() error) error {
	var failed *control.Failure
	err := poll(limit, func() error {
		select {
		case failed = <-s.failures:
			return nil
		default:
			return check()
		}
	})
	if failed != nil {
		return failed
	}
	if err != nil {
		return &control.Failure{Component: name, Message: fmt.Sprintf("%s is not ready after %s: %v", name, limit, err)}
	}
	return nil
}

// resolveOnce asks the cluster's DNS for the API server, as a pod would.
func resolveOnce(server string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, net.JoinHostPort(server, "53"))
	}}
	_, err := resolver.LookupHost(ctx, "kubernetes.default.svc.cluster.local.")
	return err
}
