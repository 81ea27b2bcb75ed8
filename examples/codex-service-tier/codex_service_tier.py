"""Asks for priority processing where the upstream sells it: `service_tier` in the body, everything else as it was."""

import msgspec
from msgspec import Raw

from pluginapi import (
    Body,
    Plugin,
    RegisterRequest,
    RegisterResponse,
    RequestTranslateRequest,
    RequestTranslateResponse,
    serve,
)

_MEMBERS = msgspec.json.Decoder(dict[str, Raw])


class CodexServiceTier(Plugin):
    async def plugin_reconfigure(self, request: RegisterRequest) -> RegisterResponse | None:
        return None  # nothing is kept but `self.config`, which is the new one already

    async def request_normalize(self, request: RequestTranslateRequest) -> RequestTranslateResponse | None:
        formats = [str(name).lower() for name in self.config.get("formats", ["codex"])]
        if not self.config.get("fast") or request.to_format.lower() not in formats:
            return None
        if request.model not in self.config.get("models", ["gpt-5.5"]) or not request.body:
            return None
        try:
            members = _MEMBERS.decode(request.body.to_bytes())
        except msgspec.DecodeError:
            return None  # not an object: the upstream will say what it thinks of that
        members["service_tier"] = Raw(b'"priority"')
        return RequestTranslateResponse(body=Body.from_value(members))


if __name__ == "__main__":
    serve(CodexServiceTier)
