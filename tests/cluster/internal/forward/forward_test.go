package forward

import (
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"
)

func listen(t *testing.T) net.Listener {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	return listener
}

// through gives both ends of a connection that goes through the forwarder.
func through(t *testing.T) (client, server *net.TCPConn) {
	t.Helper()
	front, back := listen(t), listen(t)
	go Serve(front, func() (net.Conn, error) { return net.Dial("tcp", back.Addr().String()) })
	conn, err := net.Dial("tcp", front.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := back.Accept()
	if err != nil {
		t.Fatal(err)
	}
	client, server = conn.(*net.TCPConn), accepted.(*net.TCPConn)
	for _, end := range []*net.TCPConn{client, server} {
		_ = end.SetDeadline(time.Now().Add(20 * time.Second))
		t.Cleanup(func() { end.Close() })
	}
	return client, server
}

func TestHalfClosedConnectionStillAnswers(t *testing.T) {
	client, server := through(t)
	if _, err := client.Write([]byte("question")); err != nil {
		t.Fatal(err)
	}
	_ = client.CloseWrite()
	if data, err := io.ReadAll(server); err != nil || string(data) != "question" {
		t.Fatalf("server read %q, %v", data, err)
	}
	if _, err := server.Write([]byte("answer")); err != nil {
		t.Fatal(err)
	}
	server.Close()
	if data, err := io.ReadAll(client); err != nil || string(data) != "answer" {
		t.Errorf("client read %q, %v", data, err)
	}
}

func TestAResetReachesTheOtherSide(t *testing.T) {
	client, server := through(t)
	if _, err := client.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(server, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	_ = client.SetLinger(0)
	client.Close()
	if _, err := server.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("server read: %v", err)
	}
}

func TestRefusedDialResetsTheClient(t *testing.T) {
	front := listen(t)
	go Serve(front, func() (net.Conn, error) { return nil, errors.New("refused") })
	conn, err := net.Dial("tcp", front.Addr().String())
	if errors.Is(err, syscall.ECONNRESET) {
		return // It was quicker than the dial.
	}
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("the client was served")
	}
}
