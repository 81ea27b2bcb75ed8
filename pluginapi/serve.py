"""`serve(MyPlugin)`: what a plugin's `__main__` calls."""

import argparse
import faulthandler
import os
import sys
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

from pluginabi.codec import encode_frame
from pluginapi.claim_stdio import WireEnds, claim_stdio
from pluginapi.hello import hello_of
from pluginapi.identity import Identity, IdentityError, identity_of
from pluginapi.lifeline import Lifeline
from pluginapi.plugin import Plugin

EXIT_OK: Final = 0
EXIT_USAGE: Final = 64
EXIT_CONFIG: Final = 78
_UNIX_PREFIX: Final = "unix:"


class Options(argparse.Namespace):
    """The command line of a plugin."""

    describe: bool = False
    listen: str | None = None


def serve(plugin: type[Plugin], *, argv: Sequence[str] | None = None) -> NoReturn:
    """Serve this plugin to the host that started the process, and leave the process when it is over.

    Takes `--describe` (print hello and leave) and `--listen unix:/path` (wait for a host there, for a debugger). By
    hand on a terminal it says what this program is and exits with 64. `print` in a plugin goes to stderr, never to
    the wire.
    """
    options = parse_arguments(sys.argv[1:] if argv is None else argv)
    sys.exit(run(lambda: plugin, options, name=plugin.id or plugin.__name__, command=_command()))


def run(load: Callable[[], type[Plugin]], options: Options, *, name: str, command: str) -> int:
    """Do what `options` say and return the exit code. `load` brings in the author's code: after the wire is claimed."""
    wire: WireEnds | None = None
    if options.listen is None:
        if not options.describe and _is_terminal():
            print(
                f"{name} is a plugin of the Jackfield gateway, which starts it and talks to it over stdin and stdout: "
                f"put its folder into plugins/ and run `jackfield plugins enable {name}`, "
                f"or look at it with `{command} --describe`.",
                file=sys.stderr,
            )
            return EXIT_USAGE
        wire = claim_stdio()
    try:
        plugin = load()
        identity = identity_of(plugin)
        if options.describe:
            assert wire is not None
            return _describe(plugin, identity, wire)
        return _serve(plugin, identity, wire, options.listen)
    except IdentityError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return EXIT_CONFIG


def parse_arguments(argv: Sequence[str], *, parser: argparse.ArgumentParser | None = None) -> Options:
    """The command line. Leaves the process with 64 when it makes no sense."""
    parser = parser or argparse.ArgumentParser()
    parser.add_argument("--describe", action="store_true", help="print the plugin's hello as JSON and leave")
    parser.add_argument("--listen", metavar="unix:/path", help="wait for a host there instead of on stdin")
    try:
        options = parser.parse_args(argv, namespace=Options())
    except SystemExit as left:
        raise SystemExit(EXIT_USAGE if left.code else EXIT_OK) from None
    if options.listen is not None and not options.listen.removeprefix(_UNIX_PREFIX):
        raise SystemExit(EXIT_USAGE)
    return options


def _describe(plugin: type[Plugin], identity: Identity, wire: WireEnds) -> int:
    os.write(wire.write_fd, encode_frame(hello_of(plugin, identity)) + b"\n")
    return EXIT_OK


def _serve(plugin: type[Plugin], identity: Identity, wire: WireEnds | None, listen: str | None) -> int:
    # Not needed for the other ways to be started.
    from pluginapi.process import CannotServe, run_process

    faulthandler.enable(sys.stderr)
    for method in identity.fails_open:
        text = f'write "{method}" = "fail" under [on_error] in plugin.toml, or it is skipped while this process is down'
        print(f"{identity.plugin_id}: {text}", file=sys.stderr)
    lifeline = Lifeline()
    if wire is not None:
        lifeline.start()
    path = None if listen is None else listen.removeprefix(_UNIX_PREFIX)
    try:
        return run_process(plugin, identity, wire=wire, listen_path=path, lifeline=lifeline)
    except CannotServe as error:
        print(f"{identity.plugin_id}: {error}", file=sys.stderr)
        return EXIT_USAGE


def _is_terminal() -> bool:
    try:
        return os.isatty(0)
    except OSError:
        return False


def _command() -> str:
    return f"{os.path.basename(sys.executable)} {os.path.basename(sys.argv[0])}"
