"""`jackfield simulate`: parsing of arguments only."""

import sys

import click


@click.command()
@click.argument("scenario", required=False)
@click.option("--policy", "strategies", multiple=True, metavar="NAME", help="A built-in strategy; may be repeated.")
@click.option(
    "--plugin",
    "plugins",
    multiple=True,
    metavar="PATH",
    help="A scheduler plugin: its folder, or FILE.py:Class; may be repeated.",
)
@click.option("--plugin-config", metavar="JSON", help="The configuration of the plugins.")
@click.option("--compare", is_flag=True, help="All built-in strategies side by side, and what else is named.")
@click.option("--seed", type=int, help="Another one than the scenario's.")
@click.option("--list", "list_all", is_flag=True, help="List the scenarios that come with the program.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def simulate(
    scenario: str | None,
    strategies: tuple[str, ...],
    plugins: tuple[str, ...],
    plugin_config: str | None,
    compare: bool,
    seed: int | None,
    list_all: bool,
    as_json: bool,
) -> None:
    """Try a scheduling policy on SCENARIO, a file or a name of --list, in virtual time.

    Without a policy the scenario's own strategy is tried. See docs/simulate.md.
    """
    from host.simulate.simulation import list_command, simulate_command

    if list_all:
        sys.exit(list_command())
    if scenario is None:
        raise click.UsageError("name a scenario, or list them with --list")
    sys.exit(
        simulate_command(
            scenario,
            strategies=strategies,
            plugins=plugins,
            plugin_config=plugin_config,
            compare=compare,
            seed=seed,
            as_json=as_json,
        )
    )
