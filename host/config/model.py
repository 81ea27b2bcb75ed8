"""The operator's configuration as one frozen tree. Keys in the file are kebab-case; durations carry a unit."""

import os.path
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal, TypeAlias

from msgspec import Meta, Struct, field

DEFAULT_PORT: Final = 8317
DEFAULT_HOST: Final = "127.0.0.1"
MAX_WEIGHT: Final = 1_000_000

Duration: TypeAlias = str | int | float
"""`500ms`, `10s`, `5m`, `1h`; a bare number is seconds. Parsed by `host.config.values.seconds`."""


class Section(Struct, frozen=True, kw_only=True, rename="kebab"):
    """Base of all sections: the same name in Python with underscores, in the file with dashes."""


class ApiKey(Section, frozen=True, kw_only=True):
    """A client key. In the file a string, or `{key, name}`; the name is what logs and usage show."""

    key: str
    name: str = ""


class Tls(Section, frozen=True, kw_only=True):
    """HTTPS for the listener."""

    enable: bool = False
    cert: str = ""
    key: str = ""


class Streaming(Section, frozen=True, kw_only=True):
    """Streams to clients."""

    keepalive_seconds: int = 0
    bootstrap_retries: int = 0
    buffer_handshake: bool = False
    """Hold back what comes before the answer itself: a failure after it is still nobody's but the credential's."""


class ClientAuth(Section, frozen=True, kw_only=True):
    """How a refused client is answered: in its family's error shape, or as a bare string (`legacy`)."""

    error_envelope: Literal["family", "legacy"] = "family"


class SizeLimits(Section, frozen=True, kw_only=True):
    """Bytes; larger bodies are refused with 413."""

    request_body: int = 256 * 1024 * 1024
    decoded_body: int = 256 * 1024 * 1024


class Timeouts(Section, frozen=True, kw_only=True):
    """Of upstream calls; there is no total limit."""

    connect: Duration = "10s"
    first_byte: Duration = "600s"
    idle: Duration = "300s"


class Routing(Section, frozen=True, kw_only=True):
    """How a credential is chosen when no scheduler plugin decides."""

    strategy: Literal[
        "",
        "round-robin",
        "roundrobin",
        "rr",
        "weighted-round-robin",
        "weightedroundrobin",
        "wrr",
        "fill-first",
        "fillfirst",
        "ff",
    ] = "round-robin"
    session_affinity: bool = False
    """Keep the requests of one session on one credential while that is free."""
    session_affinity_ttl: Duration = "1h"
    """How long a session is remembered after its last request."""
    provider_state: Literal["required", "preferred", "ignored"] = "required"
    """A request that refers to something only one account can read (`previous_response_id`, `encrypted_content`) goes
    to the credential that made it: always, while that is free, or not at all."""


class ModelAliasEntry(Section, frozen=True, kw_only=True):
    """A model of an account (`name`) under another name; with `fork` under both."""

    name: str = ""
    alias: str = ""
    fork: bool = False
    display_name: str = ""
    """What lists show beside the alias."""
    force_mapping: bool = False
    """Answers name the model as the client did, not as the upstream does."""


class ErrorRuleEntry(Section, frozen=True, kw_only=True):
    """What an upstream's error means: by its status, and where texts or patterns are given, by one of them."""

    status: int
    action: Literal["stop", "stop-and-cooldown", "continue", "continue-and-cooldown"]
    match: Sequence[str] = ()
    """Texts in message or body, in any case."""
    match_regexr: Sequence[str] = ()
    """Regular expressions."""


class ModelEntry(Section, frozen=True, kw_only=True):
    """A provider's model (`name`) under the name clients use (`alias`, default: the same)."""

    name: str
    alias: str = ""
    display_name: str = ""
    """What lists show beside the name that clients use."""
    image: bool = False
    thinking: Mapping[str, Any] | None = None
    max_context_length: int | None = None
    """Tokens, for lists; absent: what the provider's plugin knows."""
    input_modalities: Sequence[str] = ()
    """`text`, `image`, …; for lists."""
    output_modalities: Sequence[str] = ()
    force_mapping: bool = False
    """Answers name the model as the client did, not as the upstream does."""


class ProviderKey(Section, frozen=True, kw_only=True):
    """One API key of a provider: an item of `gemini-api-key`, `claude-api-key`, `codex-api-key` or `vertex-api-key`."""

    api_key: str = ""
    priority: int = 0
    weight: int | None = None
    prefix: str = ""
    base_url: str = ""
    proxy_url: str = ""
    models: Sequence[ModelEntry] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    excluded_models: Sequence[str] = ()
    disable_cooling: bool | None = None
    """Absent: as the configuration says as a whole; `false` cools down whatever that says."""
    request_retry: int | None = None
    """Absent: as the configuration says as a whole."""
    request_scoped_errors: Sequence[ErrorRuleEntry] = ()
    websockets: bool = False
    rebuild_mid_system_message: bool = False
    cloak: Mapping[str, Any] | None = None
    experimental_cch_signing: bool = False


class CompatKey(Section, frozen=True, kw_only=True):
    """One key of an OpenAI-compatible provider."""

    api_key: str = ""
    proxy_url: str = ""
    weight: int | None = None


class CompatProvider(Section, frozen=True, kw_only=True):
    """An OpenAI-compatible provider; its provider key is `openai-compatible-<lower-case name>`."""

    name: str
    base_url: str = ""
    priority: int = 0
    disabled: bool = False
    prefix: str = ""
    api_key_entries: Sequence[CompatKey] = ()
    models: Sequence[ModelEntry] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    responses: bool = False
    """The upstream also speaks the Responses API at `<base-url>/responses`."""
    disable_cooling: bool | None = None
    request_retry: int | None = None
    request_scoped_errors: Sequence[ErrorRuleEntry] = ()


class PluginPolicyLimits(Section, frozen=True, kw_only=True):
    """Limits of one plugin process; absent: the manifest's."""

    memory_mb: int | None = None
    max_inflight: int | None = None
    open_files: int | None = None


class PluginShadow(Section, frozen=True, kw_only=True):
    """Another version of the plugin that gets copies of its calls; its answers are compared and never used."""

    dir: str = ""
    """Folder with its `plugin.toml`; relative to the config file. Empty: no shadow."""
    sample: float = 1.0
    """Share of the requests whose calls are copied, 0 to 1."""
    timeout: Duration = 0
    """For its answers; 0: what the plugin itself is given for the method."""


class PluginPolicy(Section, frozen=True, kw_only=True):
    """`plugins.policy.<id>`: what the operator allows. Never shown to the plugin, never writable over HTTP."""

    runtime: Literal["", "inprocess", "process"] = ""
    permissions: Sequence[str] = ()
    http_hosts: Sequence[str] = ()
    environment: Mapping[str, str] | Sequence[str] = ()
    """Names passed on from the host's environment, or a map of name to value."""
    instances: int = 1
    limits: PluginPolicyLimits = field(default_factory=PluginPolicyLimits)
    timeouts: Mapping[str, Duration] = field(default_factory=dict)
    on_error: Mapping[str, Literal["fail", "skip"]] = field(default_factory=dict)
    confinement: Literal["auto", "required", "off"] = "auto"
    """Of its process by the kernel: what there is; all of it, or it does not start; none."""
    read_paths: Sequence[str] = ()
    """Files and directories that its confined process may read beside its own folder."""
    shadow: PluginShadow = field(default_factory=PluginShadow)


class PluginSection(Section, frozen=True, kw_only=True):
    """`plugins.configs.<id>`: the plugin's own section; `enabled` and `priority` belong to the host."""

    enabled: bool = False
    priority: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)
    """The section without the host's keys, as plain values; `{env: …}` and `{file: …}` not yet resolved."""
    config_yaml: str = ""
    """The section as the operator wrote it."""


class Plugins(Section, frozen=True, kw_only=True):
    """Plugins beside the bundled ones."""

    enabled: bool = False
    dir: str = "plugins"
    store_sources: Sequence[str] = ()
    """Registries that `jackfield plugins search|install|upgrade` look in: URLs, or files."""
    configs: Mapping[str, PluginSection] = field(default_factory=dict)
    policy: Mapping[str, PluginPolicy] = field(default_factory=dict)
    upgrade_drain: Duration = "15m"
    ping_interval: Duration = "1s"
    ping_unresponsive: Duration = "3s"
    ping_kill: Duration = "10s"
    hello_timeout: Duration = "10s"


class State(Section, frozen=True, kw_only=True):
    """What outlives a request: cooldowns, plugins' key-value pairs, limits. One node keeps it itself, several share."""

    url: str = ""
    """Redis or Valkey: `redis://[user:password@]host:port/db`, `rediss://…`, `unix://path`. Empty: this node alone."""
    ca_file: str = ""
    """With `rediss://`: who may sign the server's certificate (PEM); empty: whom the system trusts."""
    prefix: str = "jackfield"
    """Of every key on the server; nodes with the same one share."""
    timeout: Duration = "500ms"
    """How long one command may take before the server counts as away."""
    file: str = "state.bin"
    """Without `url`: where it is kept over restarts, beside the configuration file; empty: nowhere."""


class RemoteManagement(Section, frozen=True, kw_only=True):
    """The management API under `/v0/management`; off without a key."""

    listen: str = ""
    """`127.0.0.1:8318`, `[::1]:8318`, a port, or `unix:path`: a listener of its own. Empty: the main listener."""
    allow_remote: bool = False
    """Serve other machines than this one."""
    api_call: bool = False
    """Serve `/api-call`: requests of the operator's choice, made by the proxy."""
    secret_key: str = ""
    """The key, or its Argon2 or bcrypt hash; a plain one is replaced by its hash in the file."""


class Config(Section, frozen=True, kw_only=True):
    """Everything of `config.yaml` that has an effect. A running request keeps the one it started with."""

    host: str = DEFAULT_HOST
    port: Annotated[int, Meta(ge=0, le=65535)] = DEFAULT_PORT
    """0: any free one."""
    tls: Tls = field(default_factory=Tls)
    debug: bool = False
    api_keys: Sequence[ApiKey] = ()
    client_auth: ClientAuth = field(default_factory=ClientAuth)
    trusted_proxies: Sequence[str] = ()
    proxy_url: str = ""
    upstream_ca_file: str = ""
    """PEM file of certificate authorities that upstreams may use besides the system's."""
    passthrough_headers: bool = False
    streaming: Streaming = field(default_factory=Streaming)
    nonstream_keepalive_interval: int = 0
    limits: SizeLimits = field(default_factory=SizeLimits)
    timeouts: Timeouts = field(default_factory=Timeouts)
    shutdown_timeout: Duration = "30s"
    workers: int = 1
    """Processes that serve the port together and share state (`state.url`, or a local server started with them)."""
    decision_trace: bool = True
    logging_to_file: bool = False
    """Write the log into `logs/` beside the configuration as well."""
    logs_max_total_size_mb: int = 0
    """Of all log files together; 0: no limit, one file."""
    usage_statistics_enabled: bool = False
    """Keep usage records for `/usage-queue` of the management API, and for the state server."""
    redis_usage_queue_retention_seconds: int = 60
    """How long a record waits there for somebody to fetch it; at most an hour."""
    server_timing: bool = False
    """Say in a `Server-Timing` header how long each plugin and the host took until the first byte."""
    auth_dir: str = "auths"
    auth_dir_subfolders: bool = False
    """Read the credential files of folders below `auth-dir` too; their names are their paths in it, `team/a.json`."""
    auth_auto_refresh_workers: int = 0
    """How many tokens are refreshed at the same time; 0: 16."""
    auth_refresh_disabled: bool = True
    """Whether tokens of disabled credentials are refreshed too, so that they can be switched on again."""
    routing: Routing = field(default_factory=Routing)
    request_retry: int = 0
    max_retry_credentials: int = 0
    max_retry_interval: Duration = 0
    disable_cooling: bool = False
    transient_error_cooldown_seconds: int = 0
    save_cooldown_status: bool = False
    """Keep cooldowns over a restart, in `.cds` files in `auth-dir`."""
    oauth_model_alias: Mapping[str, Sequence[ModelAliasEntry]] = field(default_factory=dict)
    """Provider to aliases, for accounts (not for API keys, which have `models`)."""
    oauth_request_scoped_errors: Mapping[str, Sequence[ErrorRuleEntry]] = field(default_factory=dict)
    force_model_prefix: bool = False
    gemini_api_key: Sequence[ProviderKey] = ()
    claude_api_key: Sequence[ProviderKey] = ()
    codex_api_key: Sequence[ProviderKey] = ()
    """Keys of the provider `codex`; served when a plugin executes that provider."""
    vertex_api_key: Sequence[ProviderKey] = ()
    """Keys of the provider `vertex`; served when a plugin executes that provider."""
    openai_compatibility: Sequence[CompatProvider] = ()
    oauth_excluded_models: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Provider key -> patterns of models that no credential file of the provider serves."""
    plugins: Plugins = field(default_factory=Plugins)
    state: State = field(default_factory=State)
    remote_management: RemoteManagement = field(default_factory=RemoteManagement)
    demo: bool = False
    """Run the embedded demo (model `echo` and `demo-*`); `make run` switches it on."""
    directory: str = ""
    """Where the file lies; relative paths in it start here. Not a key of the file."""


def config_path(config: Config, path: str) -> str:
    """`path` as an absolute path: relative ones start at the directory of the config file, `~` is the home."""
    return os.path.normpath(os.path.join(config.directory or os.getcwd(), os.path.expanduser(path)))
