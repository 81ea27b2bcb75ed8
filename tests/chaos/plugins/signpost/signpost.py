"""A healthy router, asked about every request: what is meant for another plugin goes there."""

from pluginapi import ModelRouteRequest, ModelRouteResponse, Plugin, serve


class Signpost(Plugin):
    async def model_route(self, request: ModelRouteRequest) -> ModelRouteResponse | None:
        if request.requested_model == "plain":
            return None
        target = "steady" if request.requested_model == "steady" else "faulty"
        return ModelRouteResponse(target_kind="executor", target=target)


if __name__ == "__main__":
    serve(Signpost)
