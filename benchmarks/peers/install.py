"""Makes an environment for each peer: `python -m benchmarks.peers.install [NAME…]`.

Each has its own, since their requirements contradict one another's and ours. Triton's Python backend carries its own
interpreter and needs a standard library that fits it: HIERA_BENCH_TRITON_PYTHON names a Python whose library does
(3.11.2, Debian 12's, does; 3.11.7 does not).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.contenders import peer_python

REQUIREMENTS = Path(__file__).parent / "requirements"


def main() -> None:
    """Install what is missing."""
    known = sorted(file.stem for file in REQUIREMENTS.glob("*.txt"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", nargs="*", default=known, metavar="NAME", help=", ".join(known))
    for name in parser.parse_args().peers:
        python = peer_python(name)
        base = os.environ.get("HIERA_BENCH_TRITON_PYTHON", sys.executable) if name == "triton" else sys.executable
        print(f"{name}: {python.parent.parent}")
        subprocess.run([base, "-m", "venv", str(python.parent.parent)], check=True)
        subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", "-r", str(REQUIREMENTS / f"{name}.txt")], check=True
        )


if __name__ == "__main__":
    main()
