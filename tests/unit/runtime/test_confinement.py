"""What is planned for which kernel, and how it is told."""

from pathlib import Path

import msgspec
import pytest

from host.config.model import Config, PluginPolicy, Plugins
from host.runtime.confinement import (
    ATTACHED,
    IN_PROCESS,
    PARTS,
    SWITCHED_OFF,
    ConfinementMode,
    Kernel,
    Wanted,
    plan_confinement,
    this_kernel,
    what_is_in_force,
    why_refused,
)
from host.runtime.discover import PluginSource
from host.runtime.plan import Plan, make_plan
from tests.support.processes import fault_spec
from tests.support.runtime import manifest

FULL = Kernel(landlock=7, seccomp=True, seccomp_notify=True, machine="x86_64", capabilities=True)


def plan(kernel: Kernel = FULL, *, network: bool = False, mode: ConfinementMode = "auto") -> tuple[str, ...]:
    wanted = Wanted(mode=mode, own_paths=[Path("/plugin")], data_dir=Path("/data"), network=network)
    return plan_confinement(wanted, kernel).options


def domain(kernel: Kernel, *, network: bool = False) -> list[int]:
    (begin,) = (option for option in plan(kernel, network=network) if option.startswith("--landlock="))
    return [int(number) for number in begin.removeprefix("--landlock=").split(":")]


@pytest.mark.parametrize(
    ("version", "files", "network", "scopes", "flags"),
    [
        (1, 0x1FFF, 0, 0, 0),
        (2, 0x3FFF, 0, 0, 0),
        (3, 0x7FFF, 0, 0, 0),
        (4, 0x7FFF, 3, 0, 0),
        (5, 0xFFFF, 3, 0, 0),
        (6, 0xFFFF, 3, 3, 0),
        (7, 0xFFFF, 3, 3, 2),
        (99, 0xFFFF, 3, 3, 2),
    ],
)
def test_each_version_of_landlock_is_asked_for_what_it_knows_and_no_more(
    version: int, files: int, network: int, scopes: int, flags: int
):
    kernel = msgspec.structs.replace(FULL, landlock=version)
    assert domain(kernel) == [files, network, scopes, flags]
    assert domain(kernel, network=True)[1] == 0


def test_rights_come_before_the_domain_is_entered_and_the_filter_comes_last():
    options = [option.partition("=")[0] for option in plan()]
    order = list(dict.fromkeys(options))
    assert order == ["--landlock", "--allow", "--enter", "--capabilities", "--seccomp"]


def test_only_the_data_directory_may_be_written_and_devices_nowhere_made():
    write_file, make_device = 1 << 1, 1 << 6 | 1 << 11
    granted = dict(
        reversed(option.removeprefix("--allow=").split(":", 1)) for option in plan() if option.startswith("--allow=")
    )
    assert {path for path, rights in granted.items() if int(rights) & write_file} == {"/data", "/dev/null"}
    assert not any(int(rights) & make_device for rights in granted.values())


def test_what_the_kernel_lacks_is_missing_with_a_reason():
    report = what_is_in_force("auto", network=False, kernel=msgspec.structs.replace(FULL, landlock=3))
    assert report.in_force == ("filesystem", "network", "syscalls")
    assert set(report.missing) == {"signals"}
    assert "version 3" in report.missing["signals"] and "6.12" in report.missing["signals"]
    bare = what_is_in_force("auto", network=False, kernel=Kernel(machine="x86_64"))
    assert (bare.in_force, set(bare.missing)) == ((), set(PARTS))
    assert plan(Kernel(machine="x86_64")) == ()


def test_a_granted_network_is_neither_in_force_nor_missing():
    report = what_is_in_force("required", network=True, kernel=FULL)
    assert report.in_force == ("filesystem", "syscalls", "signals")
    assert (dict(report.missing), why_refused(report)) == ({}, "")
    assert "network" in report.note


def test_a_required_confinement_names_everything_that_is_missing():
    kernel = msgspec.structs.replace(FULL, landlock=0, landlock_absence="no Landlock here")
    reason = why_refused(what_is_in_force("required", network=False, kernel=kernel))
    assert "required" in reason and "filesystem: no Landlock here" in reason and "signals: no Landlock here" in reason
    assert why_refused(what_is_in_force("auto", network=False, kernel=kernel)) == ""


def test_switched_off_is_said_in_a_sentence():
    assert what_is_in_force("off", network=False, kernel=FULL) == SWITCHED_OFF
    assert SWITCHED_OFF.note


def test_in_process_and_attached_plugins_say_that_nothing_holds_them():
    assert IN_PROCESS.note == "none: runs with the host's rights"
    assert ATTACHED.note.startswith("none: ")
    assert fault_spec(Path("/x"), attach="unix:/x").confined is False


def test_this_kernel_is_asked_once():
    assert this_kernel() is this_kernel()
    assert this_kernel().machine


def launched(operator: PluginPolicy, directory: str = "/srv/site") -> Plan:
    source = PluginSource(manifest=manifest(permissions=("network", "kv")), directory=Path("/x"), origin="directory")
    return make_plan(source, Config(plugins=Plugins(policy={"p": operator}), directory=directory), environment={})


def test_what_the_kernel_enforces_takes_a_new_process_and_other_permissions_do_not():
    before = launched(PluginPolicy()).launch_key()
    assert launched(PluginPolicy(permissions=("kv",))).launch_key() == before
    for operator in (
        PluginPolicy(permissions=("network",)),
        PluginPolicy(confinement="required"),
        PluginPolicy(read_paths=("models",)),
    ):
        assert launched(operator).launch_key() != before


def test_configuration_credentials_state_and_data_are_hidden_wherever_they_lie(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / ".env").write_text("")
    hidden = launched(PluginPolicy(), str(tmp_path)).hidden_paths
    names = {path.name for path in hidden}
    assert {"config.yaml", ".env", "auths", "plugin-data", "state.bin"} == names
    assert {path.parent for path in hidden} == {tmp_path}
