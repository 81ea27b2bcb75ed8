"""How credentials are chosen, rest and are tried again: what the configuration says, worked out once."""

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from host.config.model import Config
from host.config.values import seconds
from host.credentials.classify import TRANSIENT_COOLDOWN_S
from host.credentials.records import Credential
from host.credentials.select import STRATEGIES, Strategy

ProviderStateRule: TypeAlias = Literal["required", "preferred", "ignored"]
MIN_AFFINITY_TTL_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingPolicy:
    """Of one configuration; a request keeps the one it started with."""

    strategy: Strategy = "round-robin"
    transient_s: float = TRANSIENT_COOLDOWN_S
    """How long a credential rests after a passing failure; 0: not at all."""
    cooling_disabled: bool = False
    rounds: int = 0
    """How many further rounds a credential takes part in, where it does not say so itself."""
    max_credentials: int = 0
    """Credentials that one round may try; 0: all."""
    max_wait_s: float = 0.0
    """The longest wait before a round."""
    affinity_ttl_s: float = 0.0
    """How long a session keeps its credential after its last request; 0: sessions do not matter."""
    provider_state: ProviderStateRule = "required"

    @property
    def by_weight(self) -> bool:
        """Whether credentials without a weight are left out."""
        return self.strategy == "weighted-round-robin"

    def cools(self, credential: Credential) -> bool:
        """Whether failures set the credential aside."""
        own = credential.disable_cooling
        return not (self.cooling_disabled if own is None else own)

    def rounds_of(self, credential: Credential) -> int:
        """The number of the last round that the credential takes part in."""
        own = credential.request_retry
        return self.rounds if own is None or own < 0 else own


def policy_of(config: Config) -> RoutingPolicy:
    """The policy that a configuration describes."""
    wanted = config.transient_error_cooldown_seconds
    routing = config.routing
    return RoutingPolicy(
        strategy=STRATEGIES[routing.strategy.strip().lower()],
        transient_s=TRANSIENT_COOLDOWN_S if wanted == 0 else max(0.0, float(wanted)),
        cooling_disabled=config.disable_cooling,
        rounds=max(0, config.request_retry),
        max_credentials=max(0, config.max_retry_credentials),
        max_wait_s=seconds(config.max_retry_interval),
        affinity_ttl_s=max(MIN_AFFINITY_TTL_S, seconds(routing.session_affinity_ttl))
        if routing.session_affinity
        else 0,
        provider_state=routing.provider_state,
    )
