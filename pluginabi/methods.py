"""The method table: every method of the ABI with its direction, payloads, streaming, deadline and failure mode."""

from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias

from msgspec import Struct

from pluginabi.payloads import (
    callbacks,
    credentials,
    executor,
    intercept,
    lifecycle,
    management,
    models,
    routing,
    thinking,
    translate,
    usage,
)
from pluginabi.payloads.common import Empty, Payload

Direction: TypeAlias = Literal["host_to_plugin", "plugin_to_host"]
OnError: TypeAlias = Literal["fail", "skip"]

INPUT_WORDS: Final = ("body", "body:exact", "client_body", "request_body", "history", "candidates:all")
"""Words of `inputs` beside `body:<pointer>` (RFC 6901 plus negative array indices)."""


class MethodSpec(Struct, frozen=True, kw_only=True):
    """One row of the table."""

    name: str
    direction: Direction
    request: type[Payload]
    response: type[Payload]
    stream: bool = False
    """Whether the answer opens a stream."""
    timeout_ms: int | None = None
    """Default deadline until `result`; None: the caller's own (callbacks) or the executor timeouts."""
    on_error: OnError = "fail"
    """Default failure mode; `skip` may be set to `fail` in the manifest and by the operator."""
    inputs: tuple[str, ...] = ()
    """Default inputs."""
    reserved: bool = False
    """A name with structs that no host calls yet."""


def _plugin(name: str, request: type[Payload], response: type[Payload], **fields: Any) -> MethodSpec:
    return MethodSpec(name=name, direction="host_to_plugin", request=request, response=response, **fields)


def _host(name: str, request: type[Payload], response: type[Payload], *, stream: bool = False) -> MethodSpec:
    return MethodSpec(name=name, direction="plugin_to_host", request=request, response=response, stream=stream)


_PLUGIN_METHODS: Final = (
    _plugin("plugin.register", lifecycle.RegisterRequest, lifecycle.RegisterResponse, timeout_ms=10_000),
    _plugin("plugin.reconfigure", lifecycle.RegisterRequest, lifecycle.RegisterResponse, timeout_ms=10_000),
    _plugin("plugin.shutdown", lifecycle.ShutdownRequest, Empty, timeout_ms=5_000),
    _plugin("model.register", models.ModelListRequest, models.ModelListResponse, timeout_ms=30_000),
    _plugin("model.static", models.ModelListRequest, models.ModelListResponse, timeout_ms=30_000),
    _plugin("model.for_auth", models.ModelForAuthRequest, models.ModelForAuthResponse, timeout_ms=30_000),
    _plugin("auth.parse", credentials.AuthParseRequest, credentials.AuthRecordsResponse, timeout_ms=30_000),
    _plugin(
        "auth.login.start", credentials.AuthLoginStartRequest, credentials.AuthLoginStartResponse, timeout_ms=30_000
    ),
    _plugin("auth.login.poll", credentials.AuthLoginPollRequest, credentials.AuthLoginPollResponse, timeout_ms=30_000),
    _plugin("auth.refresh", credentials.AuthRefreshRequest, credentials.AuthRefreshResponse, timeout_ms=30_000),
    _plugin("auth.save", credentials.AuthSaveRequest, credentials.AuthSaveResponse, timeout_ms=30_000),
    _plugin(
        "frontend_auth.authenticate",
        credentials.FrontendAuthRequest,
        credentials.FrontendAuthResponse,
        timeout_ms=2_000,
        on_error="skip",
    ),
    _plugin(
        "credential_source.next",
        credentials.CredentialSourceRequest,
        credentials.CredentialSourceResponse,
        timeout_ms=5_000,
    ),
    _plugin("scheduler.pick", routing.SchedulerPickRequest, routing.SchedulerPickResponse, timeout_ms=250),
    _plugin("model.route", routing.ModelRouteRequest, routing.ModelRouteResponse, timeout_ms=500, on_error="skip"),
    _plugin("executor.execute", executor.ExecutorRequest, executor.ExecutorResponse, inputs=("body",)),
    _plugin(
        "executor.execute_stream", executor.ExecutorRequest, executor.ExecutorResponse, stream=True, inputs=("body",)
    ),
    _plugin("executor.count_tokens", executor.ExecutorRequest, executor.ExecutorResponse, inputs=("body",)),
    _plugin("executor.http_request", executor.ExecutorHttpRequest, executor.ExecutorHttpResponse),
    _plugin("executor.prepare", executor.ExecutorPrepareRequest, Empty, timeout_ms=30_000),
    _plugin(
        "executor.on_exhausted",
        executor.ExecutorExhaustedRequest,
        executor.ExecutorExhaustedResponse,
        timeout_ms=30_000,
    ),
    _plugin(
        "request.normalize",
        translate.RequestTranslateRequest,
        translate.RequestTranslateResponse,
        timeout_ms=2_000,
        on_error="skip",
        inputs=("body",),
    ),
    _plugin(
        "request.translate",
        translate.RequestTranslateRequest,
        translate.RequestTranslateResponse,
        timeout_ms=2_000,
        on_error="skip",
        inputs=("body",),
    ),
    _plugin(
        "request.intercept_before",
        intercept.RequestInterceptRequest,
        intercept.RequestInterceptResponse,
        timeout_ms=2_000,
        on_error="skip",
        inputs=("body",),
    ),
    _plugin(
        "request.intercept_after",
        intercept.RequestInterceptRequest,
        intercept.RequestInterceptResponse,
        timeout_ms=2_000,
        on_error="skip",
        inputs=("body",),
    ),
    _plugin("request.complete", intercept.RequestCompleteRequest, Empty, timeout_ms=5_000, on_error="skip"),
    _plugin(
        "response.translate",
        translate.ResponseTranslateRequest,
        translate.ResponseTranslateResponse,
        timeout_ms=500,
        on_error="skip",
        inputs=("body",),
    ),
    _plugin(
        "response.normalize_before",
        translate.ResponseTranslateRequest,
        translate.ResponseTranslateResponse,
        timeout_ms=500,
        on_error="skip",
        inputs=("body",),
    ),
    _plugin(
        "response.normalize_after",
        translate.ResponseTranslateRequest,
        translate.ResponseTranslateResponse,
        timeout_ms=500,
        on_error="skip",
        inputs=("body",),
    ),
    _plugin(
        "response.intercept_after",
        intercept.ResponseInterceptRequest,
        intercept.ResponseInterceptResponse,
        timeout_ms=2_000,
        on_error="skip",
        inputs=("body",),
    ),
    _plugin(
        "response.intercept_stream_chunk",
        intercept.StreamInterceptRequest,
        intercept.StreamInterceptResponse,
        timeout_ms=500,
        on_error="skip",
        inputs=("body",),
    ),
    _plugin(
        "thinking.apply",
        thinking.ThinkingApplyRequest,
        thinking.ThinkingApplyResponse,
        timeout_ms=2_000,
        on_error="skip",
        inputs=("body",),
    ),
    _plugin("usage.handle", usage.UsageHandleRequest, Empty, timeout_ms=5_000, on_error="skip"),
    _plugin("command_line.execute", management.CommandLineRequest, management.CommandLineResponse, timeout_ms=30_000),
    _plugin(
        "management.register",
        management.ManagementRegisterRequest,
        management.ManagementRegisterResponse,
        timeout_ms=30_000,
    ),
    _plugin(
        "management.handle",
        management.ManagementHandleRequest,
        management.ManagementHandleResponse,
        timeout_ms=30_000,
        inputs=("body",),
    ),
    _plugin(
        "route.register",
        management.ManagementRegisterRequest,
        management.ManagementRegisterResponse,
        timeout_ms=30_000,
        reserved=True,
    ),
    _plugin(
        "route.handle",
        management.ManagementHandleRequest,
        management.ManagementHandleResponse,
        timeout_ms=30_000,
        inputs=("body",),
        reserved=True,
    ),
)

_HOST_METHODS: Final = (
    _host("host.http.do", callbacks.HttpRequest, callbacks.HttpResponse),
    _host("host.http.do_stream", callbacks.HttpRequest, callbacks.HttpResponse, stream=True),
    _host("host.model.execute", callbacks.ModelCallRequest, callbacks.ModelCallResponse),
    _host("host.model.execute_stream", callbacks.ModelCallRequest, callbacks.ModelCallResponse, stream=True),
    _host("host.auth.list", callbacks.AuthListRequest, callbacks.AuthListResponse),
    _host("host.auth.get", callbacks.AuthGetRequest, callbacks.AuthGetResponse),
    _host("host.auth.get_runtime", callbacks.AuthGetRequest, callbacks.AuthGetRuntimeResponse),
    _host("host.auth.save", callbacks.AuthSaveFileRequest, callbacks.AuthSaveFileResponse),
    _host("host.kv.get", callbacks.KvGetRequest, callbacks.KvGetResponse),
    _host("host.kv.set", callbacks.KvSetRequest, callbacks.KvSetResponse),
    _host("host.kv.delete", callbacks.KvDeleteRequest, callbacks.KvDeleteResponse),
    _host("host.kv.expire", callbacks.KvExpireRequest, callbacks.KvExpireResponse),
    _host("host.kv.increment", callbacks.KvIncrementRequest, callbacks.KvIncrementResponse),
)

METHODS: Final[Mapping[str, MethodSpec]] = {spec.name: spec for spec in (*_PLUGIN_METHODS, *_HOST_METHODS)}
"""Every method by name."""

PLUGIN_METHODS: Final[Mapping[str, MethodSpec]] = {spec.name: spec for spec in _PLUGIN_METHODS}
"""What a plugin may list as capability (lifecycle methods included)."""

HOST_METHODS: Final[Mapping[str, MethodSpec]] = {spec.name: spec for spec in _HOST_METHODS}

PERMISSIONS: Final = (
    "http",
    "model",
    "kv",
    "auth.read",
    "auth.write",
    "client_credentials",
    "credential_secrets",
    "network",
)
"""The closed list. A plugin has one only when its manifest wishes for it and the operator's policy grants it."""

PERMISSION_OF_CALLBACK: Final[Mapping[str, str]] = {
    "host.http.do": "http",
    "host.http.do_stream": "http",
    "host.model.execute": "model",
    "host.model.execute_stream": "model",
    "host.auth.list": "auth.read",
    "host.auth.get": "auth.read",
    "host.auth.get_runtime": "auth.read",
    "host.auth.save": "auth.write",
    "host.kv.get": "kv",
    "host.kv.set": "kv",
    "host.kv.delete": "kv",
    "host.kv.expire": "kv",
    "host.kv.increment": "kv",
}
