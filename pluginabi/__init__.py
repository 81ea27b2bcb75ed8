"""The contract between host and plugins: versions, frames, envelope, errors, methods, payloads, session, channels.

Imports nothing but the standard library and msgspec; grpc only in `pluginabi.grpc_channel` and `pluginabi._pb`.
The normative text is `proto/README.md`.
"""
