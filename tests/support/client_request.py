"""A client's request as records remember it."""

from typing import Final

from host.pipeline.request import ClientRequest, Principal
from pluginabi.immutable import freeze_headers

REQUEST: Final = ClientRequest(
    request_id="r1",
    protocol="openai",
    endpoint="POST /v1/chat/completions",
    model="m",
    stream=False,
    body=b"{}",
    headers=freeze_headers([("User-Agent", "curl/8 Bearer abcdefghijkl")]),
    principal=Principal(name="Bob", provider="config-api-key"),
    client_address="10.0.0.7",
)
