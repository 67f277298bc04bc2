"""Writes base/rules.yaml, the Prometheus operator's form of docker/prometheus/rules, so that each rule stands once.

python deploy/kubernetes/rules.py
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
TARGET = Path(__file__).parent / "base" / "rules.yaml"
HEAD = """\
# Written by deploy/kubernetes/rules.py from docker/prometheus/rules: change those.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: hiera-serve
spec:
  groups:
"""


def operator_rules() -> str:
    """The manifest, as text: the groups of every rules file, two columns further in."""
    lines = []
    for path in sorted((ROOT / "docker" / "prometheus" / "rules").glob("*.yml")):
        _, _, groups = path.read_text(encoding="utf-8").partition("groups:\n")
        lines += [f"  {line}" if line else "" for line in groups.splitlines()]
    return HEAD + "\n".join(lines) + "\n"


if __name__ == "__main__":
    TARGET.write_text(operator_rules(), encoding="utf-8")
