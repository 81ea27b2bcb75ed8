"""Keeps a session on one credential, so that the provider's prompt cache stays warm.

Rendezvous hashing: when a credential disappears only its own sessions move, and no state has to be kept.
"""

import hashlib

from pluginapi import Plugin, SchedulerPickRequest, SchedulerPickResponse, serve


class StickyScheduler(Plugin):
    async def scheduler_pick(self, request: SchedulerPickRequest) -> SchedulerPickResponse | None:
        session = request.headers.get(self.config.get("header", "x-session-id"))
        if not session:
            # No session to stick to: the built-in strategy decides.
            return None
        winner = max(request.candidates, key=lambda candidate: _weight(session[0], candidate.id))
        return SchedulerPickResponse(auth_id=winner.id, reason=f"session {session[0]} stays here")


def _weight(session: str, credential_id: str) -> bytes:
    return hashlib.sha256(f"{session}\0{credential_id}".encode()).digest()


if __name__ == "__main__":
    serve(StickyScheduler)
