#!/bin/sh
# Installs into /opt/venv, which holds no pip of its own. Arguments are those of `pip install`.
# Build secrets, both optional: `ca`, a bundle of certificates for the package index, and `pip`, a pip.conf that names it.
set -eu
if [ -s /run/secrets/ca ]; then
    export PIP_CERT=/run/secrets/ca
fi
if [ -s /run/secrets/pip ]; then
    export PIP_CONFIG_FILE=/run/secrets/pip
fi
exec python3 -m pip --python /opt/venv/bin/python3 install --disable-pip-version-check --no-compile "$@"
