"""The table of all checks, in the order in which they run and are reported."""

from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from msgspec import Struct

from pluginapi.conformance import call_checks, handshake_checks, ledger, lifecycle_checks
from pluginapi.conformance.bench import Bench
from pluginapi.conformance.outcome import Level

Run: TypeAlias = Callable[[Bench], Awaitable[str | None]]
"""Returns what was seen; raises Unmet or NotApplicable."""


class Check(Struct, frozen=True):
    """One row. Without `run` it is a matter of observation: it fails when the ledger noted a violation."""

    id: str
    sentence: str
    run: Run | None = None
    level: Level = "minimal"
    feature: str = ""
    """Only for plugins that offer this feature."""

    @property
    def group(self) -> str:
        """The part of the id before the dot."""
        return self.id.partition(".")[0]


_H, _C, _L = handshake_checks, call_checks, lifecycle_checks

HELLO_CHECKS: Final = (
    Check("hello.answered", "The host's hello is answered in time.", _H.hello_answered),
    Check("hello.fields", "The hello has the required members, with the right types.", _H.hello_fields),
    Check("hello.versions", "There is a common ABI version and the schema is known.", _H.hello_versions),
    Check("hello.id", "The hello names the id of plugin.toml.", _H.hello_id),
    Check("hello.capabilities", "The hello lists methods of the contract.", _H.hello_capabilities),
    Check("hello.inputs", "The hello asks for inputs and failure modes that exist.", _H.hello_inputs),
    Check("hello.features", "The hello offers features.", _H.hello_features, "full"),
)
"""Everything else needs the first three of these."""
SESSION_NEEDS: Final = frozenset(("hello.answered", "hello.fields", "hello.versions"))

SESSION_CHECKS: Final = (
    Check("register.accepted", "The configuration is taken and the answer fits.", _C.registered),
    Check("calls.answered", "Every listed method answers a plausible request in its shape.", _C.methods_answer),
    Check("calls.unknown_method", "An unknown method is answered with method_not_found.", _C.unknown_method),
    Check("calls.deadline", "A call past its deadline is still closed, once.", _C.deadline_passed),
    Check("frames.unknown_fields", "Unknown fields are ignored.", _C.unknown_fields),
    Check("frames.unknown_kind", "Frames of an unknown kind are ignored.", _C.unknown_kind),
    Check("frames.line_ends", "A line ends at LF and nowhere else.", _C.line_ends),
    Check("frames.large", "A body just below the frame limit is taken.", _C.large_body),
    Check("frames.oversize", "A frame above the limit fails at most its own call.", _C.oversize_frame, "full"),
    Check("streams.opened", "A stream is opened by a result and closed by an end.", _C.stream_opens),
    Check("streams.credit", "A stream stops when its credit is used up.", _C.credit_respected, "full", "credit"),
    Check("calls.parallel", "As many calls run at once as the hello asks for.", _C.parallel_calls, "full"),
    Check("calls.beside", "A call that waits holds up no other.", _C.call_beside_a_waiting_one, "full"),
    Check("cancel.closed", "A cancelled call gets its closing frame.", _C.cancel_closes, "full", "cancel"),
    Check("cancel.at_once", "So does a call that is cancelled before it began.", _C.cancel_at_once, "full", "cancel"),
    Check("ping.answered", "Pings are answered while calls run.", _C.ping_answered, "full", "ping"),
    Check("goaway.finishes", "What runs is finished after a goaway.", _L.goaway, "full", "goaway"),
    Check("exit.shutdown", "plugin.shutdown is answered.", _L.shutdown),
    Check("exit.stdin", "The process ends when its stdin does.", _L.stdin_end),
    Check("exit.term", "The process ends on SIGTERM.", _L.term),
    Check("exit.children", "No child process is left behind.", _L.no_children),
    Check("hello.constant", "Every process of the plugin says the same hello.", _H.hello_constant),
    Check("socket.opened", "The socket that the hello promises takes the host's connection.", _H.socket_opened),
    Check("socket.token", "A host with a wrong token is hung up on.", _H.socket_token),
    Check("describe.exits", "--describe prints the hello and exits with 0.", _H.describe_exits, "full"),
    Check("describe.same", "--describe prints the very hello of the wire.", _H.describe_same, "full"),
    Check("terminal.sentence", "Run by hand it explains itself and exits with 64.", _H.terminal_sentence, "full"),
)

OBSERVED: Final = (
    Check(ledger.STDOUT, "Nothing but frames is printed on stdout."),
    Check(ledger.VALID, "Every frame has the fields of its kind."),
    Check(ledger.SIZE, "No frame is larger than the host accepts."),
    Check(ledger.KINDS, "Only frames that a plugin may send are sent."),
    Check(ledger.KNOWN_IDS, "Frames belong to calls that were made."),
    Check(ledger.CLOSED_ONCE, "Every call has one closing frame and nothing after it."),
    Check(ledger.ORDER, "The frames of a stream come in their order."),
    Check(ledger.ERRORS, "Every error has a message, a code and a status from 400 to 599."),
    Check(ledger.CALLBACKS, "Callbacks have fresh ids, known methods and real parents."),
)
"""Judged over the whole run, whatever was being checked."""

CHECKS: Final = (*HELLO_CHECKS, *SESSION_CHECKS, *OBSERVED)
