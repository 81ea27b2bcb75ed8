"""What a plugin sees of a credential: a handle, and what is stored of it only where the operator granted that."""

from typing import Any, Final

import msgspec
from msgspec import Raw
from msgspec.structs import replace

from host.credentials.manager import CredentialManager
from host.credentials.records import Credential
from host.runtime.handle import Binding
from pluginabi.payloads.common import CredentialHandle

SECRETS: Final = "credential_secrets"


def shown_credential(
    manager: CredentialManager, credential: Credential, handle: CredentialHandle | None, binding: Binding
) -> CredentialHandle | None:
    """`handle` as this plugin may see it: with the credential's newest stored JSON under `credential_secrets`."""
    if handle is None or SECRETS not in binding.permissions:
        return handle
    stored = stored_of(manager.by_id.get(credential.id, credential))
    return replace(handle, storage=Raw(msgspec.json.encode(stored))) if stored else handle


def stored_of(credential: Credential) -> Any:
    """The content of its file; of a configured key the key alone. Empty when there is nothing secret."""
    members = credential.metadata.reveal()
    if members or credential.secret is None:
        return members
    return {"api_key": credential.secret.reveal()}
