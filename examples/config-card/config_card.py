"""Adds `jackfield --config-card`: prints what the gateway tells its credential and model plugins about itself."""

import msgspec

from pluginapi import CommandLineRequest, CommandLineResponse, Plugin, serve

FLAG, FORMAT = "config-card", "config-card-format"


class ConfigCard(Plugin):
    async def command_line_execute(self, request: CommandLineRequest) -> CommandLineResponse | None:
        if FLAG not in request.triggered_flags:
            return CommandLineResponse(stderr=f"--{FORMAT} says how; give --{FLAG} as well\n", exit_code=2)
        # Defaults included; `triggered_flags` has what was typed, and of this plugin only.
        kind = request.flags[FORMAT].value
        if kind not in ("text", "json"):
            return CommandLineResponse(stderr=f"--{FORMAT} is text or json, not {kind}\n", exit_code=2)
        host = msgspec.structs.asdict(request.host)
        card = {"config": request.config_path, **{name: value for name, value in host.items() if value}}
        if kind == "json":
            return CommandLineResponse(stdout=msgspec.json.encode(card).decode() + "\n")
        return CommandLineResponse(stdout="".join(f"{name}: {value}\n" for name, value in card.items()))


if __name__ == "__main__":
    serve(ConfigCard)
