#!/usr/bin/env bash
# Installs what the browser tests need, Debian's chromium and chromium-driver; silent where they are there.
set -euo pipefail
packages=(chromium chromium-driver)

command -v apt-get >/dev/null || {
  echo "scripts/install_browser.sh: there is no apt-get, install Chromium and its driver as /usr/bin/chromium and /usr/bin/chromedriver" >&2
  exit 2
}
is_installed() { [[ $(dpkg-query --show --showformat='${Status}' "$1" 2>/dev/null) == *" installed" ]]; }

missing=()
for package in "${packages[@]}"; do
  is_installed "$package" || missing+=("$package")
done
((${#missing[@]})) || exit 0
echo "installing ${missing[*]}"
as_root=()
[[ $EUID -eq 0 ]] || as_root=(sudo)
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends "${missing[@]}" >/dev/null
