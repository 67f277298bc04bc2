#!/usr/bin/env bash
# Opens /docs in a real Chromium and uses it: `make test-browser`. Arguments go to pytest.
#
#   PYTHON   the interpreter with what the server and the tests need
#
# Exit status: 0 passed, 77 there is no browser and none can be had here, else failed.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}

have_browser() { [ -x /usr/bin/chromium ] && [ -x /usr/bin/chromedriver ]; }

have_browser || {
    log=$(mktemp)
    trap 'rm -f "$log"' EXIT
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        printf '== installing Chromium\n'
        { apt-get update && apt-get install -y --no-install-recommends chromium chromium-driver; } >"$log" 2>&1 || tail -n 5 "$log" >&2
    fi
}
have_browser || {
    printf '\n** THE PAGE WAS NOT TESTED: there is no /usr/bin/chromium with /usr/bin/chromedriver, and none can be had here **\n' >&2
    exit 77
}
"$PYTHON" -m pytest --quiet "$@" tests/browser/check_docs_page.py
