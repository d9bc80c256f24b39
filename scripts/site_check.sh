#!/usr/bin/env bash
# usage: scripts/site_check.sh [SITE] [PATTERN]
# Looks at every page of the built site (default: site/, after `mkdocs build --strict`) in Chromium,
# light and dark, 390 and 1,200 pixels wide. Fails at serious findings of axe-core, at pages wider
# than the window, broken links, errors on the console, requests to other servers, and a leaderboard
# that does not sort or filter. PATTERN is a regular expression for the pages to look at. Pictures of
# the pages go to the folder that PICTURES names. CHROMIUM names the browser; Node 18 or newer and npm
# are needed. Not part of CI.
set -euo pipefail
site=$(realpath "${1:-$(dirname "${BASH_SOURCE[0]}")/../site}")
here=$(realpath "$(dirname "${BASH_SOURCE[0]}")")
[ -f "$site/index.html" ] || { echo "$site holds no index.html: mkdocs build --strict" >&2; exit 2; }
for name in "${CHROMIUM:-}" chromium chromium-browser google-chrome; do
  [ -n "$name" ] && browser=$(command -v "$name") && break
done
[ -n "${browser:-}" ] || { echo "CHROMIUM must name a browser: none was found" >&2; exit 2; }

tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
npm install --prefix "$tools" --silent --no-audit --no-fund axe-core@4.14.1 puppeteer-core@24.43.1
NODE_PATH=$tools/node_modules CHROMIUM=$browser \
  node "$here/site_check.cjs" "$site" "${2:-.}" "$tools/profile"
