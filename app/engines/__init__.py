"""Engines: uint8 rows to probabilities.

Two of their libraries report to others what they are used for, unless told otherwise before they are imported: nobody
who runs a server has asked for that. Whoever has can set ORT_DISABLE_TELEMETRY=0, or import openvino_telemetry first.
"""

import os
import sys

# ONNX Runtime, from 1.29 on: the model's name and hashes, and the machine.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# OpenVINO: that it was imported, under a number that it keeps for this user. It has a stub for where this is missing.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
