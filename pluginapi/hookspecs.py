"""One pluggy hook specification per method a host calls; the docstrings are the reference text for authors.

An implementation takes the arguments it wants by name, as everywhere in pluggy: `(self, request)` or
`(self, request, ctx)`. The host calls implementations itself, one by one, with deadline and failure mode per method.
"""

from typing import Final

import pluggy

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
from pluginapi.answers import Stream
from pluginapi.context import Context

PROJECT: Final = "jackfield"
hookspec: Final = pluggy.HookspecMarker(PROJECT)
hookimpl: Final = pluggy.HookimplMarker(PROJECT)


@hookspec
def plugin_register(request: RegisterRequest, ctx: Context) -> RegisterResponse | None:
    """Says what is in effect for this configuration.

    Called once after the handshake, before any other hook, and in-process when the plugin is loaded.
    `request.config` is the plugin's own section (also `self.config`), secrets resolved. Answer nothing when all
    declared hooks are in effect; a capability that is not an overridden method is refused. Raise `PluginError` to
    refuse a configuration: the plugin stays visible with that message and serves nothing.
    """


@hookspec
def plugin_reconfigure(request: RegisterRequest, ctx: Context) -> RegisterResponse | None:
    """Takes a changed configuration without a restart.

    Overriding it is a promise to do so; otherwise the host starts a new generation beside this one. Raising keeps
    the last good configuration and registration.
    """


@hookspec
def plugin_shutdown(request: ShutdownRequest, ctx: Context) -> Empty | None:
    """Saves what must survive; the process ends next.

    Called after running calls have drained, with 5 seconds to answer.
    """


@hookspec
def model_register(request: ModelListRequest, ctx: Context) -> ModelListResponse | None:
    """Lists the models this plugin serves without a credential.

    An empty list registers nothing.
    """


@hookspec
def model_static(request: ModelListRequest, ctx: Context) -> ModelListResponse | None:
    """Lists a provider's models that need no call to the upstream.

    Merged with `model.register` of other plugins; an empty list registers nothing.
    """


@hookspec
def model_for_auth(request: ModelForAuthRequest, ctx: Context) -> ModelForAuthResponse | None:
    """Lists the models one credential serves.

    An empty provider means the credential's; a different one means *not mine*.
    """


@hookspec
def auth_parse(request: AuthParseRequest, ctx: Context) -> AuthRecordsResponse | None:
    """Recognises a credential file.

    Answer one record, or several to make each a virtual credential; nothing means *not mine*. Carries the file's
    secrets.
    """


@hookspec
def auth_login_start(request: AuthLoginStartRequest, ctx: Context) -> AuthLoginStartResponse | None:
    """Begins a login and answers the address to open.

    `state` (1 to 128 of `A-Z a-z 0-9 . _ -`) identifies it from then on.
    """


@hookspec
def auth_login_poll(request: AuthLoginPollRequest, ctx: Context) -> AuthLoginPollResponse | None:
    """Says whether a login is done.

    Called until the status is `success` (with records) or `error`; `code` or `error` is set once the browser came
    back.
    """


@hookspec
def auth_refresh(request: AuthRefreshRequest, ctx: Context) -> AuthRefreshResponse | None:
    """Renews a credential; empty fields keep what there was.

    The request carries the credential's secrets.
    """


@hookspec
def auth_save(request: AuthSaveRequest, ctx: Context) -> AuthSaveResponse | None:
    """Answers what should be stored instead of a record, after a login or a refresh.

    The `storage` of the answered record is the whole new content of the file.
    """


@hookspec
def frontend_auth_authenticate(request: FrontendAuthRequest, ctx: Context) -> FrontendAuthResponse | None:
    """Says who a client is: allow, abstain or deny.

    Always sees the client's secrets; the body only when `inputs` names it, at most 1 MiB. `deny` ends the chain
    with its status. An exception abstains: it never opens the gateway.
    """


@hookspec
def credential_source_next(request: CredentialSourceRequest, ctx: Context) -> CredentialSourceResponse | None:
    """Hands out a credential that is kept elsewhere, for a model that none of the host's own serves.

    Asked for each attempt: `count` rises with every credential that failed. An empty answer means that nothing is
    available; a source that cannot be reached raises 503 `credential_source_unavailable`, with `retryable`.
    """


@hookspec
def scheduler_pick(request: SchedulerPickRequest, ctx: Context) -> SchedulerPickResponse | None:
    """Chooses the credential of one attempt.

    Candidates are the healthy credentials of the best priority, without secrets. Answer one's id, a built-in
    strategy in `delegate`, or nothing. A `PluginError` fails the request with its status.
    """


@hookspec
def model_route(request: ModelRouteRequest, ctx: Context) -> ModelRouteResponse | None:
    """Chooses the provider or executor of a request, before anything is resolved.

    Routers are asked in priority order, the first valid answer wins; nothing lets the next one decide. The body is
    seen only through `inputs` (`body`, or `body:/tools` for parts).
    """


@hookspec
def executor_execute(request: ExecutorRequest, ctx: Context) -> ExecutorResponse | None:
    """Calls the upstream and answers the whole response.

    `request.body` is in `source_format`, the answer must be in `format`. Raise `PluginError` with the upstream's
    status for anything but success; `retryable` and `retry_after_ms` decide about rotation.
    """


@hookspec
def executor_execute_stream(request: ExecutorRequest, ctx: Context) -> Stream | None:
    """Calls the upstream and streams its answer.

    Return a `Stream`, or write an async generator: its first item opens the stream, so an error before it keeps its
    status as an ordinary answer. Items are all events or all raw; yield a `Usage` for the closing frame. Closing
    the generator (client gone, deadline) must stop the upstream call, which `async with ctx.http.stream(…)` does.
    """


@hookspec
def executor_count_tokens(request: ExecutorRequest, ctx: Context) -> ExecutorResponse | None:
    """Counts the tokens of a request, in the upstream's answer format.

    Like `executor.execute` in everything else.
    """


@hookspec
def executor_http_request(request: ExecutorHttpRequest, ctx: Context) -> ExecutorHttpResponse | None:
    """Sends any request with a credential.

    Any status is an answer.
    """


@hookspec
def executor_prepare(request: ExecutorPrepareRequest, ctx: Context) -> Empty | None:
    """Gets a credential ready before its first request, such as by finding out a project id.

    Asked once per credential and again after it changed or was refused, one at a time per credential. An error counts
    as a failed attempt.
    """


@hookspec
def executor_on_exhausted(request: ExecutorExhaustedRequest, ctx: Context) -> ExecutorExhaustedResponse | None:
    """Asked once per request when every credential failed or rests: `retry` gets one more round.

    The host waits `retry_after_ms` first, as far as the operator's `max-retry-interval` allows, and ends the blocks of
    the provider's credentials for this model. An error of the plugin changes nothing.
    """


@hookspec
def request_normalize(request: RequestTranslateRequest, ctx: Context) -> RequestTranslateResponse | None:
    """Repairs a request body before it is translated.

    Answer the new body, or nothing to keep it.
    """


@hookspec
def request_translate(request: RequestTranslateRequest, ctx: Context) -> RequestTranslateResponse | None:
    """Translates a request body from the client's protocol to the upstream's.

    Asked only for pairs the host does not speak itself; the first answer wins.
    """


@hookspec
def request_intercept_before(request: RequestInterceptRequest, ctx: Context) -> RequestInterceptResponse | None:
    """Rewrites or ends a request, before any credential is chosen.

    Answer a delta: `clear_headers`, `headers`, and `body` or `patch` (RFC 7396). `terminate` ends the request with
    this plugin's own response. The result is authoritative. Errors are skipped unless the failure mode is `fail`
    (see `Guard`).
    """


@hookspec
def request_intercept_after(request: RequestInterceptRequest, ctx: Context) -> RequestInterceptResponse | None:
    """The same per attempt, with the credential and upstream format known.

    As `request.intercept_before`.
    """


@hookspec
def request_complete(request: RequestCompleteRequest, ctx: Context) -> Empty | None:
    """Told how a request ended; exactly once, after the last byte.

    Its answer is ignored.
    """


@hookspec
def response_translate(request: ResponseTranslateRequest, ctx: Context) -> ResponseTranslateResponse | None:
    """Translates a response, or items of one, from the upstream's protocol to the client's.

    A stream arrives in calls of several items; the last has `last` set and may be empty.
    """


@hookspec
def response_normalize_before(request: ResponseTranslateRequest, ctx: Context) -> ResponseTranslateResponse | None:
    """Repairs a response before it is translated.

    As `response.translate`.
    """


@hookspec
def response_normalize_after(request: ResponseTranslateRequest, ctx: Context) -> ResponseTranslateResponse | None:
    """Repairs a response after it was translated.

    As `response.translate`.
    """


@hookspec
def response_intercept_after(request: ResponseInterceptRequest, ctx: Context) -> ResponseInterceptResponse | None:
    """Rewrites a complete, successful response.

    Answer a delta as for requests.
    """


@hookspec
def response_intercept_stream_chunk(request: StreamInterceptRequest, ctx: Context) -> StreamInterceptResponse | None:
    """Rewrites a stream, some items at a time.

    Index -1 is the header call. Absent `items` keeps them, `[]` drops them, more or fewer are fine; `end` ends the
    stream. Headers count until the first byte is out.
    """


@hookspec
def thinking_apply(request: ThinkingApplyRequest, ctx: Context) -> ThinkingApplyResponse | None:
    """Writes a reasoning budget or level into an upstream body.

    Called for the `thinking_provider` this plugin registered; answer nothing to keep the body.
    """


@hookspec
def usage_handle(request: UsageHandleRequest, ctx: Context) -> Empty | None:
    """Told what one upstream call used.

    Exactly one record per attempt that reached an upstream. Its answer is ignored.
    """


@hookspec
def command_line_execute(request: CommandLineRequest, ctx: Context) -> CommandLineResponse | None:
    """Runs when one of the manifest's `[[flags]]` was given.

    Records are saved only with exit code 0.
    """


@hookspec
def management_register(request: ManagementRegisterRequest, ctx: Context) -> ManagementRegisterResponse | None:
    """Lists the management paths and public pages this plugin serves.

    Routes need the management key, resources are public.
    """


@hookspec
def management_handle(request: ManagementHandleRequest, ctx: Context) -> ManagementHandleResponse | None:
    """Serves one of the registered management paths.

    Status 0 counts as 200.
    """


@hookspec
def route_register(request: ManagementRegisterRequest, ctx: Context) -> ManagementRegisterResponse | None:
    """Lists client-facing paths this plugin serves (reserved).

    No host calls this yet.
    """


@hookspec
def route_handle(request: ManagementHandleRequest, ctx: Context) -> ManagementHandleResponse | None:
    """Serves one of the registered client-facing paths (reserved).

    No host calls this yet.
    """
