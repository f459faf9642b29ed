package sandbox

import (
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
)

// The addresses are the same in every cluster, since each has a network of its own.
const (
	NodeIP      = "10.231.0.2"
	nodeNet     = "10.231.0.2/24"
	ServiceNet  = "10.96.0.0/16"
	APIService  = "10.96.0.1"
	DNSService  = "10.96.0.10"
	PodNet      = "10.244.0.0/16"
	NodePodNet  = "10.244.0.0/24"
	nodeLink    = "node0"
	nodeLinkEnd = "node0p"
)

// Network brings up loopback and the node's address. There is no default route: nothing in here reaches out.
func Network() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("cannot find loopback: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("cannot start loopback: %w", err)
	}
	// A veth pair with both ends in here stands in for a dummy link, which not every kernel has.
	attrs := netlink.NewLinkAttrs()
	attrs.Name = nodeLink
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: nodeLinkEnd}); err != nil {
		return fmt.Errorf("cannot make the node's link: %w", err)
	}
	for _, name := range []string{nodeLinkEnd, nodeLink} {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("cannot start link %s: %w", name, err)
		}
	}
	node, err := netlink.LinkByName(nodeLink)
	if err != nil {
		return err
	}
	address, err := netlink.ParseAddr(nodeNet)
	if err != nil {
		return err
	}
	// Without duplicate address detection, which IPv4 does not have, the address serves at once.
	if err := netlink.AddrAdd(node, address); err != nil {
		return fmt.Errorf("cannot set the node's address: %w", err)
	}
	// Without a default route the node itself would find no way to Service addresses, and kube-proxy rewrites a
	// packet only after it was routed.
	_, services, err := net.ParseCIDR(ServiceNet)
	if err != nil {
		return err
	}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: node.Attrs().Index, Dst: services}); err != nil {
		return fmt.Errorf("cannot route the Service addresses: %w", err)
	}
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644)
}
