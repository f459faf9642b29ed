package image

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestPauseProgramIsAnExecutableThatWaitsAndReaps(t *testing.T) {
	if _, ok := pauseCode[runtime.GOARCH]; !ok {
		t.Skipf("no pause program for %s", runtime.GOARCH)
	}
	program, err := pauseProgram(runtime.GOARCH)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := elf.NewFile(bytes.NewReader(program)); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "pause")
	if err := os.WriteFile(path, program, 0o755); err != nil {
		t.Fatal(err)
	}
	command := exec.Command(path)
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	defer func() { _ = command.Process.Kill() }()
	// It ignores SIGCHLD once it is past its first system call; a crash would end it instead.
	deadline := time.Now().Add(10 * time.Second)
	for {
		select {
		case err := <-ended:
			t.Fatalf("the program ended: %v", err)
		default:
		}
		status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(command.Process.Pid), "status"))
		if err == nil && ignores(string(status), syscall.SIGCHLD) && strings.Contains(string(status), "State:\tS") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("it does not wait with SIGCHLD ignored:\n%s", status)
		}
		runtime.Gosched()
	}
}

// Whether a signal is ignored, beside those that the program inherited as ignored from whoever started the test.
func ignores(status string, signal syscall.Signal) bool {
	_, rest, _ := strings.Cut(status, "SigIgn:\t")
	mask, _, _ := strings.Cut(rest, "\n")
	bits, err := strconv.ParseUint(mask, 16, 64)
	return err == nil && bits&(1<<(uint(signal)-1)) != 0
}

func TestArchiveNamesItsBlobsByDigestAndRepeats(t *testing.T) {
	spec := Spec{Name: "candela.local/test:1", Entrypoint: []string{"/a"}, Files: map[string][]byte{"a": []byte("x"), "b": []byte("y")}}
	first, err := Archive(spec)
	if err != nil {
		t.Fatal(err)
	}
	second, err := Archive(spec)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, second) {
		t.Error("two archives of one spec differ")
	}
	reader := tar.NewReader(bytes.NewReader(first))
	blobs := 0
	for {
		header, err := reader.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(reader)
		if err != nil {
			t.Fatal(err)
		}
		if name, ok := strings.CutPrefix(header.Name, "blobs/sha256/"); ok {
			blobs++
			if digest(data) != "sha256:"+name {
				t.Errorf("blob %s does not match its name", name)
			}
		}
	}
	if blobs != 3 {
		t.Errorf("%d blobs", blobs)
	}
}
