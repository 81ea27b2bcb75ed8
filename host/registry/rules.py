"""What the configuration says about the models of credentials that are no API keys."""

from host.config.model import Config
from host.credentials.records import AliasRule
from host.registry.aliases import sanitised
from host.registry.groups import ModelRules


def model_rules(config: Config) -> ModelRules:
    """Aliases by provider key; entries that can have no effect are left out."""
    aliases = {
        channel.strip().lower(): rules
        for channel, entries in config.oauth_model_alias.items()
        if channel.strip()
        and (
            rules := sanitised(
                AliasRule(
                    name=it.name,
                    alias=it.alias,
                    fork=it.fork,
                    display_name=it.display_name,
                    force_mapping=it.force_mapping,
                )
                for it in entries
            )
        )
    }
    return ModelRules(aliases=aliases)
