"""The Open Inference Protocol over gRPC: a translation to and from its HTTP form, in front of the same application."""

import logging
import os

# It writes of each path and each header that is nonsense, and whoever may call could fill the log with that.
logging.getLogger("grpc").setLevel(logging.CRITICAL)
# Read when its library is loaded. No process forks after that: media workers are forked by processes of their own.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
