"""The public surface is written down; names are added, not renamed."""

import subprocess
import sys

import pluginabi


def test_every_public_name_exists_and_is_sorted() -> None:
    assert all(hasattr(pluginabi, name) for name in pluginabi.__all__)
    groups = [
        [name for name in pluginabi.__all__ if name.isupper()],
        [name for name in pluginabi.__all__ if name[0].isupper() and not name.isupper()],
        [name for name in pluginabi.__all__ if name[0].islower()],
    ]
    assert [*pluginabi.__all__] == [name for group in groups for name in sorted(group)]


def test_importing_the_contract_loads_neither_grpc_nor_protobuf() -> None:
    code = "import sys, pluginabi; print([m for m in sys.modules if m.split('.')[0] in ('grpc', 'google')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == "[]"
