"""``t3vis view`` and ``t3vis serve`` as commands: they say where they are, serve, and end when they are interrupted."""

import http.client
import re
import signal
import subprocess
import sys
from urllib.parse import urlsplit

import pytest

from t3vis.cli import main


@pytest.fixture
def browsed(tmp_path, monkeypatch):
    """A browser of the user's that writes down what it was to open."""
    script, found = tmp_path / "browser", tmp_path / "opened"
    script.write_text(f"#!/bin/sh\necho \"$1\" >> '{found}'\n")
    script.chmod(0o755)
    monkeypatch.setenv("BROWSER", f"{script} %s")
    return found


@pytest.fixture
def started(recorded_run, browsed):
    """Starts a command, and gives the process and the first line that it prints."""
    processes = []

    def start(command, *options):
        line = [sys.executable, "-m", "t3vis.cli", command, str(recorded_run), *options]
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        return process, process.stdout.readline().strip()

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def asked(address, path, **headers):
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def interrupted(process):
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert "Traceback" not in said
    return process.returncode


def test_view_opens_the_page_in_the_users_browser(started, browsed):
    _, address = started("view")
    assert asked(address, "/")[0] == 401
    assert browsed.read_text().split() == [address]


def test_view_serves_the_page_until_it_is_interrupted(started, browsed):
    process, address = started("view", "--no-browser")
    parts = urlsplit(address)
    assert parts.hostname == "127.0.0.1"
    token = parts.query.removeprefix("token=")
    status, page = asked(address, "/", Authorization=f"Bearer {token}")
    assert status == 200
    assert b"<title>t3vis" in page
    assert asked(address, f"/?{parts.query}")[0] == 303
    assert asked(address, "/")[0] == 401
    assert not browsed.exists()
    assert interrupted(process) in (0, 130)


def test_serve_serves_the_data_without_the_page(started, recorded_run):
    process, said = started("serve")
    pattern = r"(http://127\.0\.0\.1:\d+)/api/v1/run with the header Authorization: Bearer (\S+)"
    address, token = re.fullmatch(pattern, said).groups()
    status, run = asked(address, "/api/v1/run", Authorization=f"Bearer {token}")
    assert status == 200
    assert recorded_run.name.encode() in run
    assert asked(address, "/", Authorization=f"Bearer {token}")[0] == 404
    assert interrupted(process) in (0, 130)


def test_a_port_that_is_taken_is_named(started, recorded_run, capsys):
    _, address = started("serve")
    port = urlsplit(address.split()[0]).port
    assert main(["serve", str(recorded_run), "--port", str(port)]) == 1
    assert f"port {port} of 127.0.0.1 cannot be used" in capsys.readouterr().err
