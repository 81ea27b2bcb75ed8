"""Which state a configuration asks for."""

import ssl
from pathlib import Path

from host.config.model import Config, config_path
from host.config.values import seconds
from host.state.local import LocalState
from host.state.store import SharedState


class StateSetupError(Exception):
    """The configured state cannot be used; the message says what to do."""


def open_state(config: Config, *, server_url: str = "") -> SharedState:
    """The state, not yet started. `server_url` is of a server started for us. Raises StateSetupError."""
    url = config.state.url or server_url
    if not url:
        path = Path(config_path(config, config.state.file)) if config.state.file else None
        return LocalState(path)
    ca_file = _ca_file(config) if url == config.state.url else ""
    try:
        # Most proxies run alone: the client library is an extra.
        from host.state.redis import RedisState
    except ModuleNotFoundError as error:
        if error.name != "redis":
            raise
        raise StateSetupError("`state.url` needs the extra: pip install 'jackfield[redis]'") from None
    try:
        timeout_s = seconds(config.state.timeout)
        return RedisState(url, prefix=config.state.prefix, timeout_s=timeout_s, ca_file=ca_file)
    except ValueError:
        # What the library says of it may be a part of the password.
        raise StateSetupError(
            "`state.url` cannot be used: write redis://[user:password@]host:port/db, rediss://… or unix://path, "
            "and special characters of user and password percent-encoded"
        ) from None


def _ca_file(config: Config) -> str:
    """The path of the certificates to trust; empty for those of the system. Raises StateSetupError."""
    if not config.state.ca_file:
        return ""
    path = str(config_path(config, config.state.ca_file))
    if not config.state.url.startswith("rediss:"):
        raise StateSetupError("`state.ca-file` is for TLS: write rediss:// in `state.url`, or leave it out")
    try:
        ssl.create_default_context(cafile=path)
    except OSError as error:  # also what is no certificate
        raise StateSetupError(f"`state.ca-file` {path} cannot be used: {error}") from None
    return path
