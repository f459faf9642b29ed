// Command web answers every connection with what a test wants to know of its container. It imports no HTTP server, so
// that it builds in a moment.
package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
)

func main() {
	listener, err := net.Listen("tcp", ":8080")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if err := os.WriteFile("/data/written", []byte("yes"), 0o644); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			os.Exit(1)
		}
		_, _ = bufio.NewReader(conn).ReadString('\n')
		body := "devices " + os.Getenv("NVIDIA_VISIBLE_DEVICES")
		fmt.Fprintf(conn, "HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		conn.Close()
	}
}
