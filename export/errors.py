"""What can go wrong between a checkpoint and a package. Each message says what to do; the command line shows it alone.

ExportError
├── UnknownVariant      no variant has this name
├── WrongLabels         a labels file that does not fit the head
├── WrongRecord         the training record beside a weights file can't be read or is of another model
├── NoWeights           there is nothing to fetch for this variant
├── DownloadFailed      no connection, an error of the server, a short or a changed file
├── CheckpointError     unreadable, of no known layout, of another variant, or without a trained classifier
├── BuildRefused        the package can't be written where, or as, it was asked for
│   └── AlreadyThere        what is to be built was built before
└── ParityFailed        the graph does not say what torch says
"""

from __future__ import annotations


class ExportError(Exception):
    """Base of the errors that a user of `hiera-export` can mend."""


class UnknownVariant(ExportError):
    pass


class WrongLabels(ExportError):
    pass


class WrongRecord(ExportError):
    pass


class NoWeights(ExportError):
    pass


class DownloadFailed(ExportError):
    pass


class CheckpointError(ExportError):
    pass


class BuildRefused(ExportError):
    pass


class AlreadyThere(BuildRefused):
    pass


class ParityFailed(ExportError):
    pass
