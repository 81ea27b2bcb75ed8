"""Opens a stream for callers that cannot take one."""

from plugin import Plugin


class Broken(Plugin):
    def executor_execute_stream(self, call):
        super().executor_execute_stream({**call, "stream": True})


if __name__ == "__main__":
    Broken().main()
