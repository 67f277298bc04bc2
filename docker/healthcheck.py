"""Exit code 0 when the server in this container is ready to answer, 1 otherwise; Docker's HEALTHCHECK runs it."""

import http.client
import os
import sys


def ready(port: int, timeout_s: float = 2.0) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("GET", "/health/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(0 if ready(int(os.environ.get("HIERA_PORT") or "8000")) else 1)
