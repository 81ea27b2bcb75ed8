"""Rewrites requests and answers: caps the temperature, names the user, and tidies headers on both ways."""

from typing import ClassVar

import msgspec
from msgspec import Raw

from pluginapi import (
    Plugin,
    RequestInterceptRequest,
    RequestInterceptResponse,
    ResponseInterceptRequest,
    ResponseInterceptResponse,
    serve,
)


class HouseRules(Plugin):
    # Only these two values are needed, so the whole body stays at home.
    inputs: ClassVar = {"request.intercept_before": ("body:/temperature",), "response.intercept_after": ()}

    async def request_intercept_before(self, request: RequestInterceptRequest) -> RequestInterceptResponse:
        patch = {"user": self.config.get("user", "house")}
        limit = self.config.get("max_temperature", 1.0)
        temperature = request.body_parts.get("/temperature")
        if isinstance(temperature, (int, float)) and temperature > limit:
            patch["temperature"] = limit
        return RequestInterceptResponse(
            clear_headers=("x-debug",),
            headers={"x-house-rules": ("applied",)},
            patch=Raw(msgspec.json.encode(patch)),
        )

    async def response_intercept_after(self, request: ResponseInterceptRequest) -> ResponseInterceptResponse:
        return ResponseInterceptResponse(
            clear_headers=("server",), headers={"x-answered-for": (self.config.get("user", "house"),)}
        )


if __name__ == "__main__":
    serve(HouseRules)
