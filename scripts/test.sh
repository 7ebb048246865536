#!/usr/bin/env bash
# Sets up what is missing, then runs lint, and the tests in three processes of one thread each, because on two cores a
# third of the time is spent waiting for ranks, jobs and browsers; types and import contracts are checked meanwhile:
#   scripts/test.sh                      # everything
#   scripts/test.sh --quick              # without the tests that start processes, or train in theirs for long
#   scripts/test.sh -k receptive_field   # other arguments go on to pytest
# CIFAR_RESNETS_IMAGES=DIR, with train/<class>/* and test/<class>/*, adds the tests on real images. Tests in a browser and
# on a cluster are skipped unless scripts/install_browser.sh and scripts/install_slurm.sh have installed what they need.
set -euo pipefail
cd "$(dirname "$0")/.."
arguments=()
for argument in "$@"; do
  [[ $argument == --quick ]] && arguments+=(-m "not process and not long") || arguments+=("$argument")
done
scripts/setup.sh dev
.venv/bin/ruff check
.venv/bin/ruff format --check
checks=$(mktemp)
trap 'rm "$checks"' EXIT
{ .venv/bin/mypy && .venv/bin/lint-imports; } >"$checks" 2>&1 &
status=0
OMP_NUM_THREADS=1 .venv/bin/pytest --numprocesses 3 --dist worksteal "${arguments[@]}" || status=$?
wait $! || status=1
cat "$checks"
exit $status
