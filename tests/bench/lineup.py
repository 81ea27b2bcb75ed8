"""Who is measured: how each contestant is configured and started. Nothing here runs anything."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML

from tests.bench.procs import BenchError

CLIENT_KEY: Final = "sk-bench-client"
UPSTREAM_KEY: Final = "sk-bench-upstream"
MODELS: Final = ("bench-64", "bench-64-paced")
CORE_NAMES: Final = ("bare", "jackfield", "jackfield_inprocess", "jackfield_json", "nginx")
PEER_NAMES: Final = ("litellm", "portkey")

NGINX_CONFIG: Final = """\
{user}worker_processes 1;
daemon off;
pid {dir}/nginx.pid;
error_log {dir}/nginx-error.log warn;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {dir}/nginx-body;
  proxy_temp_path {dir}/nginx-proxy;
  fastcgi_temp_path {dir}/nginx-fastcgi;
  uwsgi_temp_path {dir}/nginx-uwsgi;
  scgi_temp_path {dir}/nginx-scgi;
  client_max_body_size 64m;
  keepalive_requests 100000000;
  upstream bench {{ server 127.0.0.1:{upstream_port}; keepalive 256; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    location / {{
      proxy_pass http://bench;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
"""


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where things are on this machine during one benchmark."""

    root: Path
    """The repository."""
    work_dir: Path
    """build/bench: programs, configs and logs."""
    peers_dir: Path
    upstream_port: int

    @property
    def bench_dir(self) -> Path:
        """The folder of this suite."""
        return self.root / "tests" / "bench"

    @property
    def upstream_url(self) -> str:
        """Base address of the mock upstream, without a path."""
        return f"http://127.0.0.1:{self.upstream_port}"


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One proxy as it is started for the measurement."""

    name: str
    argv: Sequence[str]
    port: int
    cwd: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    headers: Sequence[tuple[str, str]] = ()
    loads: frozenset[str] = frozenset({"plain", "stream64", "paced64"})
    required: bool = True
    """Whether the benchmark has failed when this one cannot be measured."""
    shares_round: bool = True
    """False for those that are started, measured and stopped alone, since they work even while idle."""
    ready_timeout_s: float = 20.0
    exact_events: bool = True
    """False when it is known to merge or add stream events; then only the end of each stream is checked."""


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def _write_yaml(path: Path, document: Mapping[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        yaml = YAML(typ="safe", pure=True)
        yaml.default_flow_style = False
        yaml.dump(document, file)
    return path


def bare(site: Site, port: int) -> Contestant:
    """The yardstick, see contestants/bare_aiohttp.py."""
    script = site.bench_dir / "contestants" / "bare_aiohttp.py"
    argv = [sys.executable, str(script), str(port), site.upstream_url]
    return Contestant(name="bare", argv=argv, port=port, cwd=site.work_dir)


def nginx(site: Site, port: int, binary: str) -> Contestant:
    """nginx with one worker, kept-alive upstream connections and no buffering of streams."""
    folder = site.work_dir / "nginx"
    config = NGINX_CONFIG.format(
        user="user root;\n" if os.geteuid() == 0 else "", dir=folder, port=port, upstream_port=site.upstream_port
    )
    path = _write(folder / "nginx.conf", config)
    argv = [binary, "-p", str(folder), "-e", str(folder / "nginx-error.log"), "-c", str(path)]
    return Contestant(name="nginx", argv=argv, port=port, cwd=folder, required=False)


def jackfield_config(site: Site, *, port: int, plugins: Mapping[str, str]) -> dict[str, Any]:
    """The config of a gateway in front of the mock upstream; plugins maps each enabled id to its runtime."""
    return {
        "host": "127.0.0.1",
        "port": port,
        "api-keys": [CLIENT_KEY],
        "openai-compatibility": [
            {
                "name": "bench",
                "base-url": f"{site.upstream_url}/v1",
                "api-key-entries": [{"api-key": UPSTREAM_KEY}],
                "models": [{"name": model, "alias": model} for model in MODELS],
            }
        ],
        "plugins": {
            "enabled": True,
            "dir": str(site.bench_dir / "plugins"),
            "configs": {plugin_id: {"enabled": True} for plugin_id in plugins},
            "policy": {plugin_id: {"runtime": runtime} for plugin_id, runtime in plugins.items()},
        },
    }


def jackfield(
    site: Site,
    port: int,
    *,
    name: str = "jackfield",
    plugins: Mapping[str, str] | None = None,
    loads: frozenset[str] = frozenset({"plain", "stream64", "paced64"}),
) -> Contestant:
    """The gateway under test with the given plugins enabled."""
    config = jackfield_config(site, port=port, plugins=plugins or {})
    path = _write_yaml(site.work_dir / name / "config.yaml", config)
    return Contestant(
        name=name,
        argv=[sys.executable, "-m", "host", "serve", "--config", str(path)],
        port=port,
        cwd=site.root,
        loads=loads,
    )


def jackfield_inprocess(site: Site, port: int) -> Contestant:
    """With a router that has no opinion and an interceptor that sets one header, both in-process."""
    plugins = {"bench-router": "inprocess", "bench-interceptor": "inprocess"}
    return jackfield(site, port, name="jackfield_inprocess", plugins=plugins, loads=frozenset({"plain"}))


def jackfield_json(site: Site, port: int) -> Contestant:
    """With a router in a process of its own behind JSON frames, asked once per request."""
    plugins = {"bench-json-router": "process"}
    return jackfield(site, port, name="jackfield_json", plugins=plugins, loads=frozenset({"plain"}))


def litellm(site: Site, port: int, command: str) -> Contestant:
    """LiteLLM's proxy with one worker, a master key and no database."""
    models = [
        {
            "model_name": model,
            "litellm_params": {
                "model": f"openai/{model}",
                "api_base": f"{site.upstream_url}/v1",
                "api_key": UPSTREAM_KEY,
            },
        }
        for model in MODELS
    ]
    config = {
        "model_list": models,
        "general_settings": {"master_key": CLIENT_KEY},
        "litellm_settings": {"num_retries": 0, "request_timeout": 600},
    }
    path = _write_yaml(site.work_dir / "litellm" / "config.yaml", config)
    options = ["--config", str(path), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    return Contestant(
        name="litellm",
        argv=[command, *options],
        port=port,
        cwd=path.parent,
        environment={
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOG": "ERROR",
            "LITELLM_MODE": "PRODUCTION",
        },
        loads=frozenset({"plain", "stream64"}),
        required=False,
        shares_round=False,
        ready_timeout_s=120.0,
        exact_events=False,
    )


def portkey(site: Site, port: int, script: str) -> Contestant:
    """Portkey's open gateway on Node."""
    return Contestant(
        name="portkey",
        argv=["node", script, "--headless", f"--port={port}"],
        port=port,
        cwd=site.work_dir,
        environment={"NODE_ENV": "production"},
        headers=[("x-portkey-provider", "openai"), ("x-portkey-custom-host", f"{site.upstream_url}/v1")],
        loads=frozenset({"plain", "stream64"}),
        required=False,
        shares_round=False,
        ready_timeout_s=60.0,
        exact_events=False,
    )


def demo(site: Site, port: int) -> Contestant:
    """The gateway with the demo plugin's model `echo` and nothing else, for the cold start."""
    config = {
        "host": "127.0.0.1",
        "port": port,
        "api-keys": [CLIENT_KEY],
        "demo": True,
    }
    path = _write_yaml(site.work_dir / "jackfield_demo" / "config.yaml", config)
    return Contestant(
        name="jackfield_demo",
        argv=[sys.executable, "-m", "host", "serve", "--config", str(path)],
        port=port,
        cwd=site.root,
    )


def check_names(names: Sequence[str]) -> None:
    """Raise BenchError for a contestant nobody knows."""
    known = (*CORE_NAMES, *PEER_NAMES)
    for name in names:
        if name not in known:
            raise BenchError(f"no contestant or part called {name!r}; contestants are {', '.join(known)}")
