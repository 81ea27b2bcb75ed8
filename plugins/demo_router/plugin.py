"""Sends every model named `demo-…` to the plugin `echo`: the smallest useful router, in a process of its own."""

from pluginapi import ModelRouteRequest, ModelRouteResponse, Plugin, serve


class DemoRouter(Plugin):
    """Answers nothing for other models, so that the next router, or the model list, decides."""

    id = "demo-router"
    version = "0.1.0"

    async def model_route(self, request: ModelRouteRequest) -> ModelRouteResponse | None:
        if not request.requested_model.startswith("demo-"):
            return None
        return ModelRouteResponse(
            target_kind="executor", target="echo", reason=f"{request.requested_model} starts with demo-"
        )


if __name__ == "__main__":
    serve(DemoRouter)
