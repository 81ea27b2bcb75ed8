"""The contract between host and plugins: versions, frames, envelope, errors, methods, payloads, session, channels.

Imports nothing but the standard library and msgspec; grpc only in `pluginabi.grpc_channel` and `pluginabi._pb`, which
are not imported from here. The normative text is `proto/README.md`. Payload structs are in `pluginabi.payloads`.
"""

from pluginabi.body import EMPTY_BODY, Body, StreamItem, is_json
from pluginabi.call import CallReply, IncomingCall, IncomingStream, OutgoingCall, OutgoingStream
from pluginabi.channel import ChannelClosed, ChannelFull, FrameChannel, FrameReceiver, FrameTooLarge
from pluginabi.errors import (
    HOST_CODES,
    AbiError,
    ErrorBody,
    PluginError,
    PluginTimeout,
    PluginTransportError,
    host_error,
    normalised,
)
from pluginabi.frames import Frame, Goaway, Hello, HostInfo, Log, Pong, Usage
from pluginabi.handshake import (
    Greeting,
    HandshakeError,
    HandshakeRefused,
    host_handshake,
    plugin_handshake,
    plugin_hello,
)
from pluginabi.limits import Limits
from pluginabi.memory_channel import memory_pair
from pluginabi.methods import HOST_METHODS, METHODS, PLUGIN_METHODS, MethodSpec
from pluginabi.session import ProtocolError, Session
from pluginabi.stream_channel import StreamChannel, connect_unix, listen_unix, open_pipes, open_socket
from pluginabi.version import ABI_VERSIONS, FEATURES, SCHEMA_VERSION

__all__ = [
    "ABI_VERSIONS",
    "EMPTY_BODY",
    "FEATURES",
    "HOST_CODES",
    "HOST_METHODS",
    "METHODS",
    "PLUGIN_METHODS",
    "SCHEMA_VERSION",
    "AbiError",
    "Body",
    "CallReply",
    "ChannelClosed",
    "ChannelFull",
    "ErrorBody",
    "Frame",
    "FrameChannel",
    "FrameReceiver",
    "FrameTooLarge",
    "Goaway",
    "Greeting",
    "HandshakeError",
    "HandshakeRefused",
    "Hello",
    "HostInfo",
    "IncomingCall",
    "IncomingStream",
    "Limits",
    "Log",
    "MethodSpec",
    "OutgoingCall",
    "OutgoingStream",
    "PluginError",
    "PluginTimeout",
    "PluginTransportError",
    "Pong",
    "ProtocolError",
    "Session",
    "StreamChannel",
    "StreamItem",
    "Usage",
    "connect_unix",
    "host_error",
    "host_handshake",
    "is_json",
    "listen_unix",
    "memory_pair",
    "normalised",
    "open_pipes",
    "open_socket",
    "plugin_handshake",
    "plugin_hello",
]
