# Three images from one file (BuildKit):
#   docker build --target server      -t hiera-serve .         CPU, no torch
#   docker build --target server-gpu  -t hiera-serve:gpu .     the same over onnxruntime-gpu and the CUDA wheels
#   docker build --target export      -t hiera-export .        torch; writes packages into a mounted /models
#
# BASE_IMAGE needs Debian's or a compatible glibc and a `python3` (3.11 or later) with pip and venv.
# Behind a proxy with a certificate of its own: --secret id=ca,src=BUNDLE.pem; with a package index of your own:
# --secret id=pip,src=PIP.CONF
ARG BASE_IMAGE=python:3.11-slim-bookworm

# ---- what the server imports, gRPC and tracing included, installed by the locks' hashes and then slimmed ----------------
FROM ${BASE_IMAGE} AS serve-dependencies
RUN python3 -m venv --without-pip /opt/venv
COPY docker/pip-install.sh docker/slim.sh /usr/local/bin/
RUN --mount=type=bind,source=requirements/serve.lock,target=/tmp/serve.lock \
    --mount=type=bind,source=requirements/grpc.lock,target=/tmp/grpc.lock \
    --mount=type=bind,source=requirements/otel.lock,target=/tmp/otel.lock \
    --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=ca \
    --mount=type=secret,id=pip \
    pip-install.sh --require-hashes -r /tmp/serve.lock \
    && pip-install.sh --require-hashes -r /tmp/grpc.lock \
    && pip-install.sh --require-hashes -r /tmp/otel.lock \
    && slim.sh /opt/venv

# ---- the same over CUDA; TensorRT is an option: --build-arg TENSORRT=tensorrt-cu13 -----------------------------------
FROM serve-dependencies AS gpu-dependencies
ARG TENSORRT=""
RUN --mount=type=bind,source=requirements/gpu.lock,target=/tmp/gpu.lock \
    --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=ca \
    --mount=type=secret,id=pip \
    rm -rf /opt/venv/lib/python3*/site-packages/onnxruntime* \
    && pip-install.sh --require-hashes -r /tmp/gpu.lock \
    && if [ -n "${TENSORRT}" ]; then pip-install.sh ${TENSORRT}; fi \
    && slim.sh /opt/venv

# ---- what both servers share: the code, the demo packages, a user without rights --------------------------------------
FROM ${BASE_IMAGE} AS server-base
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONPATH=/srv/hiera \
    PYTHONUNBUFFERED=1 \
    HIERA_HOST=0.0.0.0 \
    HIERA_PORT=8000 \
    HIERA_MODEL_REPOSITORY=/models \
    HIERA_ENGINE_CACHE_FOLDER=/var/cache/hiera \
    HIERA_LOG_FORMAT=json
RUN groupadd --gid 10001 hiera && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp hiera \
    && mkdir -p /var/cache/hiera /models && chown 10001:10001 /var/cache/hiera
WORKDIR /srv/hiera
EXPOSE 8000 8001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 CMD ["python3", "-S", "/usr/local/bin/healthcheck.py"]
ENTRYPOINT ["hiera-serve"]
CMD ["run"]

FROM server-base AS server
COPY --from=serve-dependencies /opt/venv /opt/venv
COPY docker/healthcheck.py docker/hiera-serve /usr/local/bin/
COPY model_repo /models
COPY app /srv/hiera/app
# The root file system is read-only at run time: bytecode that is not there now is compiled at every start.
RUN python3 -m compileall -q /srv/hiera/app
USER 10001:10001
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="hiera-serve" \
      org.opencontainers.image.description="Serves Hiera image and video classifiers over HTTP (CPU)" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

FROM server-base AS server-gpu
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=gpu-dependencies /opt/venv /opt/venv
COPY docker/healthcheck.py docker/hiera-serve /usr/local/bin/
COPY model_repo /models
COPY app /srv/hiera/app
RUN python3 -m compileall -q /srv/hiera/app
USER 10001:10001
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="hiera-serve-gpu" \
      org.opencontainers.image.description="Serves Hiera image and video classifiers over HTTP (NVIDIA GPU)" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# ---- export: checkpoints in, packages out --------------------------------------------------------------------------------
FROM ${BASE_IMAGE} AS export
RUN python3 -m venv --without-pip /opt/venv
COPY docker/pip-install.sh /usr/local/bin/
# torch from the default index brings CUDA along; a CPU build does: name the index or folder that has one.
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
RUN --mount=type=bind,source=requirements/test.lock,target=/tmp/test.lock \
    --mount=type=bind,source=pyproject.toml,target=/tmp/pyproject.toml \
    --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=ca \
    --mount=type=secret,id=pip \
    python3 -c 'import tomllib; p = tomllib.load(open("/tmp/pyproject.toml", "rb"))["project"]; \
        print("\n".join(p["dependencies"] + p["optional-dependencies"]["export"]))' > /tmp/export.txt \
    && pip-install.sh -r /tmp/export.txt -c /tmp/test.lock
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONPATH=/srv/hiera \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    XDG_CACHE_HOME=/cache
# hiera-export writes into ./model_repo by default: the mounted folder.
RUN mkdir -p /models /cache /srv/hiera && chmod 1777 /cache && ln -s /models /srv/hiera/model_repo
WORKDIR /srv/hiera
COPY docker/hiera-export /usr/local/bin/
COPY app /srv/hiera/app
COPY export /srv/hiera/export
# The demo variants' classes.
COPY training/labels /srv/hiera/training/labels
USER 10001:10001
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="hiera-export" \
      org.opencontainers.image.description="Turns Hiera checkpoints into model packages" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENTRYPOINT ["hiera-export"]
CMD ["list"]
