package supervisor

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestServicesAreReadWithAndWithoutNamespaceAndPort(t *testing.T) {
	for text, want := range map[string][3]string{
		"web":              {"default", "web", ""},
		"web:80":           {"default", "web", "80"},
		"shop/web":         {"shop", "web", ""},
		"shop/web:metrics": {"shop", "web", "metrics"},
	} {
		namespace, name, port, err := ParseService(text)
		if got := [3]string{namespace, name, port}; err != nil || got != want {
			t.Errorf("%s was read as %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "/web", "shop/", "web:", "a/b/c", "web:80:81", "we b"} {
		if _, _, _, err := ParseService(text); err == nil {
			t.Errorf("%q was read", text)
		}
	}
}

func TestPortIsFoundByNameOrNumberOrBeingTheOnlyOne(t *testing.T) {
	service := func(ports ...corev1.ServicePort) *corev1.Service {
		return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: corev1.ServiceSpec{Ports: ports}}
	}
	web, metrics := corev1.ServicePort{Name: "http", Port: 80}, corev1.ServicePort{Name: "metrics", Port: 9090}
	for wanted, want := range map[string]int32{"http": 80, "9090": 9090} {
		if got, err := servicePort(service(web, metrics), wanted); err != nil || got != want {
			t.Errorf("port %s is %d, %v", wanted, got, err)
		}
	}
	if got, err := servicePort(service(web), ""); err != nil || got != 80 {
		t.Errorf("the only port is %d, %v", got, err)
	}
	if _, err := servicePort(service(web, metrics), ""); err == nil || !strings.Contains(err.Error(), "80/http, 9090/metrics") {
		t.Errorf("two ports: %v", err)
	}
}

func TestHealthReportIsCutToWhatIsWrong(t *testing.T) {
	if got := unready("[+]ping ok\n[-]etcd failed: reason withheld\nreadyz check failed\n"); got != "[-]etcd failed: reason withheld" {
		t.Errorf("cut to %q", got)
	}
}
