#!/usr/bin/env bash
# Installs Debian packages; silent where they are there: scripts/install_packages.sh PACKAGE...
set -euo pipefail

command -v apt-get >/dev/null || {
  echo "scripts/install_packages.sh: there is no apt-get, install by hand what Debian calls $*" >&2
  exit 2
}
is_installed() { [[ $(dpkg-query --show --showformat='${Status}' "$1" 2>/dev/null) == *" installed" ]]; }

missing=()
for package in "$@"; do
  is_installed "$package" || missing+=("$package")
done
((${#missing[@]})) || exit 0
echo "installing ${missing[*]}"
as_root=()
[[ $EUID -eq 0 ]] || as_root=(sudo)
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends "${missing[@]}" >/dev/null
