package supervisor

import (
	"context"
	"fmt"
	"net"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"candela.dev/cluster/internal/control"
	"candela.dev/cluster/internal/forward"
)

// Forward is a Service that the host reaches.
type Forward struct {
	Service string `json:"service"`
	Address string `json:"address"`
	URL     string `json:"url"`
}

type forwarded struct {
	Forward
	listener net.Listener
	target   *target
}

// target is where connections to a Service go. Its address is asked for once, and again after it failed, so that
// forwarding works while the API server does not.
type target struct {
	s               *Supervisor
	namespace, name string
	port            string

	mu      sync.Mutex
	address string
}

// ParseService reads NAMESPACE/SERVICE[:PORT]; the namespace may be left out.
func ParseService(text string) (namespace, name, port string, err error) {
	namespace = metav1.NamespaceDefault
	rest := text
	if before, after, ok := strings.Cut(text, "/"); ok {
		namespace, rest = before, after
	}
	name, port, hasPort := strings.Cut(rest, ":")
	if namespace == "" || name == "" || hasPort && port == "" || strings.ContainsAny(name+namespace+port, "/: ") {
		return "", "", "", fmt.Errorf("service `%s` cannot be read: write NAMESPACE/SERVICE or NAMESPACE/SERVICE:PORT", text)
	}
	return namespace, name, port, nil
}

// forward serves a Service on the host's listener that came with the request. A Service that is forwarded already
// keeps its address.
func (s *Supervisor) forward(request control.Request) (Forward, error) {
	if s.config.Options.ControlPlaneOnly {
		return Forward{}, errNoNode
	}
	namespace, name, port, err := ParseService(request.Subject)
	if err != nil {
		return Forward{}, err
	}
	if request.File == nil {
		return Forward{}, fmt.Errorf("no listener was sent")
	}
	t := &target{s: s, namespace: namespace, name: name, port: port}
	if err := t.resolve(); err != nil {
		return Forward{}, err
	}
	key := namespace + "/" + name
	if port != "" {
		key += ":" + port
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if known, ok := s.forwards[key]; ok {
		return known.Forward, nil
	}
	listener, err := net.FileListener(request.File)
	if err != nil {
		return Forward{}, fmt.Errorf("cannot use the listener: %w", err)
	}
	address := listener.Addr().String()
	added := &forwarded{Forward: Forward{Service: key, Address: address, URL: "http://" + address}, listener: listener, target: t}
	s.forwards[key] = added
	go forward.Serve(listener, t.dial)
	return added.Forward, nil
}

// listForwards gives them by name; the caller holds the lock.
func (s *Supervisor) listForwards() []Forward {
	list := make([]Forward, 0, len(s.forwards))
	for _, f := range s.forwards {
		list = append(list, f.Forward)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Service < list[j].Service })
	return list
}

func (t *target) dial() (net.Conn, error) {
	t.mu.Lock()
	address := t.address
	t.mu.Unlock()
	conn, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err == nil {
		return conn, nil
	}
	// The Service may have been made anew.
	if t.resolve() != nil {
		return nil, err
	}
	t.mu.Lock()
	changed := t.address != address
	address = t.address
	t.mu.Unlock()
	if !changed {
		return nil, err
	}
	return net.DialTimeout("tcp", address, 5*time.Second)
}

// resolve asks the API server for the Service's address and port.
func (t *target) resolve() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	service, err := t.s.client.CoreV1().Services(t.namespace).Get(ctx, t.name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("namespace `%s` has no Service `%s`%s", t.namespace, t.name, t.others(ctx))
	}
	if err != nil {
		return fmt.Errorf("cannot look up the Service: %w", err)
	}
	port, err := servicePort(service, t.port)
	if err != nil {
		return err
	}
	if service.Spec.ClusterIP == "" || service.Spec.ClusterIP == corev1.ClusterIPNone {
		return fmt.Errorf("Service `%s` has no cluster address: only those that have one can be forwarded", t.name)
	}
	t.mu.Lock()
	t.address = net.JoinHostPort(service.Spec.ClusterIP, strconv.Itoa(int(port)))
	t.mu.Unlock()
	return nil
}

func (t *target) others(ctx context.Context) string {
	list, err := t.s.client.CoreV1().Services(t.namespace).List(ctx, metav1.ListOptions{})
	if err != nil || len(list.Items) == 0 {
		return ""
	}
	var names []string
	for _, service := range list.Items {
		names = append(names, service.Name)
	}
	return ": it has " + strings.Join(names, ", ")
}

// servicePort finds a port by number or name; without either, the Service must have just one.
func servicePort(service *corev1.Service, wanted string) (int32, error) {
	var have []string
	for _, port := range service.Spec.Ports {
		if port.Name == wanted && wanted != "" || strconv.Itoa(int(port.Port)) == wanted || wanted == "" && len(service.Spec.Ports) == 1 {
			return port.Port, nil
		}
		have = append(have, strings.TrimSuffix(fmt.Sprintf("%d/%s", port.Port, port.Name), "/"))
	}
	if wanted == "" {
		return 0, fmt.Errorf("Service `%s` has several ports: name one of %s", service.Name, strings.Join(have, ", "))
	}
	return 0, fmt.Errorf("Service `%s` has no port `%s`: it has %s", service.Name, wanted, strings.Join(have, ", "))
}
