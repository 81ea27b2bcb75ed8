"""Lets in who sends `X-Example-Frontend-Auth: exclusive`, and nobody else: API keys do not count while it runs."""

from pluginapi import (
    FrontendAuthRegistration,
    FrontendAuthRequest,
    FrontendAuthResponse,
    Plugin,
    RegisterRequest,
    RegisterResponse,
    serve,
)

HEADER = "x-example-frontend-auth"


class ExclusiveAuth(Plugin):
    async def plugin_register(self, request: RegisterRequest) -> RegisterResponse:
        return RegisterResponse(frontend_auth=FrontendAuthRegistration(id="example-header", exclusive=True))

    async def frontend_auth_authenticate(self, request: FrontendAuthRequest) -> FrontendAuthResponse | None:
        said = request.headers.get(HEADER)
        if not said:
            return None  # abstain: nobody else is asked, so the client is told that its key is missing
        if said[0] == "exclusive":
            return FrontendAuthResponse(decision="allow", principal="example", metadata={"by": HEADER})
        return FrontendAuthResponse(decision="deny", status=401, message=f"{HEADER}: wrong value")


if __name__ == "__main__":
    serve(ExclusiveAuth)
