"""`jackfield init DIR`: a directory to start from."""

import secrets
from pathlib import Path
from typing import Final

import click

from host.cli_options import told
from host.config.rewrite import write_atomically

KEY_PREFIX: Final = "jf-"

_TEMPLATE: Final = """\
# Jackfield. Every key is explained in docs/configuration.md; unknown keys are errors.
# The file is watched: a valid change is applied at once, an invalid one is reported and changes nothing.

host: 127.0.0.1        # a public address needs api-keys or a frontend-auth plugin
port: 8317

# Keys that clients send (Authorization: Bearer, x-api-key, x-goog-api-key, ?key=). The name appears in logs and usage.
api-keys:
  - key: {key}
    name: first-client

{demo}# Upstream providers. Each key is one credential; several are used in turn.
# openai-compatibility:
#   - name: example
#     base-url: https://api.example.com/v1
#     api-key-entries:
#       - api-key: YOUR-UPSTREAM-KEY
#     models:
#       - name: upstream-model-name
#         alias: name-for-clients
# claude-api-key:
#   - api-key: YOUR-ANTHROPIC-KEY
#     models:
#       - name: claude-sonnet-4-5
# gemini-api-key:
#   - api-key: YOUR-GEMINI-KEY
#     models:
#       - name: gemini-2.5-flash

# The management API (docs/management.md) is off without a key; `jackfield management key` makes one.
# remote-management:
#   secret-key: written by `jackfield management key`

routing:
  strategy: round-robin   # or weighted-round-robin, fill-first; a scheduler plugin decides first

plugins:
  enabled: true
  dir: plugins            # a folder with a plugin.toml is one plugin; `jackfield plugins list` shows them
  configs: {{}}
  # configs:
  #   cheap-first:
  #     enabled: true
  #     priority: 10
  # policy:
  #   cheap-first:
  #     permissions: [http]
"""


def init_directory(directory: Path) -> int:
    """Write config.yaml, plugins/ and auths/; an existing config.yaml is never touched. Returns the exit code."""
    file = directory / "config.yaml"
    if file.exists():
        click.echo(f"{file} exists already; nothing was changed", err=True)
        return 1
    try:
        key = write_skeleton(directory)
    except OSError as error:
        click.echo(told(error), err=True)
        return 1
    click.echo(f"Wrote {file}, {directory / 'plugins'}/ and {directory / 'auths'}/.")
    click.echo(f"Client key: {key}")
    click.echo(f"Next: add a provider to {file}, then run `jackfield serve --config {file}`.")
    return 0


def write_skeleton(directory: Path, *, demo: bool = False) -> str:
    """Make the directory's files and return the generated client key; for the demo there is none."""
    for name in ("plugins", "auths"):
        (directory / name).mkdir(parents=True, exist_ok=True, mode=0o700)
    key = KEY_PREFIX + secrets.token_urlsafe(24)
    text = _TEMPLATE.format(key=key, demo="demo: true             # models echo and demo-*\n\n" if demo else "")
    if demo:
        text = _without_client_keys(text)
    write_atomically(str(directory / "config.yaml"), text, mode=0o600)
    return "" if demo else key


def _without_client_keys(text: str) -> str:
    """The demo answers any key on loopback, so its file shows the key list as a comment."""
    lines = text.splitlines(keepends=True)
    start = next(index for index, line in enumerate(lines) if line.startswith("api-keys:"))
    example = ["# api-keys:\n", "#   - key: choose-a-long-random-key\n", "#     name: first-client\n"]
    return "".join([*lines[:start], *example, *lines[start + 3 :]])
