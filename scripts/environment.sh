#!/usr/bin/env bash
# Makes the repository's own virtual environment, .venv, with the pinned packages and this plugin.
# Usage: bash scripts/environment.sh        (quickstart.sh and test.sh call it)
# PYTHON names the interpreter to use (default: python3). Does nothing if all is in place.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "${1:-}" in
  "") ;;
  -h | --help) sed -n '2,4s/^# //p' "${BASH_SOURCE[0]}"; exit 0 ;;
  *) echo "environment.sh: unknown argument '$1'; try --help" >&2; exit 2 ;;
esac

say() { printf '[environment] %s\n' "$*"; }

python=${PYTHON:-python3}
fits='import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))'
if ! "$python" -c "$fits" 2>/dev/null; then
  echo "environment.sh: '$python' is not Python 3.10 to 3.12 with venv; set PYTHON=..." >&2
  exit 1
fi

# Not the one of .venv, which a shell may have activated and which may go.
python=$("$python" -c 'import sys; print(sys._base_executable)')

# Made here, from these files, by an interpreter that still runs, and by the one that PYTHON names.
stamp=$({ pwd -P; cat constraints.txt setup.py scripts/environment.sh; } | sha256sum | cut -d' ' -f1)
version() { "$1" -c 'import sys; print(sys.version)' 2>/dev/null; }
in_place() {
  [ "$(cat .venv/complete 2>/dev/null)" = "$stamp" ] && version .venv/bin/python >/dev/null &&
    { [ -z "${PYTHON:-}" ] || [ "$(version "$PYTHON")" = "$(version .venv/bin/python)" ]; }
}
if in_place; then exit 0; fi

# Of two calls the second waits for the first, and finds all in place.
exec 9<>scripts/environment.sh
if ! flock -n 9; then
  say "waiting for another environment.sh"
  flock 9 || say "this file system has no locks: run one at a time"
fi
if in_place; then exit 0; fi

# What fairseq is built with: better missed now than in the middle of a build.
headers=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
compiler=${CXX:-c++}
if ! command -v "${compiler%% *}" >/dev/null || [ ! -e "$headers/Python.h" ]; then
  echo "environment.sh: fairseq is built from source, with a C++ compiler and $headers/Python.h:" \
    "install both (Debian and Ubuntu: g++ and python3-dev)" >&2
  exit 1
fi

pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }

if [ -d .venv ] && [ ! -e .venv/complete ] && [ ! -e .venv/ours ]; then
  echo "environment.sh: .venv is not one that this script made: remove it, or move it away" >&2
  exit 1
fi
say "making .venv with $("$python" --version)"
rm -rf .venv
mkdir .venv
touch .venv/ours # which venv leaves there
"$python" -m venv .venv
say "1/3 torch and what fairseq is built with"
pip install -q -c constraints.txt torch numpy cython setuptools wheel
say "2/3 fairseq, built from source: 2 to 4 minutes, once"
# An isolated build would fetch a second, unpinned torch. One extension at a time: torch's build
# step changes the compiler object that parallel ones would share, and objects get lost.
pip install -q -c constraints.txt --no-build-isolation fairseq-fixed
say "3/3 this plugin and its tools"
pip install -q -c constraints.txt --no-build-isolation -e '.[dev]'
echo "$stamp" >.venv/complete
say "done"
