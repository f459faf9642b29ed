package gpu

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"

	deviceplugin "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

func TestMIGSlicesAreReadStrictly(t *testing.T) {
	got, err := ParseMIG("1g.10gb=7,3g.40gb=1")
	if err != nil || !maps.Equal(got, map[string]int{"1g.10gb": 7, "3g.40gb": 1}) {
		t.Errorf("read %v, %v", got, err)
	}
	for _, bad := range []string{"1g.10gb", "1g.10gb=0", "1g=7", "1g.10gb=x", "9g.10gb=1", "1g.10gbx=1", "=1"} {
		if got, err := ParseMIG(bad); err == nil {
			t.Errorf("%q was read as %v", bad, got)
		}
	}
}

func TestUnknownProductNeedsItsMemory(t *testing.T) {
	if _, err := FindProduct("NVIDIA-X", 0); err == nil || !strings.Contains(err.Error(), DefaultProduct) {
		t.Errorf("error is %v", err)
	}
	product, err := FindProduct("NVIDIA-X", 1000)
	if err != nil || product.MemoryMiB != 1000 {
		t.Errorf("product is %v, %v", product, err)
	}
}

func TestLabelsAndResourcesDescribeTheSameDevices(t *testing.T) {
	product, err := FindProduct("", 0)
	if err != nil {
		t.Fatal(err)
	}
	a := Accelerators{Count: 4, Product: product, MIG: map[string]int{"1g.10gb": 7}}
	if got := a.Resources(); !maps.Equal(got, map[string]int{"nvidia.com/gpu": 4, "nvidia.com/mig-1g.10gb": 7}) {
		t.Errorf("resources are %v", got)
	}
	labels := a.Labels()
	for label, want := range map[string]string{
		"nvidia.com/gpu.product":         "NVIDIA-H100-80GB-HBM3",
		"nvidia.com/gpu.count":           "4",
		"nvidia.com/gpu.memory":          "81559",
		"nvidia.com/mig-1g.10gb.count":   "7",
		"nvidia.com/mig-1g.10gb.product": "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb",
		"nvidia.com/mig.strategy":        "mixed",
	} {
		if labels[label] != want {
			t.Errorf("label %s is %q, not %q", label, labels[label], want)
		}
	}
	ids := append(a.Devices("nvidia.com/gpu"), a.Devices("nvidia.com/mig-1g.10gb")...)
	slices.Sort(ids)
	if len(slices.Compact(ids)) != 11 {
		t.Errorf("devices are not distinct: %v", ids)
	}
}

func TestContainerLearnsItsDevicesAndNoOthers(t *testing.T) {
	p := plugin{resource: "nvidia.com/gpu", devices: []string{"a", "b"}}
	request := func(ids ...string) *deviceplugin.AllocateRequest {
		return &deviceplugin.AllocateRequest{ContainerRequests: []*deviceplugin.ContainerAllocateRequest{{DevicesIds: ids}}}
	}
	response, err := p.Allocate(context.Background(), request("b"))
	if err != nil || response.ContainerResponses[0].Envs["NVIDIA_VISIBLE_DEVICES"] != "b" {
		t.Errorf("response is %v, %v", response, err)
	}
	if _, err := p.Allocate(context.Background(), request("c")); err == nil {
		t.Error("an unknown device was given out")
	}
}
