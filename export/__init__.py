"""From checkpoints to packages; see docs/models.md."""

import app.engines  # noqa: F401 # before the libraries whose reports to others it turns off
