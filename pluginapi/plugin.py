"""The base class of plugins: one method per hook; overriding a method is having the capability."""

import difflib
import inspect
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from typing import Any, ClassVar, Final, Literal, ParamSpec, TypeVar, cast

from pluginabi.immutable import EMPTY_METADATA, FrozenDict
from pluginabi.methods import PLUGIN_METHODS
from pluginabi.payloads.common import Empty
from pluginabi.payloads.credentials import (
    AuthLoginPollRequest,
    AuthLoginPollResponse,
    AuthLoginStartRequest,
    AuthLoginStartResponse,
    AuthParseRequest,
    AuthRecordsResponse,
    AuthRefreshRequest,
    AuthRefreshResponse,
    AuthSaveRequest,
    AuthSaveResponse,
    CredentialSourceRequest,
    CredentialSourceResponse,
    FrontendAuthRequest,
    FrontendAuthResponse,
)
from pluginabi.payloads.executor import (
    ExecutorExhaustedRequest,
    ExecutorExhaustedResponse,
    ExecutorHttpRequest,
    ExecutorHttpResponse,
    ExecutorPrepareRequest,
    ExecutorRequest,
    ExecutorResponse,
)
from pluginabi.payloads.intercept import (
    RequestCompleteRequest,
    RequestInterceptRequest,
    RequestInterceptResponse,
    ResponseInterceptRequest,
    ResponseInterceptResponse,
    StreamInterceptRequest,
    StreamInterceptResponse,
)
from pluginabi.payloads.lifecycle import RegisterRequest, RegisterResponse, ShutdownRequest
from pluginabi.payloads.management import (
    CommandLineRequest,
    CommandLineResponse,
    ManagementHandleRequest,
    ManagementHandleResponse,
    ManagementRegisterRequest,
    ManagementRegisterResponse,
)
from pluginabi.payloads.models import ModelForAuthRequest, ModelForAuthResponse, ModelListRequest, ModelListResponse
from pluginabi.payloads.routing import (
    ModelRouteRequest,
    ModelRouteResponse,
    SchedulerPickRequest,
    SchedulerPickResponse,
)
from pluginabi.payloads.thinking import ThinkingApplyRequest, ThinkingApplyResponse
from pluginabi.payloads.translate import (
    RequestTranslateRequest,
    RequestTranslateResponse,
    ResponseTranslateRequest,
    ResponseTranslateResponse,
)
from pluginabi.payloads.usage import UsageHandleRequest
from pluginapi.answers import Reply, Stream
from pluginapi.hookspecs import hookimpl

P = ParamSpec("P")
R = TypeVar("R")

HOOK_ARGUMENTS: Final = ("request", "ctx")
HOOK_NAMES: Final[Mapping[str, str]] = {method: method.replace(".", "_") for method in PLUGIN_METHODS}
"""Method of the contract -> name of the Python method."""
_BLOCKING_MARK: Final = "__jackfield_blocking__"


def blocking(hook: Callable[P, R]) -> Callable[P, Coroutine[Any, Any, R]]:
    """Declares that a plain `def` hook may block: it runs in a thread, never on the event loop.

    At most `Plugin.blocking_threads` run at once. A cancelled call does not stop the thread: look at
    `ctx.cancelled.is_set()`. Callbacks are awaited with `ctx.run_sync(…)`. Raises TypeError for an `async def`.
    """
    if inspect.iscoroutinefunction(hook) or inspect.isasyncgenfunction(hook):
        raise TypeError(f"{hook.__qualname__} is async; @blocking is for plain functions")
    setattr(hook, _BLOCKING_MARK, True)
    return cast(Callable[P, Coroutine[Any, Any, R]], hook)


def is_blocking(hook: object) -> bool:
    """Whether a hook was declared with `@blocking`."""
    return getattr(hook, _BLOCKING_MARK, False) is True


def _check_hook(cls: type, name: str, hook: object) -> None:
    where = f"{cls.__module__}.{cls.__qualname__}.{name}"
    if not inspect.isfunction(hook):
        raise TypeError(f"{where} is not a plain method")
    where = f"{where} ({hook.__code__.co_filename}:{hook.__code__.co_firstlineno})"
    parameters = list(inspect.signature(hook).parameters.values())[1:]
    for parameter in parameters:
        if parameter.name not in HOOK_ARGUMENTS or parameter.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
            raise TypeError(f"{where} takes {str(parameter)!r}; a hook takes 'request' and 'ctx', by name")
    is_generator = inspect.isasyncgenfunction(hook)
    if is_generator and name != HOOK_NAMES["executor.execute_stream"]:
        raise TypeError(f"{where} is a generator; only executor_execute_stream may be one")
    if not is_generator and not inspect.iscoroutinefunction(hook) and not is_blocking(hook):
        raise TypeError(f"{where} is a plain function: make it 'async def', or add @blocking to run it in a thread")


def _warn_about_typos(cls: type) -> None:
    for name, value in vars(cls).items():
        if name.startswith("_") or name in HOOK_NAMES.values() or not inspect.iscoroutinefunction(value):
            continue
        if near := difflib.get_close_matches(name, HOOK_NAMES.values(), n=1, cutoff=0.9):
            message = f"{cls.__qualname__}.{name} is no hook; did you mean {near[0]}?"
            warnings.warn(message, UserWarning, stacklevel=3)


class Plugin:
    """A plugin. Override the hooks you want; each takes `(self, request)` or `(self, request, ctx)`, by name.

    Hooks are `async def`, or `def` with `@blocking`; defining one that is neither, or with other arguments, raises
    TypeError when the class is made. Requests are deeply immutable. Answer the hook's response struct, nothing (no
    opinion, no change), or `Reply(result, usage=…)`. Raise `PluginError` to fail with a status of your choice; any
    other exception becomes a 500 that names its class, with the traceback in the log.

    One instance serves all calls of its process, concurrently; its constructor takes no arguments.
    """

    id: ClassVar[str] = ""
    """As in `plugin.toml`, which is read when this is empty."""
    version: ClassVar[str] = ""
    inputs: ClassVar[Mapping[str, Sequence[str]]] = FrozenDict()
    """Per method what the request should carry, e.g. `{"model.route": ["body:/tools"]}`; the manifest wins."""
    on_error: ClassVar[Mapping[str, Literal["fail", "skip"]]] = FrozenDict()
    """Failure modes this class asks for, merged over those of its bases; the manifest and the operator win."""
    max_inflight: ClassVar[int | None] = None
    """Calls the host may have open at once; None: 64."""
    max_streams: ClassVar[int | None] = None
    blocking_threads: ClassVar[int] = 8
    config: Mapping[str, Any] = EMPTY_METADATA
    """The plugin's own configuration, set before `plugin_register` and `plugin_reconfigure` are called."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in HOOK_NAMES.values():
            hook = inspect.getattr_static(cls, name)
            if hook is not inspect.getattr_static(Plugin, name):
                _check_hook(cls, name, hook)
                hookimpl(hook)
        _warn_about_typos(cls)

    async def plugin_register(
        self, request: RegisterRequest, *args: Any, **kwargs: Any
    ) -> RegisterResponse | Reply | None:
        """Says what is in effect for this configuration."""
        raise NotImplementedError

    async def plugin_reconfigure(
        self, request: RegisterRequest, *args: Any, **kwargs: Any
    ) -> RegisterResponse | Reply | None:
        """Takes a changed configuration without a restart."""
        raise NotImplementedError

    async def plugin_shutdown(self, request: ShutdownRequest, *args: Any, **kwargs: Any) -> Empty | Reply | None:
        """Saves what must survive; the process ends next."""
        raise NotImplementedError

    async def model_register(
        self, request: ModelListRequest, *args: Any, **kwargs: Any
    ) -> ModelListResponse | Reply | None:
        """Lists the models this plugin serves without a credential."""
        raise NotImplementedError

    async def model_static(
        self, request: ModelListRequest, *args: Any, **kwargs: Any
    ) -> ModelListResponse | Reply | None:
        """Lists a provider's models that need no call to the upstream."""
        raise NotImplementedError

    async def model_for_auth(
        self, request: ModelForAuthRequest, *args: Any, **kwargs: Any
    ) -> ModelForAuthResponse | Reply | None:
        """Lists the models one credential serves."""
        raise NotImplementedError

    async def auth_parse(
        self, request: AuthParseRequest, *args: Any, **kwargs: Any
    ) -> AuthRecordsResponse | Reply | None:
        """Recognises a credential file."""
        raise NotImplementedError

    async def auth_login_start(
        self, request: AuthLoginStartRequest, *args: Any, **kwargs: Any
    ) -> AuthLoginStartResponse | Reply | None:
        """Begins a login and answers the address to open."""
        raise NotImplementedError

    async def auth_login_poll(
        self, request: AuthLoginPollRequest, *args: Any, **kwargs: Any
    ) -> AuthLoginPollResponse | Reply | None:
        """Says whether a login is done."""
        raise NotImplementedError

    async def auth_refresh(
        self, request: AuthRefreshRequest, *args: Any, **kwargs: Any
    ) -> AuthRefreshResponse | Reply | None:
        """Renews a credential; empty fields keep what there was."""
        raise NotImplementedError

    async def auth_save(self, request: AuthSaveRequest, *args: Any, **kwargs: Any) -> AuthSaveResponse | Reply | None:
        """Answers what should be stored instead of a record: the whole content of its file."""
        raise NotImplementedError

    async def frontend_auth_authenticate(
        self, request: FrontendAuthRequest, *args: Any, **kwargs: Any
    ) -> FrontendAuthResponse | Reply | None:
        """Says who a client is: allow, abstain or deny."""
        raise NotImplementedError

    async def credential_source_next(
        self, request: CredentialSourceRequest, *args: Any, **kwargs: Any
    ) -> CredentialSourceResponse | Reply | None:
        """Hands out a credential that is kept elsewhere."""
        raise NotImplementedError

    async def scheduler_pick(
        self, request: SchedulerPickRequest, *args: Any, **kwargs: Any
    ) -> SchedulerPickResponse | Reply | None:
        """Chooses the credential of one attempt."""
        raise NotImplementedError

    async def model_route(
        self, request: ModelRouteRequest, *args: Any, **kwargs: Any
    ) -> ModelRouteResponse | Reply | None:
        """Chooses the provider or executor of a request, before anything is resolved."""
        raise NotImplementedError

    async def executor_execute(
        self, request: ExecutorRequest, *args: Any, **kwargs: Any
    ) -> ExecutorResponse | Reply | None:
        """Calls the upstream and answers the whole response."""
        raise NotImplementedError

    def executor_execute_stream(
        self, request: ExecutorRequest, *args: Any, **kwargs: Any
    ) -> Coroutine[Any, Any, Stream] | AsyncIterator[Any]:
        """Calls the upstream and streams its answer."""
        raise NotImplementedError

    async def executor_count_tokens(
        self, request: ExecutorRequest, *args: Any, **kwargs: Any
    ) -> ExecutorResponse | Reply | None:
        """Counts the tokens of a request, in the upstream's answer format."""
        raise NotImplementedError

    async def executor_http_request(
        self, request: ExecutorHttpRequest, *args: Any, **kwargs: Any
    ) -> ExecutorHttpResponse | Reply | None:
        """Sends any request with a credential."""
        raise NotImplementedError

    async def executor_prepare(
        self, request: ExecutorPrepareRequest, *args: Any, **kwargs: Any
    ) -> Empty | Reply | None:
        """Gets a credential ready before its first request."""
        raise NotImplementedError

    async def executor_on_exhausted(
        self, request: ExecutorExhaustedRequest, *args: Any, **kwargs: Any
    ) -> ExecutorExhaustedResponse | Reply | None:
        """Asked when every credential failed or rests: is one more round worth it?"""
        raise NotImplementedError

    async def request_normalize(
        self, request: RequestTranslateRequest, *args: Any, **kwargs: Any
    ) -> RequestTranslateResponse | Reply | None:
        """Repairs a request body before it is translated."""
        raise NotImplementedError

    async def request_translate(
        self, request: RequestTranslateRequest, *args: Any, **kwargs: Any
    ) -> RequestTranslateResponse | Reply | None:
        """Translates a request body from the client's protocol to the upstream's."""
        raise NotImplementedError

    async def request_intercept_before(
        self, request: RequestInterceptRequest, *args: Any, **kwargs: Any
    ) -> RequestInterceptResponse | Reply | None:
        """Rewrites or ends a request, before any credential is chosen."""
        raise NotImplementedError

    async def request_intercept_after(
        self, request: RequestInterceptRequest, *args: Any, **kwargs: Any
    ) -> RequestInterceptResponse | Reply | None:
        """The same per attempt, with the credential and upstream format known."""
        raise NotImplementedError

    async def request_complete(
        self, request: RequestCompleteRequest, *args: Any, **kwargs: Any
    ) -> Empty | Reply | None:
        """Told how a request ended; exactly once, after the last byte."""
        raise NotImplementedError

    async def response_translate(
        self, request: ResponseTranslateRequest, *args: Any, **kwargs: Any
    ) -> ResponseTranslateResponse | Reply | None:
        """Translates a response, or items of one, from the upstream's protocol to the client's."""
        raise NotImplementedError

    async def response_normalize_before(
        self, request: ResponseTranslateRequest, *args: Any, **kwargs: Any
    ) -> ResponseTranslateResponse | Reply | None:
        """Repairs a response before it is translated."""
        raise NotImplementedError

    async def response_normalize_after(
        self, request: ResponseTranslateRequest, *args: Any, **kwargs: Any
    ) -> ResponseTranslateResponse | Reply | None:
        """Repairs a response after it was translated."""
        raise NotImplementedError

    async def response_intercept_after(
        self, request: ResponseInterceptRequest, *args: Any, **kwargs: Any
    ) -> ResponseInterceptResponse | Reply | None:
        """Rewrites a complete, successful response."""
        raise NotImplementedError

    async def response_intercept_stream_chunk(
        self, request: StreamInterceptRequest, *args: Any, **kwargs: Any
    ) -> StreamInterceptResponse | Reply | None:
        """Rewrites a stream, some items at a time."""
        raise NotImplementedError

    async def thinking_apply(
        self, request: ThinkingApplyRequest, *args: Any, **kwargs: Any
    ) -> ThinkingApplyResponse | Reply | None:
        """Writes a reasoning budget or level into an upstream body."""
        raise NotImplementedError

    async def usage_handle(self, request: UsageHandleRequest, *args: Any, **kwargs: Any) -> Empty | Reply | None:
        """Told what one upstream call used."""
        raise NotImplementedError

    async def command_line_execute(
        self, request: CommandLineRequest, *args: Any, **kwargs: Any
    ) -> CommandLineResponse | Reply | None:
        """Runs when one of the manifest's `[[flags]]` was given."""
        raise NotImplementedError

    async def management_register(
        self, request: ManagementRegisterRequest, *args: Any, **kwargs: Any
    ) -> ManagementRegisterResponse | Reply | None:
        """Lists the management paths and public pages this plugin serves."""
        raise NotImplementedError

    async def management_handle(
        self, request: ManagementHandleRequest, *args: Any, **kwargs: Any
    ) -> ManagementHandleResponse | Reply | None:
        """Serves one of the registered management paths."""
        raise NotImplementedError

    async def route_register(
        self, request: ManagementRegisterRequest, *args: Any, **kwargs: Any
    ) -> ManagementRegisterResponse | Reply | None:
        """Lists client-facing paths this plugin serves (reserved)."""
        raise NotImplementedError

    async def route_handle(
        self, request: ManagementHandleRequest, *args: Any, **kwargs: Any
    ) -> ManagementHandleResponse | Reply | None:
        """Serves one of the registered client-facing paths (reserved)."""
        raise NotImplementedError


class Guard(Plugin):
    """A plugin whose interceptors must not be skipped: an error in one ends the request instead of letting it pass.

    A process that is down cannot say so, so its manifest has to repeat it: `[on_error]` with
    `"request.intercept_before" = "fail"`.
    """

    on_error = FrozenDict(
        {
            "request.intercept_before": "fail",
            "request.intercept_after": "fail",
            "response.intercept_after": "fail",
            "response.intercept_stream_chunk": "fail",
        }
    )


def capabilities_of(plugin_class: type[Plugin]) -> tuple[str, ...]:
    """The methods a class implements, in the order of the method table; `plugin.register` always is."""
    return tuple(
        method
        for method, name in HOOK_NAMES.items()
        if method == "plugin.register" or getattr(plugin_class, name) is not getattr(Plugin, name)
    )


def failure_modes_of(plugin_class: type[Plugin]) -> Mapping[str, Literal["fail", "skip"]]:
    """`on_error` of a class over that of its bases, for the methods it implements."""
    merged: dict[str, Literal["fail", "skip"]] = {}
    for base in reversed(plugin_class.__mro__):
        merged.update(base.__dict__.get("on_error", {}))
    implemented = capabilities_of(plugin_class)
    return FrozenDict({method: mode for method, mode in merged.items() if method in implemented})
