"""The command `jackfield`: parsing of arguments only; each command imports what it needs, so `--help` is instant."""

import sys
from pathlib import Path

import click

from host import VERSION
from host.cli_authors import dev, new
from host.cli_flags import PluginFlagGroup
from host.cli_install import COMMANDS
from host.cli_login import login
from host.cli_management import management, plugins_config, plugins_logs, plugins_reset
from host.cli_options import CONFIG_OPTION
from host.cli_record import record, replay
from host.cli_shadow import shadow
from host.cli_simulate import simulate


@click.group(cls=PluginFlagGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(VERSION, "--version", prog_name="jackfield")
@click.option("--config", expose_value=False, help="The configuration whose plugins add options.")
def main() -> None:
    """The LLM gateway in which every decision is a plugin.

    Start with `jackfield init DIR`, then `jackfield serve --config DIR/config.yaml`.
    """


@main.command()
@CONFIG_OPTION
@click.option("--watch", is_flag=True, help="Reload plugins when their files change (for development).")
@click.option("--demo", is_flag=True, help="Serve the models `echo` and `demo-*` without any key or network.")
@click.option(
    "--worker", default="", hidden=True, help="Set by the parent of several workers: NUMBER/COUNT:PORT[:again]."
)
@click.option("--worker-state", default="", hidden=True, help="Set by the parent: the state server it started.")
def serve(config_path: str, watch: bool, demo: bool, worker: str, worker_state: str) -> None:
    """Run the proxy until SIGTERM or Ctrl-C; SIGHUP reloads configuration and plugins."""
    from host import serve as server

    sys.exit(server.run(Path(config_path), watch=watch, demo=demo, worker=worker, worker_state=worker_state))


@main.command()
@CONFIG_OPTION
def check(config_path: str) -> None:
    """Check the configuration and the plugins it names, without running any of them."""
    from host.cli_plugins import check_config

    sys.exit(check_config(Path(config_path)))


@main.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
def init(directory: Path) -> None:
    """Write a commented config.yaml with a generated client key, plugins/ and auths/ into DIRECTORY."""
    from host.init import init_directory

    sys.exit(init_directory(directory))


@main.command()
def version() -> None:
    """Print the versions of the program, the plugin ABI and the payload schema."""
    from pluginabi.version import ABI_VERSIONS, FEATURES, SCHEMA_VERSION

    click.echo(f"jackfield {VERSION}")
    click.echo(f"plugin ABI {', '.join(str(number) for number in ABI_VERSIONS)}, schema {SCHEMA_VERSION}")
    click.echo(f"features {', '.join(FEATURES)}")


@main.command()
@click.argument("request_id")
@CONFIG_OPTION
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a tree.")
def explain(request_id: str, config_path: str, as_json: bool) -> None:
    """Why REQUEST_ID (the X-Request-Id of an answer) went where it went, from the running proxy's memory."""
    from host.cli_plugins import explain_request

    sys.exit(explain_request(Path(config_path), request_id, as_json=as_json))


@main.group()
def plugins() -> None:
    """List, describe, enable, disable, configure and reload plugins.

    With a proxy running on the same configuration file they act on it; otherwise on the file alone.
    """


@plugins.command("list")
@CONFIG_OPTION
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def plugins_list(config_path: str, as_json: bool) -> None:
    """Every plugin that was found, with its state and the reason."""
    from host.cli_plugins import list_plugins

    sys.exit(list_plugins(Path(config_path), as_json=as_json))


@plugins.command("describe")
@click.argument("plugin_id")
@CONFIG_OPTION
def plugins_describe(plugin_id: str, config_path: str) -> None:
    """What PLUGIN_ID is and wants. Of a plugin that is not running only its plugin.toml is read."""
    from host.cli_plugins import describe_plugin

    sys.exit(describe_plugin(Path(config_path), plugin_id))


@plugins.command("enable")
@click.argument("plugin_id")
@CONFIG_OPTION
def plugins_enable(plugin_id: str, config_path: str) -> None:
    """Enable PLUGIN_ID in the configuration file; a running proxy picks it up."""
    from host.cli_plugins import set_enabled

    sys.exit(set_enabled(Path(config_path), plugin_id, enabled=True))


@plugins.command("disable")
@click.argument("plugin_id")
@CONFIG_OPTION
def plugins_disable(plugin_id: str, config_path: str) -> None:
    """Disable PLUGIN_ID in the configuration file; a running proxy drains it."""
    from host.cli_plugins import set_enabled

    sys.exit(set_enabled(Path(config_path), plugin_id, enabled=False))


@plugins.command("reload")
@click.argument("plugin_id")
@CONFIG_OPTION
def plugins_reload(plugin_id: str, config_path: str) -> None:
    """Load PLUGIN_ID's files anew in the running proxy: new beside old, swap, drain. Also resets a failed plugin."""
    from host.cli_plugins import reload_plugin

    sys.exit(reload_plugin(Path(config_path), plugin_id))


for _command in COMMANDS:
    plugins.add_command(_command)


class _PassedOn(click.Command):
    """A command whose arguments, `--` and `--help` included, are another program's."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.params["arguments"] = tuple(args)
        return []


@plugins.command("test", cls=_PassedOn, add_help_option=False)
def plugins_test(arguments: tuple[str, ...]) -> None:
    """Check that the plugin in a folder (or a command after --) keeps the contract; needs no configuration."""
    from pluginapi.conformance.command import main as conformance

    sys.exit(conformance(arguments, prog="jackfield plugins test"))


main.add_command(login)
main.add_command(management)
main.add_command(record)
main.add_command(replay)
main.add_command(simulate)
plugins.add_command(new)
plugins.add_command(dev)
plugins.add_command(plugins_config)
plugins.add_command(plugins_reset)
plugins.add_command(plugins_logs)
plugins.add_command(shadow)
