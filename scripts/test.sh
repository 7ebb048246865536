#!/usr/bin/env bash
# Sets up what is missing, then runs lint, types, the import contract and the tests. Arguments go on to pytest:
#   scripts/test.sh -k receptive_field
# CIFAR_RESNETS_IMAGES=DIR, with train/<class>/* and test/<class>/*, adds the tests on real images.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh dev
.venv/bin/ruff check
.venv/bin/ruff format --check
.venv/bin/mypy
.venv/bin/lint-imports
.venv/bin/pytest "$@"
