"""Other names for models: per credential, per provider, and the model lists of API keys (spec credentials 3)."""

from collections.abc import Iterable, Sequence
from dataclasses import replace as of_rule
from typing import Final

from msgspec.structs import replace

from host.credentials.records import AliasRule
from host.registry.models import ModelRow, canonical
from host.registry.suffix import split_suffix
from pluginabi.payloads.common import ModelInfo

NO_ALIASES: Final[tuple[AliasRule, ...]] = ()
_GEMINI_PREFIX: Final = "models/"


def sanitised(rules: Iterable[AliasRule]) -> tuple[AliasRule, ...]:
    """The rules that can have an effect: both names there and different; of one alias the first."""
    found: dict[str, AliasRule] = {}
    for rule in rules:
        name, alias = rule.name.strip(), rule.alias.strip()
        if name and alias and name.lower() != alias.lower():
            shown = rule.display_name.strip()
            found.setdefault(alias.lower(), of_rule(rule, name=name, alias=alias, display_name=shown))
    return tuple(found.values())


def merged(own: Sequence[AliasRule], common: Sequence[AliasRule]) -> tuple[AliasRule, ...]:
    """A credential's own rules, then those of its provider under further aliases. Both are sanitised."""
    known = {rule.alias.lower() for rule in own}
    return (*own, *(rule for rule in common if rule.alias.lower() not in known))


def renamed(infos: Iterable[ModelInfo], rules: Sequence[AliasRule]) -> tuple[ModelRow, ...]:
    """The models as clients see them: an aliased one only under its aliases, unless one of its rules says `fork`.

    Where an alias is the name of another model, requests for it go to the alias's, whichever is listed first; what
    lists show of it stays.
    """
    by_alias = {rule.alias.lower(): rule for rule in rules}
    by_name: dict[str, list[AliasRule]] = {}
    for rule in rules:
        by_name.setdefault(canonical(rule.name), []).append(rule)
    rows: dict[str, ModelRow] = {}
    for info in infos:
        name = info.id.lower()
        found = by_name.get(name, ())
        if (hiding := by_alias.get(name)) is not None:
            rows[name] = of_rule(_aliased(info, hiding), client=info.id, info=info)
        elif not found or any(rule.fork for rule in found):
            rows.setdefault(name, ModelRow(client=info.id, upstreams=(info.id,), info=info))
        for rule in found:
            rows.setdefault(rule.alias.lower(), _aliased(info, rule))
    return tuple(rows.values())


def aliased_names(rules: Sequence[AliasRule]) -> tuple[ModelRow, ...]:
    """The aliases of a credential that lists no models: it knows its models by pattern only."""
    return tuple(_aliased(ModelInfo(id=split_suffix(rule.name)[0]), rule) for rule in rules)


def _aliased(info: ModelInfo, rule: AliasRule) -> ModelRow:
    name = f"{_GEMINI_PREFIX}{rule.alias}" if info.name.startswith(_GEMINI_PREFIX) else info.name and rule.alias
    shown = replace(info, id=rule.alias, name=name, display_name=rule.display_name or info.display_name)
    return ModelRow(client=rule.alias, upstreams=(rule.name,), info=shown, force_mapping=rule.force_mapping)
