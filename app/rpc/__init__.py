"""The Open Inference Protocol over gRPC: a translation to and from its HTTP form, in front of the same application."""

import os

# Read when its library is loaded. No process forks after that: media workers are forked by processes of their own.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
