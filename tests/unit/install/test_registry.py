"""Registries: strict about what installs depend on, patient with what a later version may add."""

import hashlib
from pathlib import Path

import pytest

from host.install.obtain import Listing, Wanted, find_plugin, wanted
from host.install.registry import RegistryError, Source, parse_registry, sources_of
from host.install.versions import is_update
from tests.support.archives import registry_entry, registry_text

SHA = "ab" * 32
URL = "https://example.com/greeter-1.0.0.zip"


@pytest.mark.parametrize(
    ("installed", "offered", "update"),
    [
        pytest.param("1.0.0", "1.0.1", True, id="P131-patch"),
        pytest.param("1.2", "1.2.0", False, id="P131-missing-part"),
        pytest.param("v1.0", "1.0", False, id="P131-leading-v"),
        pytest.param("2.0", "1.9", False, id="P131-older"),
        pytest.param("1.0-beta", "1.0", True, id="P131-no-number"),
        pytest.param("", "1.0", False, id="P131-unknown"),
        pytest.param("1.0", "", False, id="nothing-offered"),
        pytest.param("1.9", "1.10", True, id="numbers-not-text"),
        pytest.param("1.0-beta", "1.0-beta", False, id="equal-text"),
        pytest.param("1.0", "1.²", True, id="no-ascii-digit"),
    ],
)
def test_only_a_newer_version_is_an_update(installed, offered, update):
    assert is_update(installed, offered) is update


def test_an_entry_is_read_with_its_strings_trimmed_and_unknown_fields_ignored():
    text = registry_text(registry_entry(name="  Greeter ", url=f" {URL} ", sha256=SHA.upper(), colour="red"))
    (plugin,) = parse_registry(text)
    assert plugin.name == "Greeter"
    artifact = plugin.artifact()
    assert (artifact.url, artifact.sha256, artifact.version) == (URL, SHA, "1.0.0")


def test_P132_an_entry_without_a_version_is_accepted():
    (plugin,) = parse_registry(registry_text(registry_entry(version=None)))
    assert plugin.version == ""


REPOSITORY = "https://github.com/acme/greeter"


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        pytest.param({"version": "v1"}, "without a leading v", id="P132-version-v1"),
        pytest.param({"repository": f"{REPOSITORY}.git"}, "repository", id="P132-git"),
        pytest.param({"repository": REPOSITORY.replace("https", "http")}, "repository", id="P132-http"),
        pytest.param({"repository": f"{REPOSITORY}/tree"}, "repository", id="P132-extra-path"),
        pytest.param({"repository": f"{REPOSITORY}?x"}, "repository", id="query"),
        pytest.param({"repository": "https://github.com.evil.example/a/b"}, "repository", id="other-host"),
        pytest.param({"id": "../x"}, "no plugin id", id="id"),
        pytest.param({"name": " "}, "`name` is missing or blank", id="blank-name"),
        pytest.param({"author": None}, "`author` is missing or blank", id="no-author"),
        pytest.param({"description": 3}, "Expected `str`", id="wrong-type"),
        pytest.param({"url": URL}, "belong together", id="url-alone"),
        pytest.param({"url": URL, "sha256": "ab"}, "no SHA-256", id="short-digest"),
        pytest.param({"url": "http://example.com/x.zip", "sha256": SHA}, "not https", id="http-archive"),
        pytest.param({"url": "file:///etc/x", "sha256": SHA}, "not an http", id="file-archive"),
        pytest.param({"url": "https://u:p@example.com/x", "sha256": SHA}, "user info", id="user-info"),
        pytest.param({"artifacts": [{"url": URL}]}, "missing required field `sha256`", id="unpinned-artifact"),
        pytest.param({"artifacts": [{"url": URL, "sha256": SHA, "platform": "linux"}]}, "no platform", id="platform"),
        pytest.param({"artifacts": [{"url": URL, "sha256": SHA, "size": 0}]}, "size", id="size"),
        pytest.param({"artifacts": [{"url": URL, "sha256": SHA}] * 2}, "two archives", id="twice-the-same"),
    ],
)
def test_one_wrong_entry_makes_the_whole_registry_unusable_and_is_named(entry, says):
    with pytest.raises(RegistryError, match=r"^plugins\[1\]: .*" + says):
        parse_registry(registry_text(registry_entry("other"), registry_entry(**entry)))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param(registry_text(schema_version=2), "unsupported schema_version 2", id="P132-schema-2"),
        pytest.param(registry_text(schema_version=True), "unsupported schema_version", id="schema-true"),
        pytest.param(
            registry_text(registry_entry(), registry_entry()), r"plugins\[1\]: the id", id="P132-duplicate-id"
        ),
        pytest.param(registry_text("text"), r"plugins\[0\]: ", id="entry-no-object"),
        pytest.param(b'{"schema_version": 1}', "no list", id="no-list"),
        pytest.param(b"[]", "no JSON object", id="no-object"),
        pytest.param(b"{", "no JSON", id="no-json"),
        pytest.param(b"\xff", "no JSON", id="no-text"),
    ],
)
def test_a_registry_that_cannot_be_read_says_why(text, says):
    with pytest.raises(RegistryError, match=says):
        parse_registry(text)


def test_the_archive_of_a_version_for_this_platform_is_chosen_before_the_one_for_all():
    artifacts = [
        {"url": "https://x/any", "sha256": SHA},
        {"url": "https://x/linux", "sha256": SHA, "platform": "linux/amd64"},
        {"url": "https://x/old", "sha256": SHA, "version": "0.9"},
        {"url": "https://x/mac", "sha256": SHA, "version": "2.0", "platform": "darwin/arm64"},
    ]
    (plugin,) = parse_registry(registry_text(registry_entry(artifacts=artifacts)))
    assert plugin.artifact(here="linux/amd64").url == "https://x/linux"
    assert plugin.artifact(here="linux/arm64").url == "https://x/any"
    assert plugin.artifact("0.9", here="linux/arm64").url == "https://x/old"
    with pytest.raises(RegistryError, match=r"no archive of greeter 2\.0 for linux/amd64"):
        plugin.artifact("2.0", here="linux/amd64")
    with pytest.raises(RegistryError, match=r"there are: 0\.9, 1\.0\.0, 2\.0"):
        plugin.artifact("3.0", here="linux/amd64")


def test_without_a_version_of_its_own_an_entry_offers_its_newest_archive():
    artifacts = [
        {"url": f"https://x/{version}", "sha256": SHA, "version": version} for version in ("1.9", "1.10", "1.2")
    ]
    (plugin,) = parse_registry(registry_text(registry_entry(version=None, artifacts=artifacts)))
    assert plugin.artifact().version == "1.10"


def test_an_entry_without_archives_says_where_the_plugin_is():
    (plugin,) = parse_registry(registry_text(registry_entry()))
    with pytest.raises(RegistryError, match="get it from https"):
        plugin.artifact()


def test_sources_have_ids_made_of_their_trimmed_location_and_count_once():
    first, second = sources_of([" https://plugins.example.com/r.json ", "", "/srv/r.json", "/srv/r.json"])
    digest = hashlib.sha256(b"https://plugins.example.com/r.json").hexdigest()
    assert (first.id, first.name) == (f"source-{digest[:12]}", "plugins.example.com")
    assert (second.name, second.is_url) == ("/srv/r.json", False)
    assert all(first.fits(text) for text in (first.id, first.name, first.location))
    assert not first.fits(second.id)


def test_P134_an_id_of_two_sources_is_installed_from_neither_until_one_is_named():
    one, two = Source("https://one.example/r.json"), Source("https://two.example/r.json")
    (plugin,) = parse_registry(registry_text(registry_entry()))
    with pytest.raises(RegistryError, match="--source") as caught:
        find_plugin(Listing(((one, plugin), (two, plugin)), ()), "greeter")
    assert one.id in str(caught.value) and two.id in str(caught.value)
    assert find_plugin(Listing(((two, plugin),), ()), "greeter") == (two, plugin)


def test_an_id_nobody_has_is_refused_together_with_what_could_not_be_read():
    source = Source("https://one.example/r.json")
    with pytest.raises(RegistryError, match="no registry has a plugin 'greeter'\nit is down"):
        find_plugin(Listing((), ((source, "it is down"),)), "greeter")


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("https://example.com/a.zip", {"url": "https://example.com/a.zip"}),
        ("./a.zip", {"path": Path("a.zip")}),
        ("greeter.zip", {"path": Path("greeter.zip")}),
        ("greeter", {"plugin_id": "greeter"}),
        ("greeter@1.2", {"plugin_id": "greeter", "version": "1.2"}),
        ("greeter@v1.2", {"plugin_id": "greeter", "version": "1.2"}),
    ],
)
def test_what_to_install_is_a_url_a_file_or_an_id(text, fields):
    assert wanted(text) == Wanted(**fields)


def test_what_is_none_of_these_is_refused():
    with pytest.raises(RegistryError, match="neither an archive"):
        wanted("not a plugin")
