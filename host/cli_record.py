"""`jackfield record` and `jackfield replay`: parsing of arguments only."""

import sys
from pathlib import Path

import click

from host.cli_options import CONFIG_OPTION


@click.command()
@click.option("--plugin", "plugin_id", required=True, metavar="ID", help="The plugin whose calls are recorded.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="The file [default: ID-TIME.jsonl].")
@click.option("--for", "duration", default="60s", show_default=True, help="How long, like 90s or 10m.")
@click.option(
    "--max-mb", default=16, show_default=True, type=click.IntRange(1, 4096), help="How large the file may be."
)
@click.option("--redact-bodies", is_flag=True, help="Keep the shape of bodies, not their texts.")
@CONFIG_OPTION
def record(plugin_id: str, out: Path | None, duration: str, max_mb: int, redact_bodies: bool, config_path: str) -> None:
    """Write the calls of a plugin of the running proxy into a file, until the time is up or Ctrl-C.

    Secrets are never written: see docs/record-replay.md.
    """
    from host.cli_recordings import record_plugin

    sys.exit(
        record_plugin(
            Path(config_path), plugin_id, out=out, duration=duration, max_mb=max_mb, redact_bodies=redact_bodies
        )
    )


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--plugin",
    "directory",
    required=True,
    metavar="PATH",
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder of the plugin that is tried.",
)
@click.option("--plugin-config", metavar="JSON", help="Its configuration, instead of the recorded one.")
@click.option("--ignore", multiple=True, metavar="POINTER", help="A place that may differ, like /answer/reason.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def replay(file: Path, directory: Path, plugin_config: str | None, ignore: tuple[str, ...], as_json: bool) -> None:
    """Make the calls of a recording again, with the plugin in a folder, and show what it decides otherwise.

    The exit code is 0 when nothing differs, 1 when something does, 2 when it cannot be tried.
    """
    from host.cli_recordings import replay_file

    sys.exit(replay_file(file, directory, plugin_config=plugin_config, ignore=ignore, as_json=as_json))
