"""Manifest and operator together."""

from pathlib import Path
from typing import Any

import pytest

from host.config.load import ConfigError, parse_config
from host.config.model import Config, PluginPolicy, PluginPolicyLimits, Plugins, PluginSection, Timeouts
from host.runtime.discover import PluginSource
from host.runtime.handle import Inputs
from host.runtime.manifest import ConfigField, ManifestLimits
from host.runtime.policy import EffectivePolicy, PolicyError, effective_policy, host_matches
from tests.support.runtime import manifest


def settled(
    operator: PluginPolicy | None = None, *, origin: Any = "directory", environment: Any = None, **fields: Any
) -> EffectivePolicy:
    source = PluginSource(manifest=manifest(**fields), directory=Path("/x"), origin=origin)
    config = Config(
        plugins=Plugins(policy={"p": operator} if operator is not None else {}),
        timeouts=Timeouts(first_byte="20s", idle="7s"),
    )
    return effective_policy(source, config, environment=environment or {})


def test_a_permission_needs_the_manifests_wish_and_the_operators_grant():
    policy = settled(PluginPolicy(permissions=("kv", "model")), permissions=("http", "kv"))
    assert policy.permissions == {"kv"}
    assert policy.wished_permissions == {"http", "kv"}


def test_only_the_operator_opens_this_machine_and_its_networks_and_only_by_name():
    assert settled(http_hosts=("localhost",)).private_hosts == ()
    assert settled(PluginPolicy(http_hosts=("*", "*:80", "LocalHost", "10.0.0.1:80"))).private_hosts == (
        "localhost",
        "10.0.0.1:80",
    )
    assert settled(origin="bundled").private_hosts is None


def test_without_a_policy_nothing_is_granted():
    assert settled(permissions=("http", "kv")).permissions == frozenset()


def test_bundled_plugins_get_http_and_kv_when_they_ask_for_it_and_nothing_else():
    assert settled(origin="bundled", permissions=("http", "kv", "model")).permissions == {"http", "kv"}
    assert settled(origin="bundled").permissions == frozenset()


def test_an_unknown_permission_in_the_policy_is_refused_by_name():
    with pytest.raises(PolicyError, match=r"plugins\.policy\.p\.permissions: 'htpp'"):
        settled(PluginPolicy(permissions=("htpp",)))


def test_deadlines_come_from_the_operator_then_the_manifest_then_the_method_table():
    policy = settled(
        PluginPolicy(timeouts={"model.route": "100ms"}), timeouts={"model.route": "300ms", "scheduler.pick": "2s"}
    )
    assert policy.method_timeout_s("model.route") == 0.1
    assert policy.method_timeout_s("scheduler.pick") == 2.0
    assert policy.method_timeout_s("request.intercept_before") == 2.0
    assert policy.method_timeout_s("executor.execute") == 22.0
    assert policy.idle_timeout_s == 7.0


@pytest.mark.parametrize(
    "operator",
    [
        PluginPolicy(timeouts={"model.rout": "1s"}),
        PluginPolicy(on_error={"model.rout": "fail"}),
        PluginPolicy(timeouts={"model.route": "soon"}),
        PluginPolicy(instances=0),
    ],
)
def test_a_policy_that_cannot_be_followed_is_refused(operator: PluginPolicy):
    with pytest.raises(PolicyError, match=r"plugins\.policy\.p\."):
        settled(operator)


def test_failure_modes_come_from_operator_manifest_class_and_table_in_this_order():
    policy = settled(
        PluginPolicy(on_error={"request.intercept_before": "skip"}),
        on_error={"request.intercept_before": "fail", "model.route": "fail"},
    )
    guard = {"request.intercept_before": "fail", "request.intercept_after": "fail"}
    assert policy.method_on_error("request.intercept_before", guard) == "skip"
    assert policy.method_on_error("model.route", {}) == "fail"
    assert policy.method_on_error("request.intercept_after", guard) == "fail"
    assert policy.method_on_error("request.intercept_after", {}) == "skip"
    assert policy.method_on_error("executor.execute", {}) == "fail"


def test_inputs_come_from_the_manifest_then_hello_then_the_table():
    policy = settled(inputs={"model.route": ("body:/tools",), "usage.handle": ()})
    hello = {"model.route": ("body",), "scheduler.pick": ("body",)}
    assert policy.method_inputs("model.route", hello) == Inputs(body_pointers=("/tools",))
    assert policy.method_inputs("scheduler.pick", hello) == Inputs(body=True)
    assert policy.method_inputs("request.intercept_before", hello) == Inputs(body=True)
    assert policy.method_inputs("model.route", {}) == Inputs(body_pointers=("/tools",))


def test_an_unknown_word_in_hello_is_refused():
    with pytest.raises(ValueError, match="everything"):
        settled().method_inputs("model.route", {"model.route": ("everything",)})


def test_the_environment_holds_only_what_manifest_and_operator_both_name():
    host = {"REGION": "eu", "SECRET": "s", "HOME": "/root"}
    by_name = _with_environment(PluginPolicy(environment=("REGION", "SECRET")), host)
    assert by_name == {"REGION": "eu"}
    by_value = _with_environment(PluginPolicy(environment={"REGION": "us", "SECRET": "x"}), host)
    assert by_value == {"REGION": "us"}
    assert _with_environment(None, host) == {}


def _with_environment(operator: PluginPolicy | None, host: dict[str, str]) -> dict[str, str]:
    source = PluginSource(
        manifest=manifest(environment=("REGION", "MISSING")), directory=Path("/x"), origin="directory"
    )
    config = Config(plugins=Plugins(policy={"p": operator} if operator is not None else {}))
    return dict(effective_policy(source, config, environment=host).environment)


def test_the_operators_limits_override_the_manifests():
    policy = settled(
        PluginPolicy(limits=PluginPolicyLimits(memory_mb=64), instances=3),
        limits=ManifestLimits(memory_mb=256, max_inflight=5),
    )
    assert (policy.memory_mb, policy.max_inflight, policy.open_files, policy.instances) == (64, 5, None, 3)


def test_third_party_code_runs_inside_the_host_only_when_the_operator_says_so():
    wish = {"runtime": "inprocess", "entry": "plugin:P"}
    isolated = settled(**wish)
    assert isolated.carrier == "process"
    assert "plugins.policy.p.runtime" in isolated.remark
    trusted = settled(PluginPolicy(runtime="inprocess"), **wish)
    assert (trusted.carrier, trusted.remark) == ("inprocess", "")
    assert settled(origin="bundled", **wish).carrier == "inprocess"


def test_the_operator_may_isolate_what_would_run_inside():
    assert settled(PluginPolicy(runtime="process"), origin="bundled", entry="plugin:P").carrier == "process"


def test_inprocess_without_an_entry_is_refused():
    with pytest.raises(PolicyError, match="entry"):
        settled(PluginPolicy(runtime="inprocess"))


def test_a_host_must_be_on_both_lists_where_there_are_two():
    assert settled(origin="bundled").http_hosts == ()
    assert settled().http_hosts == ((),)
    assert settled(http_hosts=("A.com",)).http_hosts == (("a.com",),)
    both = settled(PluginPolicy(http_hosts=("b.com",)), http_hosts=("a.com", "b.com"))
    assert both.http_hosts == (("a.com", "b.com"), ("b.com",))


@pytest.mark.parametrize(
    ("host", "port", "pattern", "fits"),
    [
        ("a.com", 443, "a.com", True),
        ("A.COM.", 443, "a.com", True),
        ("xa.com", 443, "a.com", False),
        ("a.com.evil.org", 443, "a.com", False),
        ("x.a.com", 443, "*.a.com", True),
        ("a.com", 443, "*.a.com", False),
        ("evila.com", 443, "*.a.com", False),
        ("a.com", 443, "a.com:8443", False),
        ("a.com", 8443, "a.com:8443", True),
        ("anything", None, "*", True),
        ("::1", 80, "[::1]", True),
        ("::1", 8080, "[::1]:8080", True),
        ("::1", 80, "[::1]:8080", False),
    ],
)
def test_a_host_fits_a_pattern_completely_or_not_at_all(host: str, port: int | None, pattern: str, fits: bool):
    assert host_matches(host, port, (pattern,)) is fits


def test_confinement_is_automatic_until_the_operator_says_otherwise_and_paths_start_at_the_configuration():
    assert (settled(PluginPolicy()).confinement, settled(PluginPolicy()).read_paths) == ("auto", ())
    policy = settled(PluginPolicy(confinement="required", read_paths=["models", "/srv/shared"]))
    assert policy.confinement == "required"
    assert policy.read_paths == (Path.cwd() / "models", Path("/srv/shared"))


def test_a_required_confinement_keeps_a_plugin_out_of_the_host():
    with pytest.raises(PolicyError, match="nothing confines a plugin inside the host"):
        settled(PluginPolicy(confinement="required", runtime="inprocess"), entry="m:C")
    assert settled(PluginPolicy(confinement="required"), runtime="inprocess", entry="m:C").carrier == "process"


@pytest.mark.parametrize("value", ["none", "strict", "true"])
def test_an_unknown_word_for_confinement_is_an_error_of_the_configuration(value: str):
    text = f"plugins: {{policy: {{p: {{confinement: {value}}}}}}}"
    with pytest.raises(ConfigError, match="confinement"):
        parse_config(text, file="config.yaml")


def test_off_is_a_word_and_no_truth_value():
    loaded = parse_config("plugins: {policy: {p: {confinement: off}}}", file="config.yaml")
    assert loaded.config.plugins.policy["p"].confinement == "off"


@pytest.mark.parametrize(("origin", "readable"), [("bundled", ("/srv/js/own.js", "/srv/js")), ("directory", ())])
def test_a_file_that_the_operator_names_in_a_section_is_readable_for_bundled_plugins_only(origin, readable):
    field = ConfigField(name="script", file=True, default="/etc/shadow")
    source = PluginSource(manifest=manifest(config=(field,)), directory=Path("/x"), origin=origin)
    named = Plugins(configs={"p": PluginSection(config={"script": "js/own.js"})})
    policy = effective_policy(source, Config(plugins=named, directory="/srv"), environment={})
    assert tuple(str(path) for path in policy.read_paths) == readable
    unnamed = effective_policy(source, Config(directory="/srv"), environment={})
    assert unnamed.read_paths == ()
