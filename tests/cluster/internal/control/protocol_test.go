package control

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"candela.dev/cluster/internal/state"
)

func TestRequestFileAndAnswerCrossASocketWhosePathIsTooLong(t *testing.T) {
	long := filepath.Join(t.TempDir(), strings.Repeat("d", 120))
	if err := os.Mkdir(long, 0o755); err != nil {
		t.Fatal(err)
	}
	dir := state.Dir{Name: "a", Path: long}
	folder, err := os.Open(long)
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	err = Serve(socketPath(folder), func(request Request) (any, error) {
		switch request.Operation {
		case "read":
			data, err := io.ReadAll(request.File)
			return string(data), err
		default:
			return nil, &Failure{Component: "etcd", Message: "no such operation"}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var text string
	if err := Call(dir, Request{Operation: "read", File: file}, &text); err != nil || text != "content" {
		t.Errorf("read %q, %v", text, err)
	}
	var failure *Failure
	if err := Call(dir, Request{Operation: "other"}, nil); !errors.As(err, &failure) || failure.Component != "etcd" {
		t.Errorf("error is %v", err)
	}
}

func TestAbsentClusterIsSaidToBeDown(t *testing.T) {
	if err := Call(state.Dir{Name: "a", Path: t.TempDir()}, Request{Operation: "status"}, nil); !errors.Is(err, ErrDown) {
		t.Errorf("error is %v", err)
	}
}
