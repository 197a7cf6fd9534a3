"""What can go wrong between us and the API server.

`ApiError` is an answer: the server understood and refused. `Unreachable` is no answer: for a write it
means that the outcome is unknown, unless the connection was never made. `NotLeader` is a write that we
refused ourselves.
"""

from __future__ import annotations

import http

import msgspec

from gpufleet.fleet.errors import GpufleetError


class StatusCause(msgspec.Struct, frozen=True):
    """One cause inside a Status: a field and what is wrong with it."""

    reason: str = ""
    message: str = ""
    field: str = ""


class StatusDetails(msgspec.Struct, frozen=True, rename="camel"):
    """The object that a Status is about."""

    name: str = ""
    group: str = ""
    kind: str = ""
    uid: str = ""
    causes: tuple[StatusCause, ...] = ()
    retry_after_seconds: int = 0


class Status(msgspec.Struct, frozen=True):
    """metav1.Status: how the API server answers when it refuses."""

    status: str = ""
    message: str = ""
    reason: str = ""
    code: int = 0
    details: StatusDetails | None = None


class ApiError(GpufleetError):
    """The API server refused. `reason` and `message` are the server's, `status` is the HTTP code.

    `retry_after` is in seconds, None when the server did not say.
    """

    def __init__(
        self, *, status: int, reason: str, message: str, hint: str = "", retry_after: float | None = None
    ):
        super().__init__(reason=reason, message=message, hint=hint)
        self.status = status
        self.retry_after = retry_after
        self.details: StatusDetails | None = None

    @property
    def not_found(self) -> bool:
        """404: the object (or its kind) does not exist."""
        return self.status == http.HTTPStatus.NOT_FOUND

    @property
    def conflict(self) -> bool:
        """409 for any cause but AlreadyExists: the object changed, or another manager owns the field."""
        return self.status == http.HTTPStatus.CONFLICT and self.reason != "AlreadyExists"

    @property
    def already_exists(self) -> bool:
        """409 on create: an object of this name is there."""
        return self.status == http.HTTPStatus.CONFLICT and self.reason == "AlreadyExists"

    @property
    def gone(self) -> bool:
        """410: the resourceVersion or continue token is too old; list again."""
        return self.status == http.HTTPStatus.GONE

    @property
    def too_many_requests(self) -> bool:
        """429: throttled, or an eviction that a disruption budget forbids."""
        return self.status == http.HTTPStatus.TOO_MANY_REQUESTS


class Unreachable(GpufleetError):  # noqa: N818 - names the state of the server, as NotLeader names ours
    """No answer. `sent`: the request may have reached the server. `permanent`: trying again is pointless."""

    def __init__(
        self, *, reason: str, message: str, hint: str = "", sent: bool = False, permanent: bool = False
    ) -> None:
        super().__init__(reason=reason, message=message, hint=hint)
        self.sent = sent
        self.permanent = permanent


class NotLeader(GpufleetError):  # noqa: N818
    """A write was refused here because another process may be leading."""

    def __init__(self, lease: str) -> None:
        super().__init__(
            reason="NotLeader", message=f"this process does not hold the lease {lease}; nothing was written"
        )
        self.lease = lease


_HINTS = {
    401: "the credentials were refused; log in again or check the user in your kubeconfig",
    403: "ask for the missing permission; `kubectl auth can-i` shows what this user may do",
}

_STATUS = msgspec.json.Decoder(Status)


def api_error(code: int, body: bytes, retry_after: str | None = None) -> ApiError:
    """The error for an answer with HTTP code `code`; a body that is no Status becomes the message."""
    try:
        status = _STATUS.decode(body)
    except msgspec.DecodeError:
        status = Status(message=body[:500].decode(errors="replace").strip())
    return status_error(status, code, retry_after)


def status_error(status: Status, code: int = 0, retry_after: str | None = None) -> ApiError:
    """The error for a Status, as answers and ERROR events of watches carry it."""
    code = code or status.code
    seconds: float | None = None
    if retry_after is not None and retry_after.isdecimal():
        seconds = float(retry_after)
    elif status.details is not None and status.details.retry_after_seconds:
        seconds = float(status.details.retry_after_seconds)
    error = ApiError(
        status=code,
        reason=status.reason or _phrase(code),
        message=status.message or f"the API server answered {code} {_phrase(code)}",
        hint=_HINTS.get(code, ""),
        retry_after=seconds,
    )
    error.details = status.details
    return error


def _phrase(code: int) -> str:
    try:
        return http.HTTPStatus(code).phrase.replace(" ", "")
    except ValueError:
        return "Unknown"
