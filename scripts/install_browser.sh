#!/usr/bin/env bash
# Installs what the browser tests need, Debian's chromium and chromium-driver; silent where they are there.
exec "$(dirname "$0")/install_packages.sh" chromium chromium-driver
