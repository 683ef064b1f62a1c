"""`agl up` and `agl platform`, as processes: what somebody meets who types them for the first time."""

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

AGL = [sys.executable, "-m", "agentlightning.cli.main"]


def surroundings(**more: str) -> dict[str, str]:
    ours = ("DATABASE_URL", "REDIS_URL")
    kept = {name: value for name, value in os.environ.items() if name not in ours and not name.startswith("AGL_")}
    return {**kept, "PYTHONUNBUFFERED": "1", **more}


def agl(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*AGL, *arguments], capture_output=True, text=True, timeout=60, env=surroundings(**more))


class Up:
    """`agl up` on a free port."""

    def __init__(self, home: Path, **more: str) -> None:
        command = [*AGL, "up", "--port", "0", "--home", str(home)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=surroundings(**more))
        assert self.process.stdout is not None
        timer = threading.Timer(60, self.process.kill)
        timer.start()
        self.greeting = self.process.stdout.readline()
        timer.cancel()
        found = re.search(r"listening on (\S+)", self.greeting)
        if not found:
            self.process.kill()
            self.process.communicate()
        assert found, self.greeting
        self.url = found[1]

    def stop(self) -> str:
        """What else it said."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(60) == 0
        assert self.process.stdout is not None
        with self.process.stdout as stream:  # communicate() would lose what readline() has read ahead
            rest = stream.read()
        return rest


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def test_from_nothing_to_a_login_and_again(home):
    first = Up(home)
    assert httpx.get(f"{first.url}/docs", timeout=30).status_code == 200
    assert httpx.get(f"{first.url}/api/v2/health", timeout=30).json()["data"]["status"] == "ok"
    said = first.stop()
    password = re.search(r"one-time password: (\S+)", said)
    assert password, said
    second = Up(home)
    body = {"username": "admin", "password": password[1]}
    token = httpx.post(f"{second.url}/auth/login", json=body, timeout=30).json()["access_token"]
    headers = {"Authorization": f"Bearer {token}"}
    assert httpx.get(f"{second.url}/api/v2/users", headers=headers, timeout=30).status_code == 403
    change = {"current_password": password[1], "new_password": "five other unrelated words"}
    assert httpx.put(f"{second.url}/auth/password", headers=headers, json=change, timeout=30).status_code == 200
    made = agl("platform", "reset-password", "admin", "--home", str(home))
    assert made.returncode == 0, made.stderr
    body["password"] = made.stdout.split()[-1]
    assert httpx.post(f"{second.url}/auth/login", json=body, timeout=30).status_code == 200
    assert "one-time password" not in second.stop()


def test_a16_there_is_no_way_without_a_login(home):
    running = Up(home)
    for path in ("/api/v2/users", "/auth/profile", "/metrics", "/api/v2/audit"):
        assert httpx.get(running.url + path, timeout=30).status_code == 401
    running.stop()
    assert "--open" not in agl("up", "--help").stdout


@pytest.mark.parametrize("secret", ["k1:changeme", "secret", f"k1:{'a' * 64}"])
def test_a6_a_weak_secret_does_not_start(home, secret):
    done = agl("up", "--home", str(home), AGL_JWT_SECRETS=secret)
    assert done.returncode == 1
    assert "openssl rand -hex 32" in done.stderr
    assert "Traceback" not in done.stderr


def test_tables_are_made_and_made_again(home):
    assert "no tables -> version" in agl("platform", "migrate", "--home", str(home)).stdout
    again = agl("platform", "migrate", "--home", str(home))
    assert (again.returncode, "->" in again.stdout) == (0, False)


def test_who_is_not_there_gets_no_password(home):
    agl("platform", "migrate", "--home", str(home))
    done = agl("platform", "reset-password", "nobody", "--home", str(home))
    assert done.returncode == 1
    assert "nobody" in done.stderr


def test_a_password_cannot_be_reset_without_tables(home):
    done = agl("platform", "reset-password", "admin", "--home", str(home))
    assert "agl platform migrate" in done.stderr


@pytest.mark.slow
def test_a_taken_port_is_said(home):
    running = Up(home)
    port = running.url.rpartition(":")[2]
    done = agl("up", "--port", port, "--home", str(home))
    assert done.returncode == 1
    assert f"Port {port}" in done.stderr
    running.stop()


@pytest.mark.slow
def test_the_first_admin_without_agl_up(home):
    agl("platform", "migrate", "--home", str(home))
    made = agl("platform", "create-admin", "me", "--home", str(home))
    assert made.returncode == 0, made.stderr
    assert "one-time password" in made.stdout
    again = agl("platform", "create-admin", "ME", "--home", str(home))
    assert (again.returncode, "of that name" in again.stderr) == (1, True)
    assert agl("platform", "create-admin", "a b", "--home", str(home)).returncode == 1
    running = Up(home)
    body = {"username": "me", "password": made.stdout.split()[-1]}
    assert httpx.post(f"{running.url}/auth/login", json=body, timeout=30).status_code == 200
    assert "one-time password" not in running.stop()


@pytest.mark.slow
def test_a_kept_key_configures_a_model_and_is_never_shown(home):
    plain = "sk-of-the-provider-0123456789"
    told = subprocess.run(
        [*AGL, "platform", "secrets", "set", "OPENAI_API_KEY", "--stdin", "--home", str(home)],
        input=plain + "\n",
        capture_output=True,
        text=True,
        timeout=120,
        env=surroundings(),
    )
    assert told.returncode == 0, told.stderr
    listed = agl("platform", "secrets", "list", "--home", str(home))
    assert "OPENAI_API_KEY" in listed.stdout
    files = b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())
    assert plain.encode() not in files
    up = Up(home)
    rest = up.stop()
    assert "all other models: https://api.openai.com/v1" in rest
    wrong = agl("up", "--port", "0", "--home", str(home), AGL_SECRET_KEY="0f1e2d3c4b5a6978" * 4)
    assert wrong.returncode != 0
    assert "secrets rotate" in wrong.stderr
    gone = agl("platform", "secrets", "delete", "OPENAI_API_KEY", "--home", str(home))
    assert gone.returncode == 0, gone.stderr
    for said in (told, listed, wrong, gone):
        assert plain not in said.stdout + said.stderr + rest
