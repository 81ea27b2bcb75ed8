"""The certificate of the listeners."""

import os
import ssl

from host.config.model import Config, config_path


class TlsProblem(Exception):
    """Why HTTPS cannot be served as it is configured; the message names the key or the file."""


def tls_context(config: Config) -> ssl.SSLContext | None:
    """What `tls` says, None when it is off. Raises TlsProblem."""
    tls = config.tls
    if not tls.enable:
        return None
    files = {name: config_path(config, getattr(tls, name)) for name in ("cert", "key") if getattr(tls, name)}
    for name in ("cert", "key"):
        if name not in files:
            raise TlsProblem(f"`tls.enable` is true and `tls.{name}` is missing: the path of a PEM file")
        if not os.path.isfile(files[name]):
            raise TlsProblem(f"`tls.{name}`: {files[name]} is no file")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(files["cert"], files["key"])
    except OSError as error:
        raise TlsProblem(f"`tls.cert` and `tls.key` cannot be used: {error}") from None
    return context
