package gpu

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	deviceplugin "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// Run is the device plugin's process. It registers anew whenever the kubelet starts.
func Run(config, kubeconfig, node string) error {
	data, err := os.ReadFile(config)
	if err != nil {
		return err
	}
	var accelerators Accelerators
	if err := json.Unmarshal(data, &accelerators); err != nil {
		return fmt.Errorf("cannot read %s: %w", config, err)
	}
	rest, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(rest)
	if err != nil {
		return err
	}
	go label(client, node, accelerators.Labels())
	var registered os.FileInfo
	var servers []*grpc.Server
	for {
		// The kubelet empties the directory when it starts and makes a new socket, perhaps with the old inode.
		socket, err := os.Stat(deviceplugin.KubeletSocket)
		if err == nil && (registered == nil || !os.SameFile(registered, socket) || !registered.ModTime().Equal(socket.ModTime())) {
			for _, server := range servers {
				server.Stop()
			}
			servers, err = register(accelerators)
			if err != nil {
				log.Printf("cannot register with the kubelet: %v", err)
			} else {
				registered = socket
				log.Printf("registered %v", accelerators.Resources())
			}
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// label patches the node until that succeeds: the node may not be registered yet.
func label(client kubernetes.Interface, node string, labels map[string]string) {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": labels}})
	if err != nil {
		// Strings always encode.
		panic(err)
	}
	for {
		_, err := client.CoreV1().Nodes().Patch(context.Background(), node, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
		if err == nil {
			return
		}
		log.Printf("cannot label the node yet: %v", err)
		time.Sleep(300 * time.Millisecond)
	}
}

func register(accelerators Accelerators) ([]*grpc.Server, error) {
	var servers []*grpc.Server
	for resource := range accelerators.Resources() {
		server, err := serve(resource, accelerators.Devices(resource))
		if err != nil {
			return servers, err
		}
		servers = append(servers, server)
	}
	return servers, nil
}

// serve offers one resource and tells the kubelet of it.
func serve(resource string, devices []string) (*grpc.Server, error) {
	endpoint := "candela-" + strings.ReplaceAll(strings.TrimPrefix(resource, "nvidia.com/"), ".", "-") + ".sock"
	path := filepath.Join(deviceplugin.DevicePluginPath, endpoint)
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	server := grpc.NewServer()
	deviceplugin.RegisterDevicePluginServer(server, plugin{resource: resource, devices: devices})
	go func() {
		if err := server.Serve(listener); err != nil {
			log.Printf("stopped serving %s: %v", resource, err)
		}
	}()
	conn, err := grpc.NewClient("unix://"+deviceplugin.KubeletSocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		server.Stop()
		return nil, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, err = deviceplugin.NewRegistrationClient(conn).Register(ctx, &deviceplugin.RegisterRequest{
		Version:      deviceplugin.Version,
		Endpoint:     endpoint,
		ResourceName: resource,
		Options:      &deviceplugin.DevicePluginOptions{},
	}, grpc.WaitForReady(true))
	if err != nil {
		server.Stop()
		return nil, err
	}
	return server, nil
}

type plugin struct {
	deviceplugin.UnimplementedDevicePluginServer
	resource string
	devices  []string
}

func (p plugin) GetDevicePluginOptions(context.Context, *deviceplugin.Empty) (*deviceplugin.DevicePluginOptions, error) {
	return &deviceplugin.DevicePluginOptions{}, nil
}

func (p plugin) ListAndWatch(_ *deviceplugin.Empty, stream grpc.ServerStreamingServer[deviceplugin.ListAndWatchResponse]) error {
	var response deviceplugin.ListAndWatchResponse
	for _, id := range p.devices {
		response.Devices = append(response.Devices, &deviceplugin.Device{ID: id, Health: deviceplugin.Healthy})
	}
	if err := stream.Send(&response); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

// Allocate tells the container its devices in the variable that NVIDIA's plugin sets.
func (p plugin) Allocate(_ context.Context, request *deviceplugin.AllocateRequest) (*deviceplugin.AllocateResponse, error) {
	known := map[string]bool{}
	for _, id := range p.devices {
		known[id] = true
	}
	var response deviceplugin.AllocateResponse
	for _, container := range request.ContainerRequests {
		for _, id := range container.DevicesIds {
			if !known[id] {
				return nil, fmt.Errorf("%s has no device %s", p.resource, id)
			}
		}
		response.ContainerResponses = append(response.ContainerResponses, &deviceplugin.ContainerAllocateResponse{
			Envs: map[string]string{"NVIDIA_VISIBLE_DEVICES": strings.Join(container.DevicesIds, ",")},
		})
	}
	return &response, nil
}

func deviceUUID(resource string, index int) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s/%d", resource, index))
	return fmt.Sprintf("%x-%x-%x-%x-%x", sum[:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16])
}
