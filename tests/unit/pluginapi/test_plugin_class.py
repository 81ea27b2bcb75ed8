"""What making a plugin class accepts, refuses and presets."""

import inspect
from typing import ClassVar

import pluggy
import pytest

from pluginabi.methods import PLUGIN_METHODS
from pluginapi import Context, Guard, ModelRouteRequest, ModelRouteResponse, Plugin, blocking, hookspecs
from pluginapi.plugin import HOOK_NAMES, capabilities_of, failure_modes_of


def test_every_method_of_the_table_has_a_hook_and_a_documented_specification():
    for method, name in HOOK_NAMES.items():
        spec = getattr(hookspecs, name)
        assert list(inspect.signature(spec).parameters) == ["request", "ctx"], method
        assert spec.__annotations__["request"] is PLUGIN_METHODS[method].request
        assert len(inspect.getdoc(spec).splitlines()) >= 3, f"{name} has no reference text"
        assert getattr(Plugin, name).__annotations__["request"] is PLUGIN_METHODS[method].request


def test_hook_specifications_answer_the_response_struct_of_the_table():
    for method, name in HOOK_NAMES.items():
        if not PLUGIN_METHODS[method].stream:
            expected = PLUGIN_METHODS[method].response | None
            assert getattr(hookspecs, name).__annotations__["return"] == expected, method


def test_overriding_a_method_is_having_the_capability():
    class Router(Plugin):
        async def model_route(self, request: ModelRouteRequest) -> ModelRouteResponse | None:
            return None

    class Child(Router):
        async def usage_handle(self, request):
            return None

    assert capabilities_of(Plugin) == ("plugin.register",)
    assert capabilities_of(Router) == ("plugin.register", "model.route")
    assert capabilities_of(Child) == ("plugin.register", "model.route", "usage.handle")


def test_a_hook_of_a_mixin_is_checked_and_marked_like_an_own_one():
    class Mixin:
        async def model_route(self, request, ctx):
            return None

    class Router(Mixin, Plugin):
        pass

    assert capabilities_of(Router) == ("plugin.register", "model.route")
    assert hasattr(Router.model_route, "jackfield_impl")


def test_pluggy_registers_a_plugin_and_finds_no_hook_without_specification():
    class Router(Plugin):
        async def model_route(self, request):
            return None

    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(Router(), name="router")
    manager.check_pending()
    assert [impl.plugin_name for impl in manager.hook.model_route.get_hookimpls()] == ["router"]
    assert manager.hook.scheduler_pick.get_hookimpls() == []


def test_a_plain_function_is_refused_with_the_way_out():
    with pytest.raises(
        TypeError, match=r"Router\.model_route \(.*test_plugin_class\.py:\d+\) is a plain function.*@blocking"
    ):

        class Router(Plugin):
            def model_route(self, request):
                return None


def test_a_blocking_hook_may_be_a_plain_function():
    class Router(Plugin):
        @blocking
        def model_route(self, request: ModelRouteRequest, ctx: Context) -> ModelRouteResponse | None:
            return None

    assert capabilities_of(Router) == ("plugin.register", "model.route")


def test_blocking_refuses_an_async_function():
    async def hook(self, request):
        return None

    with pytest.raises(TypeError, match="is async"):
        blocking(hook)


@pytest.mark.parametrize("bad", ["self, req", "self, request, context", "self, *request", "self, request, **ctx"])
def test_an_argument_that_no_hook_gets_is_refused(bad):
    namespace: dict[str, object] = {"Plugin": Plugin}
    source = f"class Router(Plugin):\n    async def model_route({bad}):\n        return None\n"
    with pytest.raises(TypeError, match="a hook takes 'request' and 'ctx', by name"):
        exec(source, namespace)


def test_a_generator_is_refused_where_nothing_streams():
    with pytest.raises(TypeError, match="only executor_execute_stream may be one"):

        class Router(Plugin):
            async def model_route(self, request):
                yield None


def test_a_static_method_is_refused():
    with pytest.raises(TypeError, match="is not a plain method"):

        class Router(Plugin):
            @staticmethod
            async def model_route(request):
                return None


def test_a_misspelt_hook_is_pointed_out():
    with pytest.warns(UserWarning, match="model_routes is no hook; did you mean model_route"):

        class Router(Plugin):
            async def model_routes(self, request):
                return None


def test_guard_presets_fail_for_the_interceptors_it_implements():
    class Gate(Guard):
        async def request_intercept_before(self, request):
            return None

        async def model_route(self, request):
            return None

    assert failure_modes_of(Gate) == {"request.intercept_before": "fail"}


def test_failure_modes_of_a_class_are_merged_over_those_of_its_bases():
    class Gate(Guard):
        on_error: ClassVar = {"model.route": "fail", "request.intercept_after": "skip"}

        async def request_intercept_before(self, request):
            return None

        async def request_intercept_after(self, request):
            return None

        async def model_route(self, request):
            return None

    assert failure_modes_of(Gate) == {
        "model.route": "fail",
        "request.intercept_before": "fail",
        "request.intercept_after": "skip",
    }
