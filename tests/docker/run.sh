#!/usr/bin/env bash
# Builds the images with a real Docker engine, runs docker-compose.yml and tests what comes up: `make test-docker`.
# Arguments go to pytest.
#
#   PYTHON             the interpreter with pip, pytest, httpx, av and Pillow
#   DOCKER_TEST_ROOT   keeps the engine's images there for the next run; by default they go with the engine
#   DOCKER_TEST_GPU    not empty: builds and tests the GPU server's image too, which fetches 1.6 GB
#
# Exit status: 0 passed, 77 no engine or no package index can be had here, else failed.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}
export BASE_IMAGE=${BASE_IMAGE:-python:3.11-slim-bookworm}
export COMPOSE_PROJECT_NAME=hiera-test
logs=$(mktemp -d /var/tmp/hiera-logs.XXXXXX)
source tests/docker/engine.sh

stop_all() {
    local status=$?
    trap - EXIT INT TERM
    [ -z "${compose_used:-}" ] || compose --profile export down --volumes --timeout 5 >/dev/null 2>&1 || true
    [ -z "${wheels_pid:-}" ] || kill "$wheels_pid" 2>/dev/null || true
    stop_engine
    rm -rf "$logs" "${base_root:-$logs}"
    exit "$status"
}
trap stop_all EXIT
trap 'exit 130' INT TERM

build() { # target, image, further arguments
    local target=$1 image=$2 begin=$SECONDS
    shift 2
    say "building $image"
    "$DOCKER" build --progress=plain --network=host --build-arg BASE_IMAGE "${index_secrets[@]}" \
        --target "$target" --tag "$image" "$@" . >"$logs/$target.log" 2>&1 || { tail -n 40 "$logs/$target.log" >&2; exit 1; }
    echo "   $((SECONDS - begin)) s"
}

find_client && "$DOCKER" info >/dev/null 2>&1 || {
    install_engine
    find_client || no_engine "no Docker client here can build with BuildKit"
    start_engine
}
export DOCKER
pull "$BASE_IMAGE" || make_base_image
find_index_secrets
prove_engine

build server hiera-test/server
export SERVER_IMAGE=hiera-test/server

prometheus=prom/prometheus:v3.5.0
if pull "$prometheus"; then
    export PROMETHEUS_IMAGE=$prometheus
else
    say "no registry has $prometheus for us: building one from Debian's package"
    quietly "$logs/prometheus.log" "$DOCKER" build --progress=plain --network=host --build-arg BASE_IMAGE \
        --tag hiera-test/prometheus tests/docker/prometheus || no_engine "no Prometheus can be had"
    export PROMETHEUS_IMAGE=hiera-test/prometheus
fi
checks=(tests/docker/check_image.py tests/docker/check_prometheus.py tests/docker/check_stack.py)

# torch as the default index has it brings gigabytes of CUDA along, so the export image is built where pip finds the CPU
# build that PYTHON itself has.
torch=$("$PYTHON" -c 'from importlib.metadata import version; print(version("torch"))' 2>/dev/null || true)
if [[ $torch == *+cpu ]] && quietly "$logs/torch.log" "$PYTHON" -m pip download --quiet --no-deps --dest "$logs/wheels" "torch==$torch"; then
    port=$("$PYTHON" -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
    "$PYTHON" -m http.server --bind 127.0.0.1 --directory "$logs/wheels" "$port" >/dev/null 2>&1 &
    wheels_pid=$!
    build export hiera-test/export --build-arg PIP_FIND_LINKS="http://127.0.0.1:$port/"
    export EXPORT_IMAGE=hiera-test/export
    checks+=(tests/docker/check_export.py)
else
    say "NOT TESTED: the export image, because pip finds no CPU build of torch here"
fi

if [ -n "${DOCKER_TEST_GPU:-}" ]; then
    build server-gpu hiera-test/server-gpu
    export SERVER_GPU_IMAGE=hiera-test/server-gpu
    checks+=(tests/docker/check_gpu_image.py)
fi

compose_used=yes
"$PYTHON" -m pytest -p no:cacheprovider -s -v "${checks[@]}" "$@"
