"""Logs in to any OAuth 2.0 provider with your own client registration, and keeps the tokens alive.

Two ways in: the authorization code with PKCE (RFC 6749 section 4.1, RFC 7636) and the device flow (RFC 8628). The
plugin remembers nothing: what one step has to know of the one before it is in `metadata`, which the host keeps. The
host also stores the tokens, sends them upstream, and asks for new ones in time.
"""

import base64
import hashlib
import secrets
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from pluginapi import (
    AuthLoginPollRequest,
    AuthLoginPollResponse,
    AuthLoginStartRequest,
    AuthLoginStartResponse,
    AuthRefreshRequest,
    AuthRefreshResponse,
    Context,
    CredentialRecord,
    Plugin,
    PluginError,
    RegisterRequest,
    RegisterResponse,
    serve,
)

DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
SLOW_DOWN_S = 5
"""How much slower to ask from now on, each time the provider says so (RFC 8628 section 3.5)."""
AGAIN_S = 5
"""After a question that could not be answered."""
MAX_INTERVAL_S = 60


class OAuthLogin(Plugin):
    async def plugin_register(self, request: RegisterRequest) -> RegisterResponse:
        config = request.config
        device = config.get("flow") == "device"
        needed = ["provider", "client_id", "token_endpoint"]
        needed.append("device_authorization_endpoint" if device else "authorization_endpoint")
        missing = [name for name in needed if not config.get(name)]
        if missing:
            raise PluginError(f"set {', '.join(missing)}: from your client registration", http_status=400)
        return RegisterResponse(auth_provider=config["provider"])

    async def auth_login_start(self, request: AuthLoginStartRequest, ctx: Context) -> AuthLoginStartResponse:
        if self.config.get("flow") == "device":
            return await self._start_device(ctx)
        # Only whoever has the verifier can use the code: somebody who reads it off the browser cannot.
        verifier, state = secrets.token_urlsafe(64), secrets.token_urlsafe(32)
        query = {
            "response_type": "code",
            "client_id": self.config["client_id"],
            "redirect_uri": request.callback_url,
            "scope": self._scope(),
            "state": state,
            "code_challenge": _challenge(verifier),
            "code_challenge_method": "S256",
        }
        endpoint = self.config["authorization_endpoint"]
        return AuthLoginStartResponse(
            url=f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(_without_empty(query))}",
            state=state,
            metadata={"verifier": verifier, "redirect_uri": request.callback_url},
        )

    async def auth_login_poll(self, request: AuthLoginPollRequest, ctx: Context) -> AuthLoginPollResponse:
        if request.error:
            return AuthLoginPollResponse(status="error", message=request.error)
        known = request.metadata
        if "device_code" in known:
            return await self._poll_device(known, ctx)
        if not request.code:
            return AuthLoginPollResponse()
        try:
            tokens = await self._token(
                ctx,
                grant_type="authorization_code",
                code=request.code,
                redirect_uri=known["redirect_uri"],
                code_verifier=known["verifier"],
            )
        except PluginError as error:
            if not _may_pass(error):
                raise
            return AuthLoginPollResponse(poll_after_ms=AGAIN_S * 1000)
        return AuthLoginPollResponse(status="success", records=[await self._record(tokens, ctx)])

    async def auth_refresh(self, request: AuthRefreshRequest, ctx: Context) -> AuthRefreshResponse:
        stored = request.credential.storage_value()
        tokens = await self._token(ctx, grant_type="refresh_token", refresh_token=stored.get("refresh_token", ""))
        # Without a new refresh token the old one stays: what an answer leaves out is kept.
        return AuthRefreshResponse(record=CredentialRecord(metadata=_stored(tokens)))

    async def _start_device(self, ctx: Context) -> AuthLoginStartResponse:
        answer = await self._post(ctx, self.config["device_authorization_endpoint"], scope=self._scope())
        missing = [name for name in ("device_code", "user_code", "verification_uri") if not answer.get(name)]
        if missing:
            raise PluginError(f"the provider gave no {', '.join(missing)}", code="invalid_answer", http_status=502)
        interval_s, lifetime_s = _seconds(answer.get("interval"), 5), _seconds(answer.get("expires_in"), 600)
        return AuthLoginStartResponse(
            url=answer.get("verification_uri_complete") or answer["verification_uri"],
            state=secrets.token_urlsafe(32),
            user_code=answer["user_code"],
            expires_at=_rfc3339(time.time() + lifetime_s),
            poll_after_ms=round(interval_s * 1000),
            metadata={"device_code": answer["device_code"], "interval_s": interval_s},
        )

    async def _poll_device(self, known: Mapping[str, Any], ctx: Context) -> AuthLoginPollResponse:
        interval_s = known["interval_s"]
        try:
            tokens = await self._token(ctx, grant_type=DEVICE_GRANT, device_code=known["device_code"])
        except PluginError as error:
            if error.body.code == "slow_down":
                interval_s += SLOW_DOWN_S
            elif _may_pass(error):
                # Who cannot answer now is asked less often (RFC 8628 section 3.5).
                interval_s = min(MAX_INTERVAL_S, max(AGAIN_S, interval_s * 2))
            elif error.body.code != "authorization_pending":
                return AuthLoginPollResponse(status="error", message=error.body.message)
            metadata = {**known, "interval_s": interval_s}
            return AuthLoginPollResponse(poll_after_ms=round(interval_s * 1000), metadata=metadata)
        return AuthLoginPollResponse(status="success", records=[await self._record(tokens, ctx)])

    async def _record(self, tokens: Mapping[str, Any], ctx: Context) -> CredentialRecord:
        """The credential to store: under the account's name, when the provider says what that is."""
        account: dict[str, str] = {}
        if endpoint := self.config.get("userinfo_endpoint"):
            headers = {"authorization": f"Bearer {tokens['access_token']}"}
            try:
                answer = await ctx.http.do("GET", endpoint, headers=headers)
                about = answer.body.value() if answer.status == 200 and answer.body else {}
            except (PluginError, ValueError):
                # The provider gives the tokens out once: they are worth more than a name for them.
                ctx.log.warning("oauth_login.account_unknown")
                about = {}
            if isinstance(about, dict):
                account = _without_empty({"email": about.get("email"), "label": about.get("name")})
        return CredentialRecord(provider=self.config["provider"], metadata={**_stored(tokens), **account})

    async def _token(self, ctx: Context, **fields: str) -> dict[str, Any]:
        answer = await self._post(ctx, self.config["token_endpoint"], **fields)
        if not isinstance(answer.get("access_token"), str):
            raise PluginError("the token endpoint gave no access_token", code="invalid_answer", http_status=502)
        return answer

    async def _post(self, ctx: Context, url: str, **fields: str) -> dict[str, Any]:
        """One form to the provider. Its errors (RFC 6749 section 5.2) keep code and text. A refused grant is a 401 and
        nothing else is: after one the host does not ask again until somebody logs in."""
        headers = {"content-type": "application/x-www-form-urlencoded", "accept": "application/json"}
        client_id, secret = self.config["client_id"], self.config.get("client_secret")
        if secret:
            pair = f"{quote(client_id, safe='')}:{quote(secret, safe='')}"
            headers["authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        else:
            fields["client_id"] = client_id
        answer = await ctx.http.do("POST", url, headers=headers, body=urlencode(_without_empty(fields)))
        try:
            document = answer.body.value() if answer.body else {}
        except ValueError:
            document = {}
        if answer.status == 200 and isinstance(document, dict):
            return document
        code = str(document.get("error", "")) if isinstance(document, dict) else ""
        status = answer.status if 400 <= answer.status <= 599 else 502
        if code == "invalid_grant":
            status = 401
        elif status == 401:
            status = 400 if code else 502
        text = document.get("error_description") if code else None
        raise PluginError(
            text or code or f"the provider answered {answer.status}", code=code or "oauth_error", http_status=status
        )

    def _scope(self) -> str:
        return " ".join(self.config.get("scopes") or ())


def _challenge(verifier: str) -> str:
    """S256 of RFC 7636 section 4.2."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()


def _stored(tokens: Mapping[str, Any]) -> dict[str, Any]:
    """What of a token answer is kept. The host reads these names itself."""
    found = {name: tokens[name] for name in ("access_token", "refresh_token", "token_type", "scope") if name in tokens}
    if (lifetime_s := _seconds(tokens.get("expires_in"), 0)) > 0:
        found["expires_at"] = _rfc3339(time.time() + lifetime_s)
    return found


def _seconds(value: Any, default: float) -> float:
    """A time that a provider gives, which some write as a text."""
    try:
        return max(0.0, float(value))
    except (TypeError, ValueError):
        return default


def _may_pass(error: PluginError) -> bool:
    """Whether the same question may be answered later: the provider is away, or has too much to do."""
    return error.body.http_status == 429 or error.body.http_status >= 500


def _rfc3339(moment_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment_s))


def _without_empty(fields: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in fields.items() if value}


if __name__ == "__main__":
    serve(OAuthLogin)
