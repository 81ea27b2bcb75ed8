"""What can be configured or typed is documented, and what is documented exists."""

import re
from pathlib import Path

import click

from host.cli import main
from host.config import model
from host.config.known_keys import DROPPED, NOT_YET
from host.config.load import parse_config

ROOT = Path(__file__).resolve().parents[2]
INTERNAL = {"directory", "config", "config-yaml"}
"""Fields of the config tree that are no keys of the file."""


def config_keys() -> set[str]:
    sections = [kind for kind in vars(model).values() if isinstance(kind, type) and issubclass(kind, model.Section)]
    return {name for kind in sections for name in kind.__struct_encode_fields__} - INTERNAL


def test_every_key_that_has_an_effect_is_in_the_configuration_reference():
    text = (ROOT / "docs" / "configuration.md").read_text()
    without_effect = {path.split(".")[-1] for path in (*NOT_YET, *DROPPED)}
    missing = {key for key in config_keys() - without_effect if not re.search(rf"\b{key}\b", text)}
    assert missing == set()


def test_every_command_has_a_help_text_and_so_has_every_option():
    def walk(command: click.Command, path: str) -> list[str]:
        missing = [] if command.help else [path]
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.help:
                missing.append(f"{path} {parameter.opts[0]}")
        if isinstance(command, click.Group):
            for name, child in command.commands.items():
                missing += walk(child, f"{path} {name}")
        return missing

    assert walk(main, "jackfield") == []


def test_the_documents_link_only_to_files_that_exist():
    broken = []
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("*/README.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            if not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []


def test_the_make_targets_in_the_readme_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z]+)`", (ROOT / "README.md").read_text()))
    assert named and named <= targets


def test_the_configuration_that_init_writes_is_valid_and_known_keys_never_clash(tmp_path):
    from host.init import write_skeleton

    write_skeleton(tmp_path)
    text = (tmp_path / "config.yaml").read_text()
    commented = re.sub(r"^# ?(?=( *- |[a-z-]+:|  +[a-z-]+:))", "", text, flags=re.MULTILINE)
    assert parse_config(text, file="config.yaml").warnings == ()
    assert "openai-compatibility" in commented


def test_every_page_of_the_documentation_is_in_its_index():
    index = (ROOT / "docs" / "README.md").read_text()
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert {page for page in pages if f"({page})" not in index} == set()
