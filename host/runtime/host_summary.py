"""What plugins may know of the configuration."""

from host.config.model import Config, config_path
from pluginabi.payloads.common import HostSummary, ModelAlias


def host_summary(config: Config) -> HostSummary:
    """What plugins of credentials and models may know of the configuration."""
    return HostSummary(
        auth_dir=config_path(config, config.auth_dir),
        proxy_url=config.proxy_url,
        force_model_prefix=config.force_model_prefix,
        oauth_model_alias={
            name.strip().lower(): [
                ModelAlias(name=it.name, alias=it.alias) for it in rules if it.name.strip() and it.alias.strip()
            ]
            for name, rules in config.oauth_model_alias.items()
            if name.strip()
        },
        excluded_models={
            name.strip().lower(): found for name, found in config.oauth_excluded_models.items() if name.strip()
        },
    )
