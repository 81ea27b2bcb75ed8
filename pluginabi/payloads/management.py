"""command_line.execute, management.register|handle, route.register|handle (spec plugin-abi 7.7; route.* reserved)."""

from collections.abc import Mapping, Sequence

from msgspec import UNSET, UnsetType, field

from pluginabi.body import Body
from pluginabi.immutable import Headers
from pluginabi.payloads.common import CredentialRecord, HostSummary, Payload, RequestBound


class FlagValue(Payload, frozen=True, kw_only=True):
    """A command-line flag: its type, its value as text, and whether the user gave it."""

    name: str = ""
    type: str = "bool"
    value: str = ""
    set: bool = False


class CommandLineRequest(Payload, frozen=True, kw_only=True):
    """command_line.execute: one of this plugin's `[[flags]]` was given."""

    program: str = ""
    args: Sequence[str] = ()
    config_path: str = ""
    flags: Mapping[str, FlagValue] = field(default_factory=dict)
    triggered_flags: Mapping[str, FlagValue] = field(default_factory=dict)
    host: HostSummary = field(default_factory=HostSummary)


class CommandLineResponse(Payload, frozen=True, kw_only=True):
    """What to print, and credentials to save; they are saved only with exit code 0."""

    stdout: str = ""
    stderr: str = ""
    exit_code: int = 0
    records: Sequence[CredentialRecord] = ()


class ManagementRegisterRequest(Payload, frozen=True, kw_only=True):
    """management.register and route.register: which paths does this plugin serve?"""

    base_path: str = "/v0/management"
    resource_base_path: str = ""


class ManagementRoute(Payload, frozen=True, kw_only=True):
    """An exact path and method below `base_path`."""

    method: str = "GET"
    path: str = ""
    menu: str = ""
    description: str = ""


class ManagementRegisterResponse(Payload, frozen=True, kw_only=True):
    """`routes` need the management key, `resources` are public pages (GET only)."""

    routes: Sequence[ManagementRoute] = ()
    resources: Sequence[ManagementRoute] = ()


class ManagementHandleRequest(RequestBound, frozen=True, kw_only=True):
    """management.handle and route.handle: one HTTP request to one of the registered paths."""

    method: str = "GET"
    path: str = ""
    headers: Headers = field(default_factory=dict)
    query: Headers = field(default_factory=dict)
    body: Body | UnsetType = UNSET


class ManagementHandleResponse(Payload, frozen=True, kw_only=True):
    """The HTTP answer; status 0 counts as 200."""

    status: int = 200
    headers: Headers = field(default_factory=dict)
    body: Body | UnsetType = UNSET
