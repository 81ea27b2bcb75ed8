"""A router behind JSON frames that answers `{}`: the price of one call to another process."""

from pluginapi import ModelRouteRequest, ModelRouteResponse, Plugin, serve


class EmptyAnswer(Plugin):
    """Lets the next router decide, with an empty object."""

    async def model_route(self, request: ModelRouteRequest) -> ModelRouteResponse:
        """An empty answer."""
        return ModelRouteResponse()


if __name__ == "__main__":
    serve(EmptyAnswer)
