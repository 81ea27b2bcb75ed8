"""Limits how many requests run at once: one hook lets a request in, another learns that it is over."""

from pluginapi import (
    Body,
    Plugin,
    RegisterRequest,
    RegisterResponse,
    RequestCompleteRequest,
    RequestInterceptRequest,
    RequestInterceptResponse,
    Termination,
    serve,
)


class ConcurrencyLimit(Plugin):
    def __init__(self) -> None:
        self._admitted: set[str] = set()

    async def plugin_reconfigure(self, request: RegisterRequest) -> RegisterResponse | None:
        return None  # `self.config` is the new one already; who is in stays in

    async def request_intercept_before(self, request: RequestInterceptRequest) -> RequestInterceptResponse | None:
        keyword = self.config.get("reject_keyword", "blocked")
        if keyword and request.body and keyword.encode() in request.body.to_bytes():
            return _refuse(403, "rejected_keyword", f"this gateway does not answer requests about {keyword!r}")
        if len(self._admitted) >= self.config.get("max_concurrency", 2):
            return _refuse(429, "too_many_requests", "too many requests at once", {"retry-after": ("1",)})
        self._admitted.add(request.request_id)
        return None

    async def request_complete(self, request: RequestCompleteRequest) -> None:
        # Told of every request, refused ones included: only who was let in can leave.
        self._admitted.discard(request.request_id)


def _refuse(
    status: int, code: str, message: str, headers: dict[str, tuple[str, ...]] | None = None
) -> RequestInterceptResponse:
    body = Body.from_value({"error": {"code": code, "message": message}})
    return RequestInterceptResponse(terminate=Termination(status=status, headers=headers or {}, body=body))


if __name__ == "__main__":
    serve(ConcurrencyLimit)
