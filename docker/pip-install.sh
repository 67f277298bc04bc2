#!/bin/sh
# Installs into /opt/venv, which holds no pip of its own. Arguments are those of `pip install`.
# A build secret named `ca` is a bundle of certificates for the package index.
set -eu
if [ -s /run/secrets/ca ]; then
    export PIP_CERT=/run/secrets/ca
fi
exec python3 -m pip --python /opt/venv/bin/python3 install --disable-pip-version-check --no-compile "$@"
