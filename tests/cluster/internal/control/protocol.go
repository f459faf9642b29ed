// Package control is how a command speaks to a running cluster: one request over a socket in the cluster's
// directory, with at most one open file beside it, and one answer.
package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"candela.dev/cluster/internal/state"
)

// Request names an operation and what it is about.
type Request struct {
	Operation string `json:"operation"`
	// Component of kill, pause, resume, restart; addon of addon; Service of forward.
	Subject string `json:"subject,omitempty"`
	// Path is a program's, for an addon.
	Path string `json:"path,omitempty"`
	// Count is how many nodes an addon shall fake.
	Count int `json:"count,omitempty"`
	// File is sent along; it is nil for most operations.
	File *os.File `json:"-"`
}

// Answer is an error or a result.
type Answer struct {
	Error string `json:"error,omitempty"`
	// Component whose log explains the error.
	Component string          `json:"component,omitempty"`
	Result    json.RawMessage `json:"result,omitempty"`
}

// Failure is an error of the cluster, with the component whose log explains it, if one does.
type Failure struct {
	Component string
	Message   string
}

func (f *Failure) Error() string { return f.Message }

// ErrDown is returned when no cluster listens.
var ErrDown = errors.New("the cluster is not running")

// Socket is the path for a directory, as short as it must be: the directory is named by an open file.
func socketPath(dir *os.File) string { return fmt.Sprintf("/proc/self/fd/%d/control.sock", dir.Fd()) }

// Call sends `request` to the cluster of `dir` and decodes the result into `result`, which may be nil.
func Call(dir state.Dir, request Request, result any) error {
	folder, err := os.Open(dir.Path)
	if err != nil {
		return ErrDown
	}
	defer folder.Close()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socketPath(folder), Net: "unix"})
	if err != nil {
		return ErrDown
	}
	defer conn.Close()
	data, err := json.Marshal(request)
	if err != nil {
		return err
	}
	var rights []byte
	if request.File != nil {
		rights = unix.UnixRights(int(request.File.Fd()))
	}
	if _, _, err := conn.WriteMsgUnix(append(data, '\n'), rights, nil); err != nil {
		return fmt.Errorf("cannot reach the cluster: %w", err)
	}
	reply, err := io.ReadAll(conn)
	if err != nil || len(reply) == 0 {
		return fmt.Errorf("the cluster ended while it was asked to %s", request.Operation)
	}
	var answer Answer
	if err := json.Unmarshal(reply, &answer); err != nil {
		return fmt.Errorf("cannot understand the cluster's answer: %w", err)
	}
	if answer.Error != "" {
		return &Failure{Component: answer.Component, Message: answer.Error}
	}
	if result == nil || answer.Result == nil {
		return nil
	}
	return json.Unmarshal(answer.Result, result)
}

// Serve answers requests on `path` until the process ends. Each is handled on its own.
func Serve(path string, handle func(Request) (any, error)) error {
	// The socket of a cluster that crashed.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return fmt.Errorf("cannot listen for commands: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return err
	}
	go func() {
		for {
			conn, err := listener.AcceptUnix()
			if err != nil {
				return
			}
			go answer(conn, handle)
		}
	}()
	return nil
}

func answer(conn *net.UnixConn, handle func(Request) (any, error)) {
	defer conn.Close()
	// A client that connects and says nothing must not hold this forever.
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	request, err := receive(conn)
	if err != nil {
		return
	}
	if request.File != nil {
		defer request.File.Close()
	}
	result, err := handle(request)
	var reply Answer
	var failure *Failure
	switch {
	case errors.As(err, &failure):
		reply = Answer{Error: failure.Message, Component: failure.Component}
	case err != nil:
		reply = Answer{Error: err.Error()}
	default:
		data, err := json.Marshal(result)
		if err != nil {
			reply = Answer{Error: err.Error()}
		} else {
			reply = Answer{Result: data}
		}
	}
	data, err := json.Marshal(reply)
	if err != nil {
		return
	}
	_, _ = conn.Write(data)
}

func receive(conn *net.UnixConn) (Request, error) {
	var request Request
	buffer, oob := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(4))
	used := 0
	for used == 0 || buffer[used-1] != '\n' {
		if used == len(buffer) {
			return request, errors.New("request is too long")
		}
		n, oobn, _, _, err := conn.ReadMsgUnix(buffer[used:], oob)
		if err != nil {
			return request, err
		}
		if n == 0 {
			return request, io.ErrUnexpectedEOF
		}
		used += n
		if oobn == 0 {
			continue
		}
		messages, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil {
			return request, err
		}
		for _, message := range messages {
			fds, err := unix.ParseUnixRights(&message)
			if err != nil {
				continue
			}
			for _, fd := range fds {
				unix.CloseOnExec(fd)
				if request.File != nil {
					request.File.Close()
				}
				request.File = os.NewFile(uintptr(fd), "sent")
			}
		}
	}
	return request, json.Unmarshal(buffer[:used], &request)
}
