// Package pki makes the certificates, keys and kubeconfigs of a cluster.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// A cluster lives for hours; a year leaves room for a machine whose clock is wrong.
const validity = 365 * 24 * time.Hour

// Authority signs the certificates of one cluster. Its key is kept, since the controller manager signs with it too.
type Authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

// Identity is what a certificate says about its holder.
type Identity struct {
	// File is the base name of the files: FILE.crt and FILE.key.
	File string
	// CommonName is the user, Groups are its groups.
	CommonName string
	Groups     []string
	// Addresses and Names are those that the holder serves under.
	Addresses []net.IP
	Names     []string
}

// NewAuthority makes a fresh authority and writes ca.crt and ca.key to `dir`.
func NewAuthority(dir, name string) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(validity),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	authority := &Authority{dir: dir, cert: cert, key: key, pem: encode("CERTIFICATE", der)}
	if err := write(dir, "ca", authority.pem, key); err != nil {
		return nil, err
	}
	return authority, nil
}

// Issue signs a certificate for `identity` and writes it with its key.
func (a *Authority) Issue(identity Identity) error {
	_, _, err := a.issue(identity)
	return err
}

func (a *Authority) issue(identity Identity) (cert []byte, key *ecdsa.PrivateKey, err error) {
	key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial(),
		Subject:      pkix.Name{CommonName: identity.CommonName, Organization: identity.Groups},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(validity),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		IPAddresses:  identity.Addresses,
		DNSNames:     identity.Names,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return nil, nil, err
	}
	cert = encode("CERTIFICATE", der)
	return cert, key, write(a.dir, identity.File, cert, key)
}

// Kubeconfig issues a client certificate for `identity` and writes a self-contained kubeconfig to `path`.
// Nothing in it is a path, so it works on both sides of the cluster's mount namespace.
func (a *Authority) Kubeconfig(path, cluster, server string, identity Identity) error {
	cert, key, err := a.issue(identity)
	if err != nil {
		return err
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return err
	}
	data := func(b []byte) string { return base64.StdEncoding.EncodeToString(b) }
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters:
- name: %[1]s
  cluster:
    server: %[2]s
    certificate-authority-data: %[3]s
users:
- name: %[4]s
  user:
    client-certificate-data: %[5]s
    client-key-data: %[6]s
contexts:
- name: %[1]s
  context: {cluster: %[1]s, user: %[4]s}
current-context: %[1]s
`, cluster, server, data(a.pem), identity.File, data(cert), data(keyPEM))
	return os.WriteFile(path, []byte(text), 0o600)
}

// ServiceAccountKeys writes sa.key and sa.pub, with which the API server signs and checks tokens.
func ServiceAccountKeys(dir string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return err
	}
	private, err := encodeKey(key)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "sa.pub"), encode("PUBLIC KEY", public), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "sa.key"), private, 0o600)
}

func write(dir, file string, cert []byte, key *ecdsa.PrivateKey) error {
	private, err := encodeKey(key)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, file+".crt"), cert, 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, file+".key"), private, 0o600)
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return encode("EC PRIVATE KEY", der), nil
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func serial() *big.Int {
	limit := new(big.Int).Lsh(big.NewInt(1), 120)
	n, err := rand.Int(rand.Reader, limit)
	if err != nil {
		// crypto/rand does not fail on Linux; the Go runtime itself aborts if it does.
		panic(err)
	}
	return n
}
