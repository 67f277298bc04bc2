"""What can go wrong, in the domain's words. None of these knows HTTP; `app.api.problems` maps them to statuses.

    HieraError
    ├── RequestError                the caller can mend it
    │   ├── MalformedRequest            the envelope cannot be read (JSON, multipart, encoding)
    │   ├── InvalidParameter            a parameter is unknown or out of range
    │   ├── UnknownModel                no such model, or none for the task
    │   ├── UnsupportedMedia            not an image or a video that the server reads
    │   ├── BrokenMedia                 the right kind of file, but damaged
    │   └── LimitExceeded               too many bytes, pixels, frames, seconds, streams or files
    ├── Overloaded                  not now: `retry_after_s` says when
    ├── Unavailable                 the model or the server is not ready, or draining
    ├── DeadlineExceeded            the caller's time, or the server's for one request, ran out
    ├── RequestCancelled            the caller left
    ├── EngineError                 a batch failed for a reason of ours
    │   ├── EngineOutOfMemory           the batch was too large for the device
    │   └── EngineLost                  this process can use the device no more; another one can
    ├── ChangeRefused               a change of the served models was refused; what served before serves on
    ├── EngineUnavailable           an engine cannot be had here; the message says what is missing
    └── PackageError                a model package is refused; the message says which file and why

The message of a `RequestError`, `Overloaded`, `Unavailable` or `DeadlineExceeded` is shown to callers: it says what to
do and nothing of the inside. That of a `ChangeRefused` is shown to whoever has an admin key. The messages of the others
go to the log only.
"""

from __future__ import annotations


class HieraError(Exception):
    """Base of every error that this project raises on purpose. `code` is a stable word for programs."""

    code = "internal_error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class RequestError(HieraError):
    code = "invalid_request"


class MalformedRequest(RequestError):
    code = "malformed_request"


class InvalidParameter(RequestError):
    code = "invalid_parameter"


class UnknownModel(RequestError):
    code = "unknown_model"


class UnsupportedMedia(RequestError):
    code = "unsupported_media"


class BrokenMedia(RequestError):
    code = "broken_media"


class LimitExceeded(RequestError):
    code = "limit_exceeded"


class Overloaded(HieraError):
    """The queue cannot take the request in time. `retry_after_s` is the predicted wait in seconds."""

    code = "overloaded"

    def __init__(self, message: str, *, retry_after_s: float, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s


class Unavailable(HieraError):
    code = "unavailable"


class DeadlineExceeded(HieraError):
    code = "deadline_exceeded"


class RequestCancelled(HieraError):
    code = "cancelled"


class EngineError(HieraError):
    code = "engine_error"


class EngineOutOfMemory(EngineError):
    code = "engine_out_of_memory"


class EngineLost(EngineError):
    code = "engine_lost"


class ChangeRefused(HieraError):
    code = "change_refused"


class EngineUnavailable(HieraError):
    code = "engine_unavailable"


class PackageError(HieraError):
    code = "package_error"
