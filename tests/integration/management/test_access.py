"""Who reaches the management API, over real sockets."""

from pathlib import Path

import aiohttp
import pytest
import structlog

from host.management.secret import matches
from tests.support.management import KEY, STORED, Api, managed_proxy
from tests.support.proxy import running_proxy


async def test_the_key_in_three_ways_and_the_headers_of_every_answer(directory: Path) -> None:
    async with managed_proxy(directory) as managed:
        api = managed.api
        for headers in ({"Authorization": f"Bearer {KEY}"}, {"Authorization": KEY}, {"X-Management-Key": KEY}):
            assert (await api.get("/plugins", headers=headers)).status == 200
        refused = [await api.get("/plugins", headers={"X-Management-Key": "nonsense"}), await api.get("/no-such-thing")]
        assert [answer.status for answer in refused] == [401, 404]
        for answer in refused:
            assert answer.headers["X-Jackfield-Version"]
            assert answer.headers["X-Jackfield-Support-Plugin"] == "1"
            assert answer.headers["Cache-Control"] == "no-store"
            assert "Access-Control-Allow-Origin" not in answer.headers
        assert (await api.call("OPTIONS", "/plugins", headers={})).status == 401


async def test_J5_without_a_key_there_is_nothing_and_a_plain_404_like_any_other(directory: Path) -> None:
    async with managed_proxy(directory, remote={"secret-key": ""}) as managed:
        here = await managed.api.get("/plugins")
        elsewhere = await managed.api.get("/nowhere", below="")
        assert (here.status, here.body) == (elsewhere.status, elsewhere.body) == (404, b"")
        assert {*here.headers} == {*elsewhere.headers}


async def test_J1_the_fifth_failure_bans_the_address_whatever_comes_then(directory: Path) -> None:
    async with managed_proxy(directory) as managed:
        wrong = {"Authorization": "Bearer wrong-key"}
        assert [(await managed.api.get("/plugins", headers=wrong)).status for _ in range(5)] == [401] * 5
        banned = await managed.api.get("/plugins")
        assert banned.status == 403
        assert banned.json["error"].startswith("IP banned due to too many failed attempts. Try again in ")


async def test_a_web_page_of_another_host_is_refused_and_cannot_get_anybody_banned(directory: Path) -> None:
    async with managed_proxy(directory) as managed:
        for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
            for _ in range(6):
                assert (await managed.api.get("/plugins", headers=headers)).status == 403
        assert (await managed.api.get("/plugins")).status == 200
        forwarded = {**managed.api.headers, "X-Forwarded-For": "9.9.9.9"}
        refused = await managed.api.get("/plugins", headers=forwarded)
        assert refused.error == (403, "remote management disabled")


async def test_a_plain_key_in_the_file_is_hashed_at_the_start_and_when_it_is_changed(directory: Path) -> None:
    async with managed_proxy(directory, remote={"secret-key": KEY}) as managed:
        assert (await managed.api.get("/plugins")).status == 200
        hashed = managed.file.read_text()
        assert KEY not in hashed and "$argon2id$" in hashed
        managed.file.write_text(hashed.replace("secret-key:", "secret-key: another-key-now #"))
        await managed.running.reload()
        assert "another-key-now" not in managed.file.read_text()
        assert matches("another-key-now", managed.running.proxy.config.remote_management.secret_key)
        assert (await managed.api.get("/plugins")).status == 401
        assert (await managed.api.get("/plugins", headers={"Authorization": "another-key-now"})).status == 200


async def test_a_listener_of_its_own_serves_the_api_and_the_main_one_does_not(directory: Path) -> None:
    async with managed_proxy(directory, remote={"listen": "127.0.0.1:0"}) as managed:
        assert managed.api.base != managed.running.url
        assert (await managed.api.get("/plugins")).status == 200
        assert (await managed.api.get("/v1/models", below="")).status == 404
        main = Api(managed.running.url, managed.api.session)
        assert (await main.get("/plugins")).status == 404
        assert (await main.get("/v1/models", below="")).status == 200


async def test_a_unix_socket_is_for_its_user_and_still_wants_the_key(directory: Path) -> None:
    async with managed_proxy(directory, remote={"listen": "unix:m.sock"}):
        socket = directory / "m.sock"
        assert socket.stat().st_mode & 0o777 == 0o600
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket))) as session:
            api = Api("http://localhost", session)
            assert (await api.get("/plugins")).status == 200
            assert (await api.get("/plugins", headers={})).error == (401, "missing management key")
    assert not socket.exists()


async def test_a_file_in_the_place_of_the_socket_is_not_removed(directory: Path) -> None:
    (directory / "m.sock").write_text("precious")
    config = f"port: 0\nremote-management: {{listen: 'unix:m.sock', secret-key: '{STORED}'}}\n"
    with pytest.raises(Exception, match=r"cannot listen on unix:m\.sock"):
        async with running_proxy(config, directory=directory):
            pass
    assert (directory / "m.sock").read_text() == "precious"


async def test_every_write_and_every_refusal_is_a_line_in_the_log(directory: Path) -> None:
    async with managed_proxy(directory) as managed:
        with structlog.testing.capture_logs() as lines:
            await managed.api.get("/plugins")
            await managed.api.call("PATCH", "/plugins/x/enabled?token=abcdefghijkl", json={"enabled": False})
            await managed.api.call("PUT", "/plugins/x/config", data=b"{")
            await managed.api.get("/plugins", headers={"Authorization": "wrong-key"})
        audit = [line for line in lines if line["event"].startswith("management.")]
        assert [(line["event"], line["method"], line["status"]) for line in audit] == [
            ("management.write", "PATCH", 200),
            ("management.write", "PUT", 400),
            ("management.refused", "GET", 401),
        ]
        assert (audit[0]["caller"], audit[0]["client"]) == ("key", "127.0.0.1")
        assert audit[0]["path"] == "/plugins/x/enabled?token=abcd...ijkl"
        assert KEY not in str(lines) and "wrong-key" not in str(lines)


@pytest.mark.parametrize(
    ("body", "headers"),
    [(b"{", {}), (b"[]", {}), (b"\xff", {}), (b'{"enabled": 1}', {}), (b"{}", {}), (b'{"enabled":true,"x":1}', {})],
)
async def test_a_body_that_is_not_what_the_endpoint_takes_is_400(
    directory: Path, body: bytes, headers: dict[str, str]
) -> None:
    async with managed_proxy(directory) as managed:
        answer = await managed.api.call("PATCH", "/plugins/x/enabled", data=body)
        assert answer.error == (400, "invalid_body")
