"""Routes the model name `auto`: to a strong model when the request brings tools, to a cheap one otherwise."""

from typing import ClassVar

from pluginapi import Context, ModelRouteRequest, ModelRouteResponse, Plugin, serve


class CheapFirst(Plugin):
    inputs: ClassVar = {"model.route": ("body:/tools",)}

    async def model_route(self, request: ModelRouteRequest, ctx: Context) -> ModelRouteResponse | None:
        if request.requested_model != "auto":
            return None
        has_tools = bool(request.body_parts.get("/tools"))
        model = self.config.get("strong", "acme-large") if has_tools else self.config.get("cheap", "acme-small")
        ctx.log.info("cheap_first.routed", model=model, has_tools=has_tools)
        return ModelRouteResponse(
            target_kind="provider",
            target=self.config.get("provider", "openai-compatible-acme"),
            target_model=model,
            reason="the request brings tools" if has_tools else "no tools, the cheap model will do",
        )


if __name__ == "__main__":
    serve(CheapFirst)
