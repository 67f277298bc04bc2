#!/usr/bin/env bash
# Serves packages with a real Triton and compares what it says with this project's own engine and server.
#
#   tests/deploy/triton_server/run.sh [REPOSITORY [NAME…]]      by default every package of model_repo/
#
# Triton is the one of the nvidia-pytriton wheel (CPU, no Docker), in an environment of its own in .cache/triton. Its
# Python backend brings an interpreter that needs a standard library which fits it; Debian 12's python3.11 does.
#
#   TRITON_BASE_PYTHON   makes that environment (/usr/bin/python3.11, else python3)
#   TRITON_PYTHON        an environment that is there already
#   PYTHON               runs this project's server, and its pip installs into that environment (python3)
set -euo pipefail
cd "$(dirname "$0")/../../.."
export PYTHON=${PYTHON:-python3}

if [ -z "${TRITON_PYTHON:-}" ]; then
    base=${TRITON_BASE_PYTHON:-/usr/bin/python3.11}
    [ -x "$base" ] || base=python3
    environment=.cache/triton
    if [ ! -e "$environment/.ready" ]; then
        "$base" -m venv --without-pip "$environment"  # Debian's has no ensurepip
        "$PYTHON" -m pip --python "$environment/bin/python" install --quiet -r tests/deploy/triton_server/requirements.txt
        touch "$environment/.ready"
    fi
    TRITON_PYTHON=$environment/bin/python
fi
repository=${1:-model_repo}
[ $# = 0 ] || shift
PYTHONPATH=$PWD exec "$TRITON_PYTHON" tests/deploy/triton_server/check_triton.py "$repository" "$@"
