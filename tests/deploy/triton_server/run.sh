#!/usr/bin/env bash
# Serves packages with a real Triton and compares what it says with this project's own engine and server.
#
#   tests/deploy/triton_server/run.sh [REPOSITORY [NAME…]]      by default every package of model_repo/
#
# Triton is the one of the nvidia-pytriton wheel (CPU, no Docker), in an environment of its own in .cache/triton. Its
# Python backend brings an interpreter that needs a standard library which fits it: that of Python 3.11.2, which Debian 12
# has, does; that of 3.11.7 does not.
#
#   TRITON_BASE_PYTHON   makes that environment (/usr/bin/python3.11, else python3)
#   TRITON_PYTHON        an environment that is there already
#   PYTHON               runs this project's server, and its pip installs into that environment (python3)
#
# Exit status: 0 the same, 77 there is no such Python or no wheel to be had here, else different or failed.
set -euo pipefail
cd "$(dirname "$0")/../../.."
export PYTHON=${PYTHON:-python3}

cannot() {
    printf '\n** TRITON WAS NOT TESTED: %s **\n' "$1" >&2
    exit 77
}

if [ -z "${TRITON_PYTHON:-}" ]; then
    base=${TRITON_BASE_PYTHON:-/usr/bin/python3.11}
    [ -x "$base" ] || base=python3
    environment=.cache/triton
    if [ ! -e "$environment/.ready" ]; then
        "$base" -c 'import sys; sys.exit(sys.version_info[:3] != (3, 11, 2))' ||
            cannot "its Python backend needs the standard library of Python 3.11.2 (Debian 12's), which $base has not"
        "$base" -m venv --without-pip "$environment"  # Debian's has no ensurepip
        "$PYTHON" -m pip --python "$environment/bin/python" install --quiet -r tests/deploy/triton_server/requirements.txt ||
            cannot "its wheels (tests/deploy/triton_server/requirements.txt) cannot be had here"
        touch "$environment/.ready"
    fi
    TRITON_PYTHON=$environment/bin/python
fi
repository=${1:-model_repo}
[ $# = 0 ] || shift
PYTHONPATH=$PWD exec "$TRITON_PYTHON" tests/deploy/triton_server/check_triton.py "$repository" "$@"
