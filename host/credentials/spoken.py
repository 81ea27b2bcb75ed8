"""Secrets that somebody said aloud: an upstream that quotes the key it refused must not show it to the client."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from msgspec import UNSET, Raw
from msgspec.structs import replace

from host.credentials.records import Credential
from host.credentials.secret import MASK
from pluginabi.body import Body
from pluginabi.errors import PluginError

_LEAST: Final = 8
"""Characters; shorter texts would be found everywhere."""
_NAMES: Final = ("token", "key", "secret", "password")


def secret_texts(credential: Credential) -> Iterator[str]:
    """Every text of a credential that is a secret, or stands under a name that sounds like one."""
    if credential.secret is not None:
        yield credential.secret.reveal()
    yield from (value for _, value in credential.headers)
    yield from _texts_of_tokens(credential.metadata.reveal())


def without_secrets(error: PluginError, credential: Credential) -> PluginError:
    """The same error, in which the credential's secrets are masked; `error` itself when it has none."""
    body = error.body
    said = body.body.to_bytes() if body.body is not UNSET else b""
    texts = [text for text in secret_texts(credential) if len(text) >= _LEAST]
    found = [text for text in texts if text in body.message or text.encode() in said]
    if not found:
        return error
    message = body.message
    for text in sorted(found, key=len, reverse=True):
        message = message.replace(text, MASK)
        said = said.replace(text.encode(), MASK.encode())
    return PluginError(replace(body, message=message, body=_of_the_same_form(body.body, said)))


def _of_the_same_form(body: Any, said: bytes) -> Any:
    if body is UNSET:
        return UNSET
    if body.json is not UNSET:
        return Body(json=Raw(said))
    return Body(base64=said) if body.text is UNSET else Body(text=said.decode())


def _texts_of_tokens(document: Mapping[str, Any]) -> Iterator[str]:
    for name, value in document.items():
        if isinstance(value, Mapping):
            yield from _texts_of_tokens(value)
        elif isinstance(value, str) and any(word in name.lower() for word in _NAMES):
            yield value
