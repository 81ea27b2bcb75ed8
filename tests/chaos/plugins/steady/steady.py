"""A healthy executor: streams numbered and dated events at the pace that the request asks for."""

import asyncio
import time

from pluginapi import ExecutorRegistration, ExecutorRequest, Plugin, RegisterRequest, RegisterResponse, serve


class Steady(Plugin):
    async def plugin_register(self, request: RegisterRequest) -> RegisterResponse:
        return RegisterResponse(executor=ExecutorRegistration(input_formats=("openai",), output_formats=("openai",)))

    async def executor_execute_stream(self, request: ExecutorRequest):
        wanted = request.body.value()["metadata"]
        interval_s = int(wanted["interval_ms"]) / 1000
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        for number in range(int(wanted["events"])):
            yield chunk({"content": f"{number} {time.monotonic_ns()}"}, None)
            due_s += interval_s
            await asyncio.sleep(due_s - loop.time())
        yield chunk({}, "stop")


def chunk(delta, finish_reason):
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "steady", "choices": [choice]}


if __name__ == "__main__":
    serve(Steady)
