"""The group `jackfield` with the options that plugins bring; configuration and manifests are read only when needed."""

import os
import sys
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from host.flags.table import FlagTable

NATIVE: Final = ("config", "version", "help", "h")
"""Options of the group itself; no plugin can have them."""
_CONFIG: Final = f"{__name__}.config"


class PluginFlagGroup(click.Group):
    """Looks at plugins only when the command line begins with an option that is not its own, and for its help."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0].startswith("-") and args[0] not in ("--version", *ctx.help_option_names):
            args = self._with_plugins(ctx, args)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        click.Command.format_options(self, ctx, formatter)
        self._format_plugins(ctx, formatter)
        self.format_commands(ctx, formatter)

    def _with_plugins(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Run what plugins' options ask for, and end; what is left to parse when they ask for nothing."""
        from host.flags.parse import BadOption, UnknownOption, config_in, parse
        from host.flags.table import FlagTable

        config = config_in(args)
        if config is not None:
            ctx.meta[_CONFIG] = config
        table = _table(ctx) or FlagTable({})
        try:
            line = parse(args, table)
        except UnknownOption as error:
            names = [f"--{name}" for name in table.flags]
            raise click.NoSuchOption(error.name, possibilities=_near(error.name, names), ctx=ctx) from None
        except BadOption as error:
            raise click.UsageError(str(error), ctx=ctx) from None
        if line.wants_help:
            return ["--help"]
        if not line.given:
            # Only `--config` was given, or nothing but `--`.
            if config is not None and line.rest:
                raise click.UsageError(f"write --config behind the command: {ctx.info_name} {line.rest[0]} …", ctx=ctx)
            return list(line.rest)
        _warn(table.warnings)
        from host.flag_command import run_flags

        sys.exit(run_flags(_config_path(ctx), table, line, program=ctx.info_name or "jackfield"))

    def _format_plugins(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        table = _table(ctx)
        if table is None:
            return
        if table.flags:
            from host.install.text import clean

            rows = [
                (
                    f"--{flag.name}" + ("" if flag.type == "bool" else f" {flag.type.upper()}"),
                    clean(f"{flag.description} [{flag.plugin_id}]".strip()),
                )
                for flag in table.flags.values()
            ]
            with formatter.section("Options of plugins"):
                formatter.write_dl(rows)
        _warn(table.warnings)


def _table(ctx: click.Context) -> "FlagTable | None":
    """The options of plugins; None where there is no configuration, and so no need to import anything."""
    config_file = _config_path(ctx)
    if not os.path.isfile(config_file):
        return None
    from host.flags.collect import collected

    return collected(config_file, native=NATIVE)


def _config_path(ctx: click.Context) -> str:
    return str(ctx.meta.get(_CONFIG) or os.environ.get("JACKFIELD_CONFIG") or "config.yaml")


def _near(name: str, names: list[str]) -> list[str]:
    import difflib

    return difflib.get_close_matches(name, names)


def _warn(warnings: tuple[str, ...]) -> None:
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
