"""The public surface of the SDK: adding to it is deliberate, taking from it breaks plugins."""

import importlib
import inspect
import pkgutil

import msgspec

import pluginabi.payloads
import pluginapi
import pluginapi.testing

OWN_NAMES = {
    "EMPTY_BODY",
    "Body",
    "CallbackPort",
    "Context",
    "DispatchReply",
    "Dispatcher",
    "ErrorBody",
    "Guard",
    "HostInfo",
    "HttpStream",
    "Logger",
    "ModelStream",
    "Plugin",
    "PluginError",
    "PluginTransportError",
    "Reply",
    "Stream",
    "StreamItem",
    "Usage",
    "blocking",
    "hookimpl",
    "hookspec",
    "serve",
}


def payload_structs():
    for found in pkgutil.iter_modules(pluginabi.payloads.__path__):
        module = importlib.import_module(f"pluginabi.payloads.{found.name}")
        for name, value in vars(module).items():
            if inspect.isclass(value) and issubclass(value, msgspec.Struct) and value.__module__ == module.__name__:
                yield name


def test_the_sdk_exports_its_own_names_and_every_payload_and_nothing_else():
    assert set(pluginapi.__all__) == OWN_NAMES | set(payload_structs())
    assert len(set(pluginapi.__all__)) == len(pluginapi.__all__)


def test_every_exported_name_exists_and_is_no_module():
    for name in pluginapi.__all__:
        assert not inspect.ismodule(getattr(pluginapi, name)), name


def test_the_test_kit_exports_what_its_guide_names():
    assert set(pluginapi.testing.__all__) == {
        "Callback",
        "Case",
        "CaseFile",
        "FakeHost",
        "LogLine",
        "OpenStream",
        "PluginHarness",
        "StreamRun",
        "check_case",
        "read_cases",
    }
