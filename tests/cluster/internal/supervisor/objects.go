package supervisor

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"candela.dev/cluster/internal/provisioner"
	"candela.dev/cluster/internal/sandbox"
)

// createObjects makes what an installer would: the rights of CoreDNS, its Service, the default StorageClass.
func (s *Supervisor) createObjects(node bool) error {
	if !node {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), bootLimit)
	defer cancel()
	for _, create := range []func(context.Context) error{
		func(ctx context.Context) error {
			_, err := s.client.RbacV1().ClusterRoles().Create(ctx, dnsRole(), metav1.CreateOptions{})
			return err
		},
		func(ctx context.Context) error {
			_, err := s.client.RbacV1().ClusterRoleBindings().Create(ctx, dnsBinding(), metav1.CreateOptions{})
			return err
		},
		func(ctx context.Context) error {
			_, err := s.client.CoreV1().Services("kube-system").Create(ctx, dnsService(), metav1.CreateOptions{})
			return err
		},
		func(ctx context.Context) error {
			_, err := s.client.DiscoveryV1().EndpointSlices("kube-system").Create(ctx, dnsEndpoints(), metav1.CreateOptions{})
			return err
		},
		func(ctx context.Context) error {
			_, err := s.client.StorageV1().StorageClasses().Create(ctx, storageClass(), metav1.CreateOptions{})
			return err
		},
	} {
		// Namespace kube-system appears a moment after the API server is ready.
		err := s.until("kube-apiserver", 30*time.Second, func() error {
			err := create(ctx)
			if apierrors.IsAlreadyExists(err) {
				return nil
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func dnsRole() *rbacv1.ClusterRole {
	read := []string{"list", "watch"}
	return &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: "system:coredns"},
		Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{""}, Resources: []string{"endpoints", "services", "pods", "namespaces"}, Verbs: read},
			{APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}, Verbs: read},
		},
	}
}

func dnsBinding() *rbacv1.ClusterRoleBinding {
	return &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "system:coredns"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "system:coredns"},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: "system:coredns"}},
	}
}

// CoreDNS runs beside the node, not in a pod, so its Service has no selector and names the endpoint itself.
func dnsService() *corev1.Service {
	port := func(name string, protocol corev1.Protocol) corev1.ServicePort {
		return corev1.ServicePort{Name: name, Protocol: protocol, Port: 53, TargetPort: intstr.FromInt32(53)}
	}
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "kube-dns", Labels: map[string]string{"k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS"}},
		Spec: corev1.ServiceSpec{
			ClusterIP: sandbox.DNSService,
			Ports:     []corev1.ServicePort{port("dns", corev1.ProtocolUDP), port("dns-tcp", corev1.ProtocolTCP)},
		},
	}
}

func dnsEndpoints() *discoveryv1.EndpointSlice {
	return endpoints("kube-dns", []discoveryv1.EndpointPort{
		endpointPort("dns", corev1.ProtocolUDP, 53),
		endpointPort("dns-tcp", corev1.ProtocolTCP, 53),
	})
}

// endpoints leads a Service without selector to the node's own address.
func endpoints(service string, ports []discoveryv1.EndpointPort) *discoveryv1.EndpointSlice {
	ready := true
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Name:   service + "-node",
			Labels: map[string]string{discoveryv1.LabelServiceName: service, discoveryv1.LabelManagedBy: "candela-cluster"},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{sandbox.NodeIP}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}},
		Ports:       ports,
	}
}

func endpointPort(name string, protocol corev1.Protocol, port int32) discoveryv1.EndpointPort {
	return discoveryv1.EndpointPort{Name: &name, Protocol: &protocol, Port: &port}
}

// Volumes are made where the first pod that uses them lands, as on most real clusters.
func storageClass() *storagev1.StorageClass {
	reclaim, binding := corev1.PersistentVolumeReclaimDelete, storagev1.VolumeBindingWaitForFirstConsumer
	return &storagev1.StorageClass{
		ObjectMeta:        metav1.ObjectMeta{Name: "directory", Annotations: map[string]string{"storageclass.kubernetes.io/is-default-class": "true"}},
		Provisioner:       provisioner.Name,
		ReclaimPolicy:     &reclaim,
		VolumeBindingMode: &binding,
	}
}
