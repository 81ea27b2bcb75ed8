"""The command line of the kit; also behind `jackfield plugins test`."""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, TextIO

import msgspec

from pluginapi.conformance.bench import Options
from pluginapi.conformance.checks import CHECKS, Check
from pluginapi.conformance.formats import FORMATS
from pluginapi.conformance.outcome import Report
from pluginapi.conformance.runner import run
from pluginapi.conformance.samples import read_samples
from pluginapi.conformance.subject import CannotStart
from pluginapi.conformance.target import Target, TargetError, target_of_command, target_of_folder

EXIT_PASSED: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130

DESCRIPTION: Final = """\
Does a plugin keep the contract of the Jackfield plugin ABI? Starts it as a host does, talks to it, breaks a few
habits on purpose, and says of every rule whether it holds. No gateway is needed, and nothing leaves this machine.
"""
EPILOG: Final = """\
examples:
  %(prog)s plugins/night-shift
  %(prog)s --level minimal -- jq --unbuffered -c -f router.jq
  %(prog)s --format junit --output report.xml --config '{"url": "http://localhost:1/"}' plugins/relay

levels: `minimal` is a plugin without features (one call at a time); `full` also checks what the offered features
promise, --describe, and the start by hand. `auto` takes the level from the plugin's hello.

exit code: 0 everything passed, 1 something failed, 2 the arguments make no sense or the plugin cannot be started.
"""


class _Arguments(argparse.Namespace):
    path: str | None
    level: Any
    format: str
    output: Path | None
    protocol: Any
    transport: Any
    id: str | None
    timeout: float
    config: str | None
    samples: Path | None
    list: bool


def main(argv: Sequence[str] | None = None, *, prog: str = "python -m pluginapi.conformance") -> int:
    """Run the kit as the arguments say; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _parser(prog)
    own, command = _split(words)
    try:
        given = parser.parse_args(own, namespace=_Arguments())
        if given.list:
            sys.stdout.write("".join(f"{check.id:24}{check.level:9}{check.sentence}\n" for check in CHECKS))
            return EXIT_PASSED
        if (given.path is None) == (command is None):
            parser.error("give a plugin's folder, or a command after --")
        target, options = _target(given, command), _options(given)
        report = asyncio.run(_tested(target, options))
    except SystemExit as left:
        return EXIT_USAGE if left.code else EXIT_PASSED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except ImportError as error:
        print(f"{prog}: {error}: gRPC plugins need jackfield-pluginapi[grpc]", file=sys.stderr)
        return EXIT_USAGE
    except (TargetError, CannotStart, ValueError, OSError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return EXIT_USAGE
    text = FORMATS[given.format](report)
    if given.output is None:
        sys.stdout.write(text)
    else:
        given.output.write_text(text, encoding="utf-8")
    return EXIT_PASSED if report.ok else EXIT_FAILED


def _split(words: Sequence[str]) -> tuple[Sequence[str], Sequence[str] | None]:
    """What is ours, and the command after `--`."""
    if "--" not in words:
        return words, None
    at = words.index("--")
    return words[:at], words[at + 1 :]


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        usage="%(prog)s [options] PATH | [options] -- COMMAND...",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("path", nargs="?", metavar="PATH", help="a plugin's folder; its plugin.toml says how to start it")
    add("--level", choices=("minimal", "full", "auto"), default="auto", help="what to expect (default: auto)")
    add("--format", choices=tuple(FORMATS), default="text", help="of the report (default: text)")
    add("--output", type=Path, metavar="FILE", help="write the report there instead of to stdout")
    add("--protocol", choices=("json", "grpc"), help="instead of what plugin.toml says; json for a command")
    add("--transport", choices=("stdio", "unix"), default="stdio", help="of a command that speaks json")
    add("--id", metavar="ID", help="the id a command's hello must have")
    add("--timeout", type=float, default=10.0, metavar="S", help="seconds for the hello and each answer (default: 10)")
    add("--config", metavar="JSON", help="the plugin's configuration, on top of the defaults in plugin.toml")
    add("--samples", type=Path, metavar="FILE", help="JSON object of method to params, instead of the kit's own")
    add("--list", action="store_true", help="list the checks and leave")
    return parser


def _target(given: _Arguments, command: Sequence[str] | None) -> Target:
    if command is not None:
        return target_of_command(
            command, protocol=given.protocol or "json", transport=given.transport, plugin_id=given.id
        )
    assert given.path is not None
    return target_of_folder(Path(given.path), protocol=given.protocol)


def _options(given: _Arguments) -> Options:
    if given.timeout <= 0:
        raise ValueError("--timeout is a number of seconds above 0")
    try:
        config = None if given.config is None else msgspec.json.decode(given.config, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise ValueError(f"--config is a JSON object: {error}") from error
    samples = {} if given.samples is None else read_samples(given.samples.read_bytes())
    return Options(level=given.level, timeout_s=given.timeout, samples=samples, config=config)


async def _tested(target: Target, options: Options) -> Report:
    if not sys.stderr.isatty():
        return await run(target, options)
    progress = ProgressLine(sys.stderr)
    try:
        return await run(target, options, progress=progress.show)
    finally:
        progress.clear()


class ProgressLine:
    """The check that is running, on one line of a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def show(self, check: Check) -> None:
        self._stream.write(f"\r\x1b[K{check.id}: {check.sentence}"[:120])
        self._stream.flush()

    def clear(self) -> None:
        self._stream.write("\r\x1b[K")
        self._stream.flush()
