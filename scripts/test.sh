#!/usr/bin/env bash
# Environment, install, lint, types, tests: all that CI runs.
# Usage: bash scripts/test.sh [--fast]      --fast leaves out the tests marked slow
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

selection=()
case "${1:-}" in
  "") ;;
  --fast) selection=(-m "not slow") ;;
  -h | --help) sed -n '2,3s/^# //p' "${BASH_SOURCE[0]}"; exit 0 ;;
  *) echo "test.sh: unknown argument '$1'; try --help" >&2; exit 2 ;;
esac

bash scripts/environment.sh
bin=.venv/bin
for script in scripts/*.sh examples/*.sh examples/*/run.sh; do bash -n "$script"; done
$bin/ruff check .
$bin/ruff format --check .
$bin/mypy fairseq_updown
MYPYPATH=scripts/benchmarks $bin/mypy scripts/benchmarks
MYPYPATH=scripts/corpora $bin/mypy scripts/corpora
# Two processes of one thread each: see CONTRIBUTING.md.
$bin/python -m pytest -n 2 --dist worksteal --durations 10 "${selection[@]}"
