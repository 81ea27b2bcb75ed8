"""The runtime's `SecretAttacher` over the credentials of one gateway state."""

from typing import Final

from host.credentials.attach import Signer
from host.credentials.pool import CredentialPool
from host.runtime.callback_http import Attached
from pluginabi.errors import host_error


class PoolAttacher:
    """Finds the credential behind a handle and signs with it."""

    __slots__ = ("_signers",)

    def __init__(self, pool: CredentialPool) -> None:
        self._signers: Final = {
            handle: Signer(credential) for handle, credential in pool.by_handle.items() if not credential.disabled
        }

    def attach(self, handle: str, url: str, headers: list[tuple[str, str]]) -> Attached:
        """Raises PluginError `permission_denied` for an unknown handle and for a host that is not bound to it."""
        signer = self._signers.get(handle)
        if signer is None:
            raise host_error("permission_denied", "this credential handle is unknown or disabled")
        signed = signer.sign(url, headers)
        return Attached(signed.url, signed.headers, signed.proxy_url)
