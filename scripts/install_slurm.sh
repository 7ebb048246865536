#!/usr/bin/env bash
# Installs what the cluster tests need, Debian's SLURM and munge; silent where they are there. The tests start both.
exec "$(dirname "$0")/install_packages.sh" slurm-wlm munge
