"""New plugins of every kind in one language: made below `build/`, built, and run through the conformance kit."""

import asyncio
from pathlib import Path

from host.scaffold.compose import crate_name, render
from host.scaffold.names import kinds_of
from pluginapi.conformance import Options, run, target_of_folder
from tests.support import toolchains

MADE = toolchains.CACHE / "plugins"
AT_ONCE = 3
OFFLINE = (
    "--offline",
    "--config",
    'source.crates-io.replace-with="debian"',
    "--config",
    'source.debian.directory="/usr/share/cargo/registry"',
)


def made(language: str) -> list[Path]:
    """The folders of one language, one for each kind. What has not changed is not written, so it is not built again."""
    folders = []
    for kind in kinds_of(language):
        folder = MADE / language / f"my-{kind}"
        for place, text in render(folder.name, language=language, kind=kind).items():
            path = folder / place
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists() or path.read_text() != text:
                path.write_text(text)
        folders.append(folder)
    return folders


def build(language: str, folders: list[Path]) -> None:
    """Build them all: with their own Makefiles, but Rust in one workspace, which compiles its crates side by side."""
    with toolchains.one_at_a_time():
        if language != "rust":
            for folder in folders:
                toolchains.run("make", "-s", "plugin", cwd=folder)
            return
        workspace = MADE / language
        (workspace / "Cargo.toml").write_text('[workspace]\nmembers = ["my-*"]\nresolver = "2"\n')
        offline = OFFLINE if Path("/usr/share/cargo/registry").is_dir() else ()
        toolchains.run("cargo", *offline, "build", cwd=workspace)
        for folder in folders:
            built = toolchains.CACHE / "cargo" / "debug" / crate_name(folder.name)
            (folder / "plugin").unlink(missing_ok=True)
            (folder / "plugin").hardlink_to(built)


async def conformance(folders: list[Path]) -> dict[str, list[str]]:
    """What the kit finds wrong, by folder; every case of a folder has to be among what was checked."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(folder: Path) -> list[str]:
        async with gate:
            target = target_of_folder(folder)
            report = await run(target, Options(timeout_s=30, measures=False))
        wrong = [f"{it.id}: expected {it.expected}, got {it.got} {it.stderr}" for it in report.failed]
        checked = [it for it in report.outcomes if it.group == "cases" and it.verdict != "skip"]
        if len(checked) != len(target.cases.cases) or not checked:
            wrong.append(f"only {len(checked)} of {len(target.cases.cases)} cases were checked")
        if report.level != ("minimal" if folder.parent.name == "shell" else "full"):
            wrong.append(f"level {report.level}")
        return wrong

    found = await asyncio.gather(*(one(folder) for folder in folders))
    return {folder.name: wrong for folder, wrong in zip(folders, found, strict=True) if wrong}
