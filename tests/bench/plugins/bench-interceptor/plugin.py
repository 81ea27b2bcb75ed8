"""An interceptor that sets one header on every request: the price of the smallest rewrite."""

from pluginapi import Plugin, RequestInterceptRequest, RequestInterceptResponse


class SetsOneHeader(Plugin):
    """Adds `x-bench` and leaves the rest alone; it does not want the body."""

    inputs = {"request.intercept_before": []}  # noqa: RUF012 - read once, at registration

    async def request_intercept_before(self, request: RequestInterceptRequest) -> RequestInterceptResponse:
        """One header."""
        return RequestInterceptResponse(headers={"x-bench": ["1"]})
