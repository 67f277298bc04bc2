#!/usr/bin/env bash
# Runs deploy/ray on a real local Ray, under load, with a replica killed.
#
#   tests/deploy/ray_serve/run.sh [REPOSITORY] [--model NAME] [--rounds N] [--seconds N]
#
#   RAY_PYTHON   an environment that is there already; else one is made in .cache/ray
set -euo pipefail
cd "$(dirname "$0")/../../.."
if [ -z "${RAY_PYTHON:-}" ]; then
    environment=.cache/ray
    if [ ! -e "$environment/.ready" ]; then
        "${PYTHON:-python3}" -m venv "$environment"
        "$environment/bin/pip" install --quiet '.[cpu]' -r tests/deploy/ray_serve/requirements.txt
        "$environment/bin/pip" uninstall --quiet --yes hiera-serve # the tree itself is what is tested
        touch "$environment/.ready"
    fi
    RAY_PYTHON=$environment/bin/python
fi
export PYTHONPATH=$PWD RAY_USAGE_STATS_ENABLED=0 RAY_raylet_start_wait_time_s=300
exec "$RAY_PYTHON" tests/deploy/ray_serve/check_ray.py "$@"
