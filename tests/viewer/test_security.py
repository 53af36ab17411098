"""What is turned away, and that the server goes on after it."""

import json
import socket

import pytest

from t3vis.viewer import security
from t3vis.viewer.security import MAX_BODY, cookie_name
from t3vis.viewer.serve import HOST
from tests.viewer.conftest import TOKEN, Served


def is_well(served: Served) -> bool:
    return served.ask("/api/v1/run").status == 200


def test_the_token_in_the_first_url_becomes_a_cookie(served):
    entered = served.ask(f"/?token={TOKEN}&split=train", authorization="")
    assert entered.status == 303
    assert entered.headers["location"] == "/?split=train"
    cookie = entered.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert TOKEN not in entered.headers["location"]
    with_cookie = served.ask("/api/v1/run", authorization="", cookie=cookie.partition(";")[0])
    assert with_cookie.status == 200


def test_a_redirect_never_leaves_this_server(served):
    entered = served.ask(f"//elsewhere.example/?token={TOKEN}", authorization="")
    assert entered.status == 303
    assert entered.headers["location"] == "/elsewhere.example/"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Basic {TOKEN}"},
        {"cookie": f"{cookie_name(TOKEN)}=wrong"},
        {"cookie": f"t3vis={TOKEN}"},
        {"cookie": 'broken="'},
    ],
)
@pytest.mark.parametrize("path", ["/", "/api/v1/run", "/api/v1/events", "/index.html", "/?token=wrong"])
def test_without_the_token_nothing_is_answered(served, path, headers):
    answer = served.ask(path, **{"authorization": "", **headers})
    assert answer.status == 401
    assert "token" in json.loads(answer.body)["error"]
    assert is_well(served)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[::1", "10.0.0.1"])
def test_another_name_for_this_machine_is_refused(served, host):
    answer = served.ask("/api/v1/run", host=host or " ")
    assert answer.status in (400, 421)  # 400 where the server itself finds no host in it
    assert is_well(served)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "LOCALHOST", "[::1]"])
def test_every_name_of_the_loopback_is_good(served, name):
    assert served.ask("/api/v1/run", host=f"{name}:{served.port}").status == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost"])
def test_pages_of_other_origins_are_refused(served, origin):
    assert served.ask("/api/v1/run", origin=origin).status == 403
    assert is_well(served)


def test_the_own_page_may_ask(served):
    assert served.ask("/api/v1/run", origin=served.address, sec_fetch_site="same-origin").status == 200


def test_what_a_page_of_another_site_embeds_is_refused_but_a_link_is_followed(served):
    embedded = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors"}
    assert served.ask("/api/v1/run", **embedded).status == 403
    assert served.ask("/", sec_fetch_site="cross-site", sec_fetch_mode="navigate").status != 403


@pytest.mark.parametrize(
    "path",
    [
        "/../../../../etc/passwd",
        "/..%2f..%2f..%2f..%2fetc%2fpasswd",
        "/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/..%252f..%252fetc%252fpasswd",
        "/..\\..\\etc\\passwd",
        "/%5c..%5c..%5cetc%5cpasswd",
        "/%00/etc/passwd",
        "/static/..%c0%af..%c0%afetc/passwd",
        "/app.py",
        "/../app.py",
        "/%2e%2e/app.py",
    ],
)
def test_no_path_leads_outside(served, path):
    answer = served.ask(path)
    assert answer.status in (400, 404)
    assert b"root:" not in answer.body
    assert b"import" not in answer.body
    assert is_well(served)


def test_a_split_is_no_path(served):
    assert served.ask("/api/v1/splits/..%2f..%2ftrain/columns").status == 404
    assert served.ask("/api/v1/splits/../columns").status == 404


def test_a_large_body_is_refused_whether_its_size_is_said_or_not(served):
    assert served.ask("/api/v1/run", "POST", b"x" * (MAX_BODY + 1)).status == 413
    head = f"POST /api/v1/run HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {TOKEN}\r\n"
    with socket.create_connection((HOST, served.port)) as connection:
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        chunk = b"%x\r\n%s\r\n" % (100_000, b"x" * 100_000)
        for _ in range(11):
            connection.sendall(chunk)
        connection.sendall(b"0\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413")
    assert is_well(served)


def test_a_negative_or_odd_length_is_refused(served):
    assert served.ask("/api/v1/run", content_length="-1").status in (400, 413)
    assert is_well(served)


def test_a_long_query_is_refused(served):
    assert served.ask("/api/v1/splits/train/search?q=" + "x" * 17_000).status == 414


def test_a_hundred_slow_clients_keep_nobody_waiting(served, monkeypatch):
    monkeypatch.setattr(security, "BODY_SECONDS", 0.5)
    head = f"POST /api/v1/run HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 100\r\n"
    slow = [socket.create_connection((HOST, served.port)) for _ in range(100)]
    try:
        for number, connection in enumerate(slow):
            connection.sendall((head if number % 2 else f"{head}\r\n").encode())  # half of them not even a whole head
        assert is_well(served)
        for connection in slow[::2]:
            connection.settimeout(30)
            assert connection.recv(100).startswith(b"HTTP/1.1 408")
        assert is_well(served)
    finally:
        for connection in slow:
            connection.close()
    assert is_well(served)


def test_what_is_answered_says_how_it_may_be_used(served):
    for path in ("/api/v1/run", "/api/v1/nothing", "/"):
        headers = served.ask(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


def test_methods_that_are_not_there(served):
    answer = served.ask("/api/v1/run", "DELETE")
    assert answer.status == 405
    assert "error" in json.loads(answer.body)
