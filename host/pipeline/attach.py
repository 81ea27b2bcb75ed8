"""The runtime's `SecretAttacher` over the credentials of one gateway state."""

from host.credentials.attach import sign
from host.credentials.pool import CredentialPool
from host.runtime.callback_http import Attached
from pluginabi.errors import host_error


class PoolAttacher:
    """Finds the credential behind a handle and signs with it."""

    __slots__ = ("_pool",)

    def __init__(self, pool: CredentialPool) -> None:
        self._pool = pool

    def attach(self, handle: str, url: str, headers: list[tuple[str, str]]) -> Attached:
        """Raises PluginError `permission_denied` for an unknown handle and for a host that is not bound to it."""
        credential = self._pool.by_handle.get(handle)
        if credential is None or credential.disabled:
            raise host_error("permission_denied", "this credential handle is unknown or disabled")
        signed = sign(credential, url, headers)
        return Attached(signed.url, signed.headers, signed.proxy_url)
