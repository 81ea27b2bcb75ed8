"""Switching a configured key off in a running proxy, which edits the operator's file."""

from host.credentials.editor import CredentialError
from tests.support.proxy import running_proxy

CONFIG = """\
port: 0
claude-api-key:
  - api-key: k1 # mine
    base-url: https://a.test
openai-compatibility:
  - name: acme
    base-url: https://acme.test
"""


async def test_I15_a_configured_key_is_switched_off_and_on_by_its_excluded_models_and_at_once():
    async with running_proxy(CONFIG) as running:
        proxy = running.proxy
        key, compat = proxy.credentials.credentials
        editor = proxy.credential_parts.editor
        toggled = await editor.set_disabled(key.id, True)
        assert (toggled.disabled, toggled.via_config) == (True, True)
        text = running.config_file.read_text()
        assert "# mine" in text and '"*"' in text.replace("'", '"')
        assert proxy.credentials.by_id[key.id].excluded_models == ("*",)
        assert not proxy.credentials.by_id[key.id].disabled
        assert not proxy.gateway.state.plan(
            "claude-x", method="executor.execute", source="claude", wanted="claude"
        ).known
        await editor.set_disabled(key.id, False)
        assert proxy.credentials.by_id[key.id].excluded_models == ()
        try:
            await editor.set_disabled(compat.id, True)
        except CredentialError as error:
            assert (error.http_status, str(error)) == (404, "config api key entry not found")
        else:
            raise AssertionError("a compatible provider was switched off")
