from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Frame(_message.Message):
    __slots__ = ("hello", "call", "result", "item", "end", "cancel", "credit", "ping", "pong", "log", "goaway")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    CALL_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ITEM_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    PING_FIELD_NUMBER: _ClassVar[int]
    PONG_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    GOAWAY_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    call: Call
    result: Result
    item: Item
    end: End
    cancel: Cancel
    credit: Credit
    ping: Ping
    pong: Pong
    log: Log
    goaway: Goaway
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., call: _Optional[_Union[Call, _Mapping]] = ..., result: _Optional[_Union[Result, _Mapping]] = ..., item: _Optional[_Union[Item, _Mapping]] = ..., end: _Optional[_Union[End, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ..., credit: _Optional[_Union[Credit, _Mapping]] = ..., ping: _Optional[_Union[Ping, _Mapping]] = ..., pong: _Optional[_Union[Pong, _Mapping]] = ..., log: _Optional[_Union[Log, _Mapping]] = ..., goaway: _Optional[_Union[Goaway, _Mapping]] = ...) -> None: ...

class Blob(_message.Message):
    __slots__ = ("form", "data")
    class Form(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        FORM_UNSPECIFIED: _ClassVar[Blob.Form]
        JSON: _ClassVar[Blob.Form]
        TEXT: _ClassVar[Blob.Form]
        BINARY: _ClassVar[Blob.Form]
    FORM_UNSPECIFIED: Blob.Form
    JSON: Blob.Form
    TEXT: Blob.Form
    BINARY: Blob.Form
    FORM_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    form: Blob.Form
    data: bytes
    def __init__(self, form: _Optional[_Union[Blob.Form, str]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Strings(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, values: _Optional[_Iterable[str]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("abi", "schema", "plugin", "version", "features", "capabilities", "inputs", "limits", "host", "endpoint", "token", "on_error")
    class InputsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Strings
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Strings, _Mapping]] = ...) -> None: ...
    class OnErrorEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ABI_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_FIELD_NUMBER: _ClassVar[int]
    PLUGIN_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    ON_ERROR_FIELD_NUMBER: _ClassVar[int]
    abi: _containers.RepeatedScalarFieldContainer[int]
    schema: int
    plugin: str
    version: str
    features: _containers.RepeatedScalarFieldContainer[str]
    capabilities: _containers.RepeatedScalarFieldContainer[str]
    inputs: _containers.MessageMap[str, Strings]
    limits: Limits
    host: HostInfo
    endpoint: str
    token: str
    on_error: _containers.ScalarMap[str, str]
    def __init__(self, abi: _Optional[_Iterable[int]] = ..., schema: _Optional[int] = ..., plugin: _Optional[str] = ..., version: _Optional[str] = ..., features: _Optional[_Iterable[str]] = ..., capabilities: _Optional[_Iterable[str]] = ..., inputs: _Optional[_Mapping[str, Strings]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., host: _Optional[_Union[HostInfo, _Mapping]] = ..., endpoint: _Optional[str] = ..., token: _Optional[str] = ..., on_error: _Optional[_Mapping[str, str]] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_frame_bytes", "max_inflight", "max_streams")
    MAX_FRAME_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_INFLIGHT_FIELD_NUMBER: _ClassVar[int]
    MAX_STREAMS_FIELD_NUMBER: _ClassVar[int]
    max_frame_bytes: int
    max_inflight: int
    max_streams: int
    def __init__(self, max_frame_bytes: _Optional[int] = ..., max_inflight: _Optional[int] = ..., max_streams: _Optional[int] = ...) -> None: ...

class HostInfo(_message.Message):
    __slots__ = ("name", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class Call(_message.Message):
    __slots__ = ("id", "method", "params", "blobs", "stream", "timeout_ms", "parent")
    ID_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    BLOBS_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    id: int
    method: str
    params: bytes
    blobs: _containers.RepeatedCompositeFieldContainer[Blob]
    stream: bool
    timeout_ms: int
    parent: int
    def __init__(self, id: _Optional[int] = ..., method: _Optional[str] = ..., params: _Optional[bytes] = ..., blobs: _Optional[_Iterable[_Union[Blob, _Mapping]]] = ..., stream: _Optional[bool] = ..., timeout_ms: _Optional[int] = ..., parent: _Optional[int] = ...) -> None: ...

class Result(_message.Message):
    __slots__ = ("id", "ok", "result", "blobs", "error", "stream", "usage")
    ID_FIELD_NUMBER: _ClassVar[int]
    OK_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    BLOBS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    id: int
    ok: bool
    result: bytes
    blobs: _containers.RepeatedCompositeFieldContainer[Blob]
    error: Error
    stream: bool
    usage: Usage
    def __init__(self, id: _Optional[int] = ..., ok: _Optional[bool] = ..., result: _Optional[bytes] = ..., blobs: _Optional[_Iterable[_Union[Blob, _Mapping]]] = ..., error: _Optional[_Union[Error, _Mapping]] = ..., stream: _Optional[bool] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ...) -> None: ...

class Item(_message.Message):
    __slots__ = ("id", "event", "body", "raw")
    ID_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    id: int
    event: str
    body: Blob
    raw: Blob
    def __init__(self, id: _Optional[int] = ..., event: _Optional[str] = ..., body: _Optional[_Union[Blob, _Mapping]] = ..., raw: _Optional[_Union[Blob, _Mapping]] = ...) -> None: ...

class End(_message.Message):
    __slots__ = ("id", "ok", "error", "usage")
    ID_FIELD_NUMBER: _ClassVar[int]
    OK_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    id: int
    ok: bool
    error: Error
    usage: Usage
    def __init__(self, id: _Optional[int] = ..., ok: _Optional[bool] = ..., error: _Optional[_Union[Error, _Mapping]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("id", "reason")
    ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    id: int
    reason: str
    def __init__(self, id: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class Credit(_message.Message):
    __slots__ = ("id", "items", "bytes")
    ID_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    id: int
    items: int
    bytes: int
    def __init__(self, id: _Optional[int] = ..., items: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...

class Ping(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: int
    def __init__(self, id: _Optional[int] = ...) -> None: ...

class Pong(_message.Message):
    __slots__ = ("id", "loop_lag_ms")
    ID_FIELD_NUMBER: _ClassVar[int]
    LOOP_LAG_MS_FIELD_NUMBER: _ClassVar[int]
    id: int
    loop_lag_ms: float
    def __init__(self, id: _Optional[int] = ..., loop_lag_ms: _Optional[float] = ...) -> None: ...

class Log(_message.Message):
    __slots__ = ("level", "event", "fields", "parent")
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    level: str
    event: str
    fields: bytes
    parent: int
    def __init__(self, level: _Optional[str] = ..., event: _Optional[str] = ..., fields: _Optional[bytes] = ..., parent: _Optional[int] = ...) -> None: ...

class Goaway(_message.Message):
    __slots__ = ("reason", "drain_ms")
    REASON_FIELD_NUMBER: _ClassVar[int]
    DRAIN_MS_FIELD_NUMBER: _ClassVar[int]
    reason: str
    drain_ms: int
    def __init__(self, reason: _Optional[str] = ..., drain_ms: _Optional[int] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("message", "code", "http_status", "retryable", "retry_after_ms", "scope", "headers", "body", "body_protocol", "origin", "details")
    class HeadersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Strings
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Strings, _Mapping]] = ...) -> None: ...
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    HTTP_STATUS_FIELD_NUMBER: _ClassVar[int]
    RETRYABLE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    BODY_PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    message: str
    code: str
    http_status: int
    retryable: bool
    retry_after_ms: int
    scope: str
    headers: _containers.MessageMap[str, Strings]
    body: Blob
    body_protocol: str
    origin: str
    details: bytes
    def __init__(self, message: _Optional[str] = ..., code: _Optional[str] = ..., http_status: _Optional[int] = ..., retryable: _Optional[bool] = ..., retry_after_ms: _Optional[int] = ..., scope: _Optional[str] = ..., headers: _Optional[_Mapping[str, Strings]] = ..., body: _Optional[_Union[Blob, _Mapping]] = ..., body_protocol: _Optional[str] = ..., origin: _Optional[str] = ..., details: _Optional[bytes] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("input_tokens", "output_tokens", "reasoning_tokens", "cached_tokens", "cache_read_tokens", "cache_creation_tokens", "total_tokens")
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REASONING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHE_READ_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHE_CREATION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cached_tokens: int
    cache_read_tokens: int
    cache_creation_tokens: int
    total_tokens: int
    def __init__(self, input_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., reasoning_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., cache_read_tokens: _Optional[int] = ..., cache_creation_tokens: _Optional[int] = ..., total_tokens: _Optional[int] = ...) -> None: ...
