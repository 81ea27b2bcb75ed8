"""Checks of the hello, of `--describe` and of a start by hand."""

import asyncio
import os
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from pluginabi.frames import Hello
from pluginabi.methods import INPUT_WORDS, PLUGIN_METHODS
from pluginabi.version import ABI_VERSIONS, FEATURES, SCHEMA_VERSION, Refusal, negotiate
from pluginapi.conformance.bench import Bench
from pluginapi.conformance.conversation import LAST_WORDS_S, HelloSeen
from pluginapi.conformance.outcome import NotApplicable, Unmet, shown
from pluginapi.conformance.subject import StderrTail, Subject, spawn

EXIT_USAGE: Final = 64
OVER_STDIO: Final = "the plugin is spoken to over stdin and stdout"
_REQUIRED: Final[Mapping[str, type]] = {"abi": list, "schema": int, "plugin": str, "capabilities": list}
_SPOKEN: Final[Mapping[type, str]] = {list: "a list", int: "an integer", str: "a string"}
_PTY_READ_BYTES: Final = 65536


async def hello_answered(bench: Bench) -> str:
    """A hello in time."""
    if bench.hello is None:
        assert bench.last is not None
        raise Unmet(
            f"one hello line on stdout within {bench.options.timeout_s:g} s", f"none; {await bench.last.state()}"
        )
    return f"after {bench.hello.after_s * 1000:.0f} ms"


async def hello_fields(bench: Bench) -> None:
    """The members that are required, of the right types."""
    hello = _seen(bench)
    plain = hello.plain
    if plain.get("kind") != "hello":
        raise Unmet("a hello as the first frame", shown(hello.line))
    for name, kind in _REQUIRED.items():
        if not isinstance(plain.get(name), kind) or isinstance(plain.get(name), bool):
            raise Unmet(f"the member `{name}`, {_SPOKEN[kind]}", shown(plain.get(name, "no such member")))
    if hello.frame is None:
        raise Unmet("members of the right types", hello.problem)


async def hello_id(bench: Bench) -> str:
    """The id the host knows the plugin by."""
    expected = bench.target.plugin_id
    if expected is None:
        raise NotApplicable("a command has no plugin.toml; name the id with --id")
    got = _frame(bench).plugin
    if got != expected:
        raise Unmet(expected, shown(got))
    return expected


async def hello_versions(bench: Bench) -> str:
    """A common version of frames, and a schema this kit has."""
    hello = _frame(bench)
    verdict = negotiate(
        plugin=hello.plugin or "", plugin_abi=hello.abi, plugin_schema=hello.schema, plugin_features=hello.features
    )
    if isinstance(verdict, Refusal):
        raise Unmet(f"an ABI among {list(ABI_VERSIONS)} and a schema up to {SCHEMA_VERSION}", verdict.message)
    return f"ABI {verdict.abi}, schema {hello.schema}"


async def hello_capabilities(bench: Bench) -> str:
    """Methods that exist."""
    listed = _frame(bench).capabilities
    if not listed:
        raise Unmet("at least one method in `capabilities`", "none")
    unknown = [name for name in listed if name not in PLUGIN_METHODS]
    if unknown:
        raise Unmet("methods of this contract", ", ".join(unknown))
    return ", ".join(listed)


async def hello_inputs(bench: Bench) -> None:
    """Words that a host knows: it refuses others. The same for failure modes."""
    hello = _frame(bench)
    if not hello.inputs and not hello.on_error:
        raise NotApplicable("the hello has neither `inputs` nor `on_error`: the defaults hold")
    for method in (*hello.inputs, *hello.on_error):
        if method not in PLUGIN_METHODS:
            raise Unmet("methods of this contract", method)
    for method, mode in hello.on_error.items():
        if mode not in ("fail", "skip"):
            raise Unmet("`fail` or `skip`", f"{mode!r} for {method}")
    for method, words in hello.inputs.items():
        for word in words:
            if word not in INPUT_WORDS and not word.startswith("body:/"):
                raise Unmet(f"words among {', '.join(INPUT_WORDS)} and body:/pointer", f"{word!r} for {method}")


async def hello_features(bench: Bench) -> str:
    """The optional behaviours that are offered."""
    offered = _frame(bench).features
    if not set(offered) & set(FEATURES):
        raise Unmet(f"at least one feature of {', '.join(FEATURES)}", "none: this is the level minimal")
    return ", ".join(offered)


async def socket_opened(bench: Bench) -> None:
    """The session of every other check went over it; without it there was none."""
    if not bench.target.over_socket:
        raise NotApplicable(OVER_STDIO)


async def socket_token(bench: Bench) -> None:
    """Only the host that knows the token is answered, and a stranger does not disturb it."""
    if not bench.target.over_socket:
        raise NotApplicable(OVER_STDIO)
    talk = await bench.fresh(wrong_token_first=True)
    await talk.kill()


async def describe_exits(bench: Bench) -> None:
    """`--describe` prints something and ends well."""
    code, out = await _described(bench)
    if code != 0 or not out.strip():
        raise Unmet("exit code 0 and the hello on stdout", f"exit code {code} and {shown(out) or 'nothing'}")


async def describe_same(bench: Bench) -> None:
    """What `--describe` prints is the hello."""
    _, out = await _described(bench)
    if _json_object(out) != _seen(bench).plain:
        raise Unmet(shown(_seen(bench).line), shown(out) or "nothing")


async def terminal_sentence(bench: Bench) -> str:
    """Started by hand it explains itself instead of waiting for a host in silence."""
    code, text = await _by_hand(bench)
    if code is None:
        raise Unmet(f"a sentence and exit code {EXIT_USAGE}", f"it runs on after {bench.options.exit_s:g} s")
    if code != EXIT_USAGE or not text.strip():
        raise Unmet(
            f"a sentence and exit code {EXIT_USAGE}", f"exit code {code} and {shown(text.strip()) or 'no word'}"
        )
    return shown(" ".join(text.split()))


async def hello_constant(bench: Bench) -> None:
    """The same hello from every process."""
    talk = await bench.fresh()
    again = talk.hello
    await talk.kill()
    assert again is not None
    if again.plain != _seen(bench).plain:
        raise Unmet(shown(_seen(bench).line), shown(again.line))


def _seen(bench: Bench) -> HelloSeen:
    if bench.hello is None:
        raise NotApplicable("there was no hello")
    return bench.hello


def _frame(bench: Bench) -> Hello:
    if bench.frame is None:
        raise NotApplicable("there was no usable hello")
    return bench.frame


def _json_object(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


async def _described(bench: Bench) -> tuple[int | None, bytes]:
    """Run the command with --describe, once; exit code and stdout. Raises Unmet when it does not end."""
    if bench.described is not None:
        return bench.described
    subject = await Subject.start(
        (*bench.target.command, "--describe"), environment=bench.target.environment, work_dir=bench.work_dir
    )
    subject.stdin.close()
    transport, output = await asyncio.get_running_loop().connect_read_pipe(Collected, subject.stdout)
    try:
        if not await subject.exited_within(bench.options.timeout_s):
            raise Unmet("an end", f"it runs on after {bench.options.timeout_s:g} s")
        await asyncio.wait([output.ended], timeout=LAST_WORDS_S)
    finally:
        await subject.kill()
        transport.close()
    bench.described = subject.returncode, bytes(output.data)
    return bench.described


class Collected(asyncio.Protocol):
    """Everything that comes out of a pipe."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.data += data

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


async def _by_hand(bench: Bench) -> tuple[int | None, str]:
    """Run the command with a terminal in place of all three; exit code (None: it did not end) and what it said."""
    # Only where there are terminals.
    import pty

    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    said: list[bytes] = []
    loop = asyncio.get_running_loop()

    def read() -> None:
        try:
            said.append(os.read(ours, _PTY_READ_BYTES))
        except OSError:  # nothing more
            loop.remove_reader(ours)

    try:
        loop.add_reader(ours, read)
        popen = spawn(
            bench.target.command,
            environment=bench.target.environment,
            work_dir=bench.work_dir,
            stdin=theirs,
            out=theirs,
        )
        subject = Subject(popen, StderrTail())
        ended = await subject.exited_within(bench.options.exit_s)
        code = subject.returncode if ended else None
        await subject.kill()
        read()
    finally:
        loop.remove_reader(ours)
        os.close(ours)
        os.close(theirs)
    return code, b"".join(said).decode(errors="replace")
