"""Which changes of the configuration file are changes."""

import asyncio
from pathlib import Path

import pytest

from host.reload import Reloader
from tests.integration.serve.conftest import Site
from tests.support.proxy import running_proxy, serve_process


async def test_I2_an_emptied_file_is_ignored_and_I3_an_edit_is_applied_and_says_what_changed(site: Site) -> None:
    site.configure(api_keys=["hidden-1"])
    async with serve_process(site.config_file) as served:
        site.config_file.write_text("")
        await served.event("config.emptied")
        site.configure(api_keys=["hidden-2"], max_retry_credentials=2)
        changed = await served.event("config.changed")
        assert changed["changes"] == ["api-keys: changed", "max-retry-credentials: 0 -> 2"]
        await served.event("config.applied")
        assert len([entry for entry in served.log if entry["event"] == "config.applied"]) == 1
        assert "hidden" not in "".join(served.lines)


async def test_debug_lines_are_switched_on_and_off_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    switched: list[bool] = []
    monkeypatch.setattr("host.app.set_debug", switched.append)
    async with running_proxy("port: 0\n", directory=tmp_path) as running, asyncio.timeout(60):
        for text in ("port: 0\ndebug: true\n", "port: 0\ndebug: true\nrequest-retry: 1\n", "port: 0\n"):
            running.config_file.write_text(text)
            await running.reload()
    assert switched == [True, False]


@pytest.mark.parametrize("text", ["port: 0\n", "port: 0\ndebug: false\n"])
async def test_I1_a_file_that_was_only_touched_is_not_applied_again(tmp_path: Path, text: str) -> None:
    async with running_proxy("port: 0\n", directory=tmp_path) as running:
        reloader = Reloader(running.proxy, watch_plugins=False)
        running.config_file.write_text(text)
        assert reloader.is_news(running.config_file) is (text != "port: 0\n")


async def test_I2_whoever_asks_for_a_reload_while_the_file_is_empty_changes_nothing(tmp_path: Path) -> None:
    async with running_proxy("port: 0\napi-keys: [key-1]\n", directory=tmp_path) as running:
        running.config_file.write_text("\n")
        async with asyncio.timeout(60):
            assert await running.proxy.reload_config() is False
        assert [it.key for it in running.proxy.config.api_keys] == ["key-1"]
        assert running.proxy.applier.status.state == "applied"


async def test_after_a_refused_edit_the_text_in_force_is_news_again(tmp_path: Path) -> None:
    async with running_proxy("port: 0\n", directory=tmp_path) as running:
        reloader = Reloader(running.proxy, watch_plugins=False)
        running.config_file.write_text("prot: 0\n")
        async with asyncio.timeout(60):
            assert await running.proxy.reload_config() is False
            running.config_file.write_text("port: 0\n")
            assert reloader.is_news(running.config_file)
            await running.reload()
        assert not reloader.is_news(running.config_file)


async def test_an_auth_directory_that_cannot_be_used_is_refused_and_the_one_in_force_stays(tmp_path: Path) -> None:
    async with running_proxy("port: 0\n", directory=tmp_path) as running:
        (tmp_path / "file").write_text("")
        running.config_file.write_text("port: 0\nauth-dir: file\n")
        async with asyncio.timeout(60):
            assert await running.proxy.reload_config() is False
        assert "auth-dir" in running.proxy.applier.status.problems[0]
        assert running.proxy.credential_parts.directory.directory == str(tmp_path / "auths")
