// Package provisioner makes volumes out of directories in the cluster's own directory, for the default StorageClass.
// It does not enforce their size.
package provisioner

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
)

// Name of the provisioner, as StorageClasses name it.
const Name = "candela.dev/directory"

const (
	selectedNode  = "volume.kubernetes.io/selected-node"
	provisionedBy = "pv.kubernetes.io/provisioned-by"
)

// errNotYet means that nothing is to be done before the object changes again.
var errNotYet = errors.New("not yet")

type provisioner struct {
	client kubernetes.Interface
	dir    string
	node   string
}

// Run provisions and deletes until the process ends.
func Run(client kubernetes.Interface, dir, node string) {
	p := provisioner{client: client, dir: dir, node: node}
	factory := informers.NewSharedInformerFactory(client, 0)
	claims := factory.Core().V1().PersistentVolumeClaims()
	volumes := factory.Core().V1().PersistentVolumes()
	classes := factory.Storage().V1().StorageClasses()
	queue := workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[item](100*time.Millisecond, 10*time.Second))
	enqueue := func(object any) {
		switch object := object.(type) {
		case *corev1.PersistentVolumeClaim:
			queue.Add(item{claim: true, namespace: object.Namespace, name: object.Name})
		case *corev1.PersistentVolume:
			queue.Add(item{name: object.Name})
		case *storagev1.StorageClass:
			// A claim may have waited for its class.
			waiting, _ := claims.Lister().List(labels.Everything())
			for _, claim := range waiting {
				queue.Add(item{claim: true, namespace: claim.Namespace, name: claim.Name})
			}
		}
	}
	handler := cache.ResourceEventHandlerFuncs{AddFunc: enqueue, UpdateFunc: func(_, object any) { enqueue(object) }}
	for _, informer := range []cache.SharedIndexInformer{claims.Informer(), volumes.Informer(), classes.Informer()} {
		// Adding to an informer that has not started cannot fail.
		_, _ = informer.AddEventHandler(handler)
	}
	factory.Start(nil)
	factory.WaitForCacheSync(nil)
	for {
		next, stopped := queue.Get()
		if stopped {
			return
		}
		var err error
		if next.claim {
			claim, getErr := claims.Lister().PersistentVolumeClaims(next.namespace).Get(next.name)
			if getErr == nil {
				class, classErr := classes.Lister().Get(className(claim))
				if classErr == nil {
					err = p.provision(claim, class)
				}
			}
		} else if volume, getErr := volumes.Lister().Get(next.name); getErr == nil {
			err = p.remove(volume)
		}
		if err != nil && !errors.Is(err, errNotYet) {
			log.Printf("volume of %s/%s: %v", next.namespace, next.name, err)
			queue.AddRateLimited(next)
		} else {
			queue.Forget(next)
		}
		queue.Done(next)
	}
}

// item is a claim, or else a volume.
type item struct {
	claim           bool
	namespace, name string
}

func className(claim *corev1.PersistentVolumeClaim) string {
	if claim.Spec.StorageClassName == nil {
		return ""
	}
	return *claim.Spec.StorageClassName
}

// provision makes the directory and the volume of a claim that waits for them.
func (p provisioner) provision(claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass) error {
	if class.Provisioner != Name || claim.Spec.VolumeName != "" || claim.DeletionTimestamp != nil {
		return errNotYet
	}
	waits := class.VolumeBindingMode != nil && *class.VolumeBindingMode == storagev1.VolumeBindingWaitForFirstConsumer
	if waits && claim.Annotations[selectedNode] != p.node {
		return errNotYet
	}
	if mode := claim.Spec.VolumeMode; mode != nil && *mode == corev1.PersistentVolumeBlock {
		return errNotYet
	}
	volume := p.volume(claim, class)
	path := filepath.Join(p.dir, volume.Name)
	if err := os.MkdirAll(path, 0o777); err != nil {
		return err
	}
	// The umask took bits that a non-root container needs.
	if err := os.Chmod(path, 0o777); err != nil {
		return err
	}
	_, err := p.client.CoreV1().PersistentVolumes().Create(context.Background(), volume, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

func (p provisioner) volume(claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass) *corev1.PersistentVolume {
	reclaim := corev1.PersistentVolumeReclaimDelete
	if class.ReclaimPolicy != nil {
		reclaim = *class.ReclaimPolicy
	}
	// Named after the claim's uid, so that two tries make one volume.
	name := "pvc-" + string(claim.UID)
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{provisionedBy: Name}},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: claim.Spec.Resources.Requests[corev1.ResourceStorage]},
			AccessModes:                   claim.Spec.AccessModes,
			PersistentVolumeReclaimPolicy: reclaim,
			StorageClassName:              class.Name,
			ClaimRef: &corev1.ObjectReference{
				APIVersion: "v1", Kind: "PersistentVolumeClaim",
				Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID,
			},
			PersistentVolumeSource: corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: filepath.Join(p.dir, name)}},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{
					Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{p.node},
				}},
			}}}},
		},
	}
}

// remove deletes a released volume with its directory.
func (p provisioner) remove(volume *corev1.PersistentVolume) error {
	ours := volume.Annotations[provisionedBy] == Name && volume.Spec.Local != nil
	if !ours || volume.Status.Phase != corev1.VolumeReleased || volume.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimDelete {
		return errNotYet
	}
	path := filepath.Join(p.dir, volume.Name)
	if volume.Spec.Local.Path != path {
		return fmt.Errorf("volume %s lies at %s, which is not its place", volume.Name, volume.Spec.Local.Path)
	}
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	err := p.client.CoreV1().PersistentVolumes().Delete(context.Background(), volume.Name, metav1.DeleteOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
