#!/bin/sh
# Puts the pinned libraries of clients and webhook senders into DIR: DIR/venv (Python), DIR/node_modules (Node).
# Usage: setup.sh DIR
# Then:  DIR/venv/bin/python openai_client.py BASE_URL KEY
#        node DIR/openai_client.mjs BASE_URL KEY
# Registries come from the user's own pip and npm settings; none is named here.
set -eu

[ $# -eq 1 ] || { echo "usage: $0 DIR" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
dir=$(cd "$1" && pwd)
python=${PYTHON:-python3}

# Two test processes may ask at once: the second waits and then finds the stamp.
if command -v flock >/dev/null; then exec 9>"$dir/.lock"; flock 9; fi

# An ES module looks for its packages beside itself, so the scripts go to them.
# Copied on every call, for they may change without the packages changing.
cp "$here"/*.mjs "$dir/"

# The stamp also holds the interpreter versions: a venv dies with its Python.
stamp=$({ cat "$here/requirements.txt" "$here/package.json" "$here/package-lock.json"
          "$python" --version; node --version; echo "$dir"; } | cksum)
[ "$(cat "$dir/.stamp" 2>/dev/null || true)" = "$stamp" ] && exit 0

# Gone before the work starts, so that a broken install is never taken for a good one.
rm -rf "$dir/.stamp" "$dir/venv" "$dir/node_modules"
"$python" -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements.txt"

cp "$here/package.json" "$here/package-lock.json" "$dir/"
# `ci` installs exactly the lock file; the packages need no install scripts.
(cd "$dir" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null)

echo "$stamp" >"$dir/.stamp"
