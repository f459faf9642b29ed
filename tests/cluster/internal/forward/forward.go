// Package forward carries connections from listeners of the host into the cluster's network. A listening socket
// stays in the network namespace that made it, and a dialled one belongs to the caller's, so a process of the
// cluster that was handed a host's listener needs to switch nothing.
package forward

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// Serve accepts on `listener` until it is closed and carries each connection to what `dial` gives.
func Serve(listener net.Listener, dial func() (net.Conn, error)) {
	for {
		conn, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// Out of files, say: the next connection may find some.
			time.Sleep(10 * time.Millisecond)
			continue
		}
		go carry(conn, dial)
	}
}

func carry(client net.Conn, dial func() (net.Conn, error)) {
	server, err := dial()
	if err != nil {
		reset(client)
		return
	}
	var both sync.WaitGroup
	both.Add(2)
	go func() { defer both.Done(); pipe(server, client) }()
	go func() { defer both.Done(); pipe(client, server) }()
	both.Wait()
	client.Close()
	server.Close()
}

// pipe copies one direction. Its orderly end is passed on as such, and the other direction goes on; a broken
// connection breaks both, so that each side learns that the other is gone.
func pipe(to, from net.Conn) {
	_, err := io.Copy(to, from)
	if err != nil {
		reset(to)
		reset(from)
		return
	}
	if half, ok := to.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
}

func reset(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	conn.Close()
}
