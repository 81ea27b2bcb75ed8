"""A router that is asked for every request and never has an opinion: the price of asking."""

from pluginapi import ModelRouteRequest, ModelRouteResponse, Plugin


class NoOpinion(Plugin):
    """Lets the next router decide, always."""

    async def model_route(self, request: ModelRouteRequest) -> ModelRouteResponse | None:
        """No opinion."""
        return None
