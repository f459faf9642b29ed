// Package gpu pretends that the node has accelerators: their resources are offered through the kubelet's real device
// plugin interface, and the node is labelled as NVIDIA's GPU feature discovery labels it. There is no device behind
// them, so a container sees which it was given in its environment, and nothing else.
package gpu

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"candela.dev/cluster/internal/state"
)

// Accelerators is what the node shall offer.
type Accelerators struct {
	// Count of whole devices.
	Count   int     `json:"count"`
	Product Product `json:"product"`
	// MIG counts the slices of each profile, of devices beside those of `Count`.
	MIG map[string]int `json:"mig,omitempty"`
}

// Product is a model of device, as the label names it.
type Product struct {
	Name      string `json:"name"`
	MemoryMiB int    `json:"memoryMiB"`
	Family    string `json:"family"`
	// Major and Minor of its compute capability.
	Major int `json:"major"`
	Minor int `json:"minor"`
}

// DefaultProduct is offered when none is named.
const DefaultProduct = "NVIDIA-H100-80GB-HBM3"

// products and their memory as nvidia-smi reports it, in MiB.
var products = []Product{
	{"NVIDIA-H100-80GB-HBM3", 81559, "hopper", 9, 0},
	{"NVIDIA-H200", 143771, "hopper", 9, 0},
	{"NVIDIA-B200", 183359, "blackwell", 10, 0},
	{"NVIDIA-A100-SXM4-80GB", 81920, "ampere", 8, 0},
	{"NVIDIA-A100-SXM4-40GB", 40960, "ampere", 8, 0},
	{"NVIDIA-A10G", 23028, "ampere", 8, 6},
	{"NVIDIA-L40S", 46068, "ada-lovelace", 8, 9},
	{"NVIDIA-L4", 23034, "ada-lovelace", 8, 9},
	{"Tesla-T4", 15360, "turing", 7, 5},
}

// FindProduct gives a known product, or one of the caller's own if its memory is said.
func FindProduct(name string, memoryMiB int) (Product, error) {
	if name == "" {
		name = DefaultProduct
	}
	var known []string
	for _, product := range products {
		if product.Name == name {
			if memoryMiB > 0 {
				product.MemoryMiB = memoryMiB
			}
			return product, nil
		}
		known = append(known, product.Name)
	}
	if memoryMiB > 0 {
		return Product{Name: name, MemoryMiB: memoryMiB, Family: "undefined", Major: 1}, nil
	}
	return Product{}, fmt.Errorf("GPU product `%s` is not known: name one of %s, or say its memory in MiB with --gpu-memory", name, strings.Join(known, ", "))
}

// ParseMIG reads `1g.10gb=7,3g.40gb=1`.
func ParseMIG(text string) (map[string]int, error) {
	slices := map[string]int{}
	for part := range strings.SplitSeq(text, ",") {
		if part == "" {
			continue
		}
		profile, number, ok := strings.Cut(part, "=")
		count, err := strconv.Atoi(number)
		var compute, memory int
		n, scanErr := fmt.Sscanf(profile, "%dg.%dgb", &compute, &memory)
		if !ok || err != nil || count < 1 || count > 512 || scanErr != nil || n != 2 || profile != fmt.Sprintf("%dg.%dgb", compute, memory) || compute < 1 || compute > 7 {
			return nil, fmt.Errorf("MIG slices `%s` cannot be read: write PROFILE=COUNT, as in 1g.10gb=7", part)
		}
		slices[profile] += count
	}
	return slices, nil
}

// FromOptions gives what `up` was asked for; the options were checked there.
func FromOptions(options state.Options) Accelerators {
	product, err := FindProduct(options.GPUProduct, options.GPUMemory)
	if err != nil {
		return Accelerators{}
	}
	return Accelerators{Count: options.GPUs, Product: product, MIG: options.MIG}
}

// Empty says that there is nothing to offer.
func (a Accelerators) Empty() bool { return a.Count == 0 && len(a.MIG) == 0 }

// Encode is what the device plugin reads.
func (a Accelerators) Encode() []byte {
	data, err := json.Marshal(a)
	if err != nil {
		// Numbers and strings always encode.
		panic(err)
	}
	return data
}

// Resources counts the devices of each resource name.
func (a Accelerators) Resources() map[string]int {
	resources := map[string]int{}
	if a.Count > 0 {
		resources["nvidia.com/gpu"] = a.Count
	}
	for profile, count := range a.MIG {
		resources["nvidia.com/mig-"+profile] = count
	}
	return resources
}

// Devices names the devices of a resource, as stable and as unique as real ones.
func (a Accelerators) Devices(resource string) []string {
	prefix := "GPU"
	if strings.HasPrefix(resource, "nvidia.com/mig-") {
		prefix = "MIG"
	}
	var ids []string
	for i := range a.Resources()[resource] {
		ids = append(ids, fmt.Sprintf("%s-%s", prefix, deviceUUID(resource, i)))
	}
	return ids
}

// Labels are those that GPU feature discovery writes, in its `mixed` MIG strategy.
func (a Accelerators) Labels() map[string]string {
	if a.Empty() {
		return nil
	}
	product := a.Product
	migCapable := product.Family == "ampere" && product.Major == 8 && product.Minor == 0 || product.Family == "hopper" || product.Family == "blackwell"
	labels := map[string]string{
		"nvidia.com/gpu.present":                  "true",
		"nvidia.com/gpu.product":                  product.Name,
		"nvidia.com/gpu.count":                    strconv.Itoa(a.Count),
		"nvidia.com/gpu.replicas":                 "1",
		"nvidia.com/gpu.memory":                   strconv.Itoa(product.MemoryMiB),
		"nvidia.com/gpu.family":                   product.Family,
		"nvidia.com/gpu.compute.major":            strconv.Itoa(product.Major),
		"nvidia.com/gpu.compute.minor":            strconv.Itoa(product.Minor),
		"nvidia.com/gpu.machine":                  "candela-cluster",
		"nvidia.com/gpu.mode":                     "compute",
		"nvidia.com/gpu.sharing-strategy":         "none",
		"nvidia.com/cuda.driver-version.full":     "570.86.15",
		"nvidia.com/cuda.driver-version.major":    "570",
		"nvidia.com/cuda.driver-version.minor":    "86",
		"nvidia.com/cuda.driver-version.revision": "15",
		"nvidia.com/cuda.runtime-version.full":    "12.8",
		"nvidia.com/cuda.runtime-version.major":   "12",
		"nvidia.com/cuda.runtime-version.minor":   "8",
		"nvidia.com/mig.capable":                  strconv.FormatBool(migCapable),
		"nvidia.com/mps.capable":                  "false",
		"nvidia.com/vgpu.present":                 "false",
	}
	if migCapable {
		labels["nvidia.com/mig.strategy"] = "mixed"
	}
	for profile, count := range a.MIG {
		var compute, memory int
		// Profiles were parsed when the options were.
		_, _ = fmt.Sscanf(profile, "%dg.%dgb", &compute, &memory)
		prefix := "nvidia.com/mig-" + profile + "."
		labels[prefix+"count"] = strconv.Itoa(count)
		labels[prefix+"replicas"] = "1"
		labels[prefix+"product"] = product.Name + "-MIG-" + profile
		labels[prefix+"memory"] = strconv.Itoa(memory * 1000)
		labels[prefix+"slices.gi"] = strconv.Itoa(compute)
		labels[prefix+"slices.ci"] = strconv.Itoa(compute)
		labels[prefix+"sharing-strategy"] = "none"
	}
	return labels
}

// Offered says what the node does not offer yet.
func (a Accelerators) Offered(node *corev1.Node) error {
	resources := a.Resources()
	for _, resource := range slices.Sorted(maps.Keys(resources)) {
		quantity := node.Status.Allocatable[corev1.ResourceName(resource)]
		if quantity.Value() != int64(resources[resource]) {
			return fmt.Errorf("the node offers %d of %s, not %d", quantity.Value(), resource, resources[resource])
		}
	}
	for label, value := range a.Labels() {
		if node.Labels[label] != value {
			return fmt.Errorf("the node lacks the label %s", label)
		}
	}
	return nil
}
