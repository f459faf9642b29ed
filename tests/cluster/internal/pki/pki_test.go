package pki

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"testing"

	"sigs.k8s.io/yaml"
)

func TestIssuedCertificatesServeTheirAddressesAndNoOthers(t *testing.T) {
	dir := t.TempDir()
	authority, err := NewAuthority(dir, "test")
	if err != nil {
		t.Fatal(err)
	}
	err = authority.Issue(Identity{File: "server", CommonName: "kube-apiserver", Addresses: []net.IP{net.IPv4(127, 0, 0, 1)}, Names: []string{"kubernetes.default.svc"}})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "server.crt"), filepath.Join(dir, "server.key"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority.pem)
	for name, want := range map[string]bool{"127.0.0.1": true, "kubernetes.default.svc": true, "10.0.0.1": false, "kubernetes": false} {
		_, err := pair.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots})
		if (err == nil) != want {
			t.Errorf("verify for %s: %v, want ok=%v", name, err, want)
		}
	}
}

func TestKubeconfigHoldsEverythingInline(t *testing.T) {
	dir := t.TempDir()
	authority, err := NewAuthority(dir, "test")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "admin.kubeconfig")
	err = authority.Kubeconfig(path, "c1", "https://127.0.0.1:1234", Identity{File: "admin", CommonName: "admin", Groups: []string{"system:masters"}})
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Users []struct {
			User map[string][]byte `json:"user"`
		} `json:"users"`
	}
	if err := yaml.Unmarshal(text, &config); err != nil {
		t.Fatal(err)
	}
	user := config.Users[0].User
	pair, err := tls.X509KeyPair(user["client-certificate-data"], user["client-key-data"])
	if err != nil {
		t.Fatal(err)
	}
	subject := pair.Leaf.Subject
	if subject.CommonName != "admin" || len(subject.Organization) != 1 || subject.Organization[0] != "system:masters" {
		t.Errorf("subject is %v", subject)
	}
}

func TestServiceAccountKeysAreAPair(t *testing.T) {
	dir := t.TempDir()
	if err := ServiceAccountKeys(dir); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, "sa.key"))
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("sa.key has mode %v", info.Mode())
	}
}
