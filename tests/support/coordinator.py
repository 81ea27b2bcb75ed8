"""A coordinator of remote credentials as an operator would write it: lists on a real Redis, and nothing else."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import Redis

Decide = Callable[[dict[str, Any]], Any]


@dataclass
class Coordinator:
    """Answers every question with what `decide` says: a JSON-like value, or `SILENT` for none at all."""

    decide: Decide
    questions: list[dict[str, Any]] = field(default_factory=list)


SILENT = object()


@contextlib.asynccontextmanager
async def coordinator(url: str, decide: Decide) -> AsyncIterator[Coordinator]:
    """One that works until the end of the block."""
    running = Coordinator(decide)
    client: Redis = Redis.from_url(url, protocol=2)
    task = asyncio.create_task(_work(client, running), name="coordinator")
    try:
        yield running
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await client.aclose()


async def _work(client: Redis, running: Coordinator) -> None:
    while True:
        popped: Any = await client.blpop(["jackfield:credential-questions"], timeout=0)
        question = json.loads(popped[1])
        running.questions.append(question)
        answer = running.decide(question)
        if answer is not SILENT:
            await client.rpush(question["reply_to"], answer if isinstance(answer, bytes) else json.dumps(answer))
            await client.expire(question["reply_to"], 10)
