#!/usr/bin/env bash
# Sets up what is missing, then trains and tests ResNet-20 on scikit-learn's digits. Arguments override the recipe:
#   scripts/quickstart.sh --trainer.max_epochs 5
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
exec .venv/bin/cifar-resnets fit -c configs/recipes/quickstart.yaml "$@"
