// Package image makes the one container image that every pod needs: the process that holds its namespaces open.
package image

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"runtime"
)

// PauseName is the image's name; containerd is told to use it.
const PauseName = "candela.local/pause:1"

// pauseCode ignores SIGCHLD, so that the kernel reaps what a pod with a shared process namespace orphans, and then
// waits forever. As the first process of its namespace it is immune to all signals but SIGKILL.
var pauseCode = map[string][]byte{
	"amd64": {
		0x48, 0x83, 0xec, 0x20, //                   sub rsp, 32
		0x48, 0xc7, 0x04, 0x24, 0x01, 0, 0, 0, //    mov qword [rsp], 1        handler = SIG_IGN
		0x31, 0xc0, //                               xor eax, eax
		0x48, 0x89, 0x44, 0x24, 0x08, //             mov [rsp+8], rax          flags = 0
		0x48, 0x89, 0x44, 0x24, 0x10, //             mov [rsp+16], rax         restorer = 0
		0x48, 0x89, 0x44, 0x24, 0x18, //             mov [rsp+24], rax         mask = 0
		0xbf, 0x11, 0, 0, 0, //                      mov edi, 17               SIGCHLD
		0x48, 0x89, 0xe6, //                         mov rsi, rsp
		0x31, 0xd2, //                               xor edx, edx
		0x41, 0xba, 0x08, 0, 0, 0, //                mov r10d, 8
		0xb8, 0x0d, 0, 0, 0, //                      mov eax, 13               rt_sigaction
		0x0f, 0x05, //                               syscall
		0xb8, 0x22, 0, 0, 0, //                wait: mov eax, 34               pause
		0x0f, 0x05, //                               syscall
		0xeb, 0xf7, //                               jmp wait
	},
}

// pauseProgram is a whole static ELF executable around that code: a file header, one segment, the code.
func pauseProgram(arch string) ([]byte, error) {
	code, ok := pauseCode[arch]
	if !ok {
		return nil, fmt.Errorf("no pause program for %s: add its machine code to internal/image/pause.go", arch)
	}
	const (
		base       = 0x400000
		headerSize = 64
		segment    = 56
		start      = headerSize + segment
	)
	var out bytes.Buffer
	put := func(values ...any) {
		for _, value := range values {
			// Writing fixed-size integers to a buffer cannot fail.
			_ = binary.Write(&out, binary.LittleEndian, value)
		}
	}
	size := uint64(start + len(code))
	out.Write([]byte{0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	put(uint16(2), uint16(62), uint32(1))                  // executable, x86-64, version
	put(uint64(base+start), uint64(headerSize), uint64(0)) // entry, segments at, sections at
	put(uint32(0), uint16(headerSize), uint16(segment))    // flags, sizes
	put(uint16(1), uint16(0), uint16(0), uint16(0))        // one segment, no sections
	put(uint32(1), uint32(5))                              // loadable, readable and executable
	put(uint64(0), uint64(base), uint64(base), size, size) // offset, addresses, sizes
	put(uint64(0x1000))                                    // alignment
	out.Write(code)
	return out.Bytes(), nil
}

// Pause is the image as a tar that containerd imports.
func Pause() ([]byte, error) {
	program, err := pauseProgram(runtime.GOARCH)
	if err != nil {
		return nil, err
	}
	return Archive(Spec{Name: PauseName, Entrypoint: []string{"/pause"}, User: "65535:65535", Files: map[string][]byte{"pause": program}})
}
