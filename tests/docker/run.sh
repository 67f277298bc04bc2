#!/usr/bin/env bash
# Builds the images with a real Docker engine, runs docker-compose.yml and tests what comes up: `make test-docker`.
#
# Uses the engine that DOCKER_HOST or the default socket names. Where none answers, it starts one of its own from Debian's
# docker.io package (as root) and ends it afterwards. Where no image registry can be reached, debootstrap makes the base
# image and Debian's package the Prometheus.
#
#   PYTHON             the interpreter with pytest, httpx, av and Pillow
#   DOCKER_TEST_ROOT   keeps the engine's images there for the next run; by default they go with the engine
#   TORCH_WHEELS       a folder with a CPU build of torch: the export image is then built from it, and tested too
#
# Exit status: 0 passed, 1 failed, 3 no engine can be had here.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}
export BASE_IMAGE=${BASE_IMAGE:-python:3.11-slim-bookworm}
export DOCKER_BUILDKIT=1 COMPOSE_PROJECT_NAME=hiera-test

no_engine() {
    printf '\n%s\n' "******************************************************************************" \
        "** THE DOCKER TESTS DID NOT RUN: $1" \
        "** No image was built and docker-compose.yml was not started." \
        "******************************************************************************" >&2
    exit 3
}

say() { printf '\n== %s\n' "$*"; }

install_engine() {
    [ "$(id -u)" = 0 ] || no_engine "no Docker engine answers, and starting one needs root"
    command -v apt-get >/dev/null || no_engine "no Docker engine answers, and Debian's docker.io package cannot be installed"
    local missing=()
    for package in docker.io docker-compose debootstrap; do
        dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
    done
    [ ${#missing[@]} = 0 ] && return
    say "installing ${missing[*]}"
    { apt-get update -qq && apt-get install -qq -y --no-install-recommends "${missing[@]}"; } >/dev/null 2>&1 \
        || no_engine "Debian's packages ${missing[*]} cannot be installed"
}

# The engine leaves the machine's firewall and forwarding as they are: builds use the host's network, containers a bridge
# without a way out, and published ports a proxy process.
start_engine() {
    engine_root=${DOCKER_TEST_ROOT:-$(mktemp -d /var/tmp/hiera-docker.XXXXXX)}
    mkdir -p "$engine_root"
    export DOCKER_HOST=unix://$engine_root/docker.sock
    say "starting a Docker engine in $engine_root"
    dockerd --iptables=false --ip-forward=false --bridge=none --data-root "$engine_root/data" \
        --exec-root "$engine_root/exec" --pidfile "$engine_root/dockerd.pid" -H "$DOCKER_HOST" \
        >"$engine_root/dockerd.log" 2>&1 </dev/null &
    engine_pid=$!
    for _ in $(seq 60); do
        "$DOCKER" info >/dev/null 2>&1 && return
        kill -0 "$engine_pid" 2>/dev/null || break
        sleep 0.5
    done
    tail -n 20 "$engine_root/dockerd.log" >&2
    no_engine "dockerd does not start (its last lines stand above)"
}

stop_all() {
    local status=$?
    trap - EXIT INT TERM
    [ -n "${compose_used:-}" ] && compose --profile export down --volumes --timeout 5 >/dev/null 2>&1
    [ -n "${wheels_pid:-}" ] && kill "$wheels_pid" 2>/dev/null
    if [ -n "${engine_pid:-}" ]; then
        kill "$engine_pid" 2>/dev/null && wait "$engine_pid" 2>/dev/null
        [ -n "${DOCKER_TEST_ROOT:-}" ] || rm -rf "$engine_root"
    fi
    exit "$status"
}
trap stop_all EXIT INT TERM

# The first client that builds with BuildKit: a client without its buildx plugin may stand before one that needs none.
find_client() {
    local candidate
    for candidate in docker /usr/bin/docker; do
        if "$candidate" build --help 2>/dev/null | grep -q -- --secret; then
            DOCKER=$candidate
            return
        fi
    done
    return 1
}

compose() {
    if "$DOCKER" compose version >/dev/null 2>&1; then "$DOCKER" compose "$@"; else docker-compose "$@"; fi
}

have_image() { "$DOCKER" image inspect "$1" >/dev/null 2>&1; }

pull() {
    have_image "$1" || timeout 120 "$DOCKER" pull --quiet "$1" >/dev/null 2>&1
}

make_base_image() {
    say "no registry has $BASE_IMAGE for us: making a stand-in with debootstrap"
    local root
    root=$(mktemp -d /var/tmp/hiera-base.XXXXXX)
    debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv,python3-pip bookworm "$root" >"$root.log" 2>&1 \
        || { tail -n 5 "$root.log" >&2; no_engine "debootstrap cannot make a base image"; }
    rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,locale}/*
    tar -C "$root" -c . | "$DOCKER" import --change 'CMD ["python3"]' - "$BASE_IMAGE" >/dev/null
    rm -rf "$root" "$root.log"
}

build() { # target, image, further arguments
    local target=$1 image=$2
    shift 2
    say "building $image"
    local certificates=${PIP_CERT:-${SSL_CERT_FILE:-}}
    [ -s "$certificates" ] && set -- --secret "id=ca,src=$certificates" "$@"
    "$DOCKER" build --progress=plain --network=host --build-arg BASE_IMAGE --target "$target" --tag "$image" "$@" . \
        >"$logs/$target.log" 2>&1 || { tail -n 40 "$logs/$target.log" >&2; exit 1; }
}

find_client && "$DOCKER" info >/dev/null 2>&1 || {
    install_engine
    find_client || no_engine "no Docker client here can build with BuildKit"
    start_engine
}
export DOCKER
logs=$(mktemp -d)

pull "$BASE_IMAGE" || make_base_image
SECONDS=0
build server hiera-test/server
say "the server image took $SECONDS s to build"
export SERVER_IMAGE=hiera-test/server

prometheus=prom/prometheus:v3.5.0
if pull "$prometheus"; then
    export PROMETHEUS_IMAGE=$prometheus
else
    say "no registry has $prometheus for us: building one from Debian's package"
    "$DOCKER" build --progress=plain --network=host --build-arg BASE_IMAGE --tag hiera-test/prometheus tests/docker/prometheus \
        >"$logs/prometheus.log" 2>&1 || { tail -n 40 "$logs/prometheus.log" >&2; exit 1; }
    export PROMETHEUS_IMAGE=hiera-test/prometheus
fi

# torch as the default index has it brings gigabytes of CUDA along, so this image is built where a CPU build is at hand.
if [ -n "${TORCH_WHEELS:-}" ]; then
    port=$("$PYTHON" -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
    "$PYTHON" -m http.server --bind 127.0.0.1 --directory "$TORCH_WHEELS" "$port" >/dev/null 2>&1 &
    wheels_pid=$!
    build export hiera-test/export --build-arg PIP_FIND_LINKS="http://127.0.0.1:$port/"
    export EXPORT_IMAGE=hiera-test/export
fi

checks=(tests/docker/check_image.py tests/docker/check_prometheus.py tests/docker/check_stack.py)
[ -z "${TORCH_WHEELS:-}" ] || checks+=(tests/docker/check_export.py)
compose_used=yes
"$PYTHON" -m pytest -p no:cacheprovider -s -v "${checks[@]}" "$@"
