# Whether a build reaches the package index, asked before it matters: with the Dockerfile's own script and secrets.
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
RUN python3 -m venv --without-pip /opt/venv
COPY pip-install.sh /usr/local/bin/
RUN --mount=type=secret,id=ca --mount=type=secret,id=pip pip-install.sh --no-deps h11
