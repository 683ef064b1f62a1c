"""Logging in and out, refreshing, changing passwords; and what guessing is worth."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import bcrypt
import jwt
import pytest

from agentlightning.platform.auth import passwords, repository
from agentlightning.platform.auth.passwords import PasswordHasher
from agentlightning.platform.auth.repository import user_named
from tests.unit.platform.site import PASSWORD, bearer, error_code


def profile(site, token):
    return site.client.get("/auth/profile", headers=bearer(token))


def refresh(site, token):
    return site.client.post("/auth/refresh", json={"refresh_token": token})


def test_a_login_answers_in_the_envelope_and_at_the_top_level(site):
    name = site.add_user("developer")
    body = site.login(name.upper())
    assert body["success"] is True
    assert set(body) >= {"success", "data", "message", "timestamp", "request_id", "access_token", "refresh_token"}
    assert body["data"]["access_token"] == body["access_token"]
    assert body["data"]["user"]["username"] == name
    assert "password" not in str(body["data"]["user"]).replace("must_change_password", "")


def test_the_token_has_the_documented_claims(site):
    name = site.add_user("user")
    token = site.login(name)["access_token"]
    header, claims = jwt.get_unverified_header(token), jwt.decode(token, options={"verify_signature": False})
    assert (header["alg"], header["typ"], header["kid"]) == ("HS256", "JWT", "k1")
    assert claims["user_id"].startswith("user_")
    assert (claims["username"], claims["role"], claims["iss"]) == (name, "user", "agent-lightning")
    assert claims["permissions"] == ["agent:read", "agent:assign", "knowledge:read", "workflow:read"]
    assert claims["exp"] - claims["iat"] == site.settings.access_token_s


def test_the_profile_is_ones_own(site):
    name = site.add_user("user")
    data = profile(site, site.login(name)["access_token"]).json()["data"]
    assert (data["username"], data["role"], data["disabled"]) == (name, "user", False)
    assert "password_hash" not in data


@pytest.mark.parametrize(
    "password", ["", "wrong", PASSWORD + " ", "x" * 1000, "\0", PASSWORD + "\0", "ü" * 40, "\ud800"]
)
def test_a_wrong_password_is_refused(site, password):
    raw = b'{"username": "%s", "password": "%s"}' % (
        site.add_user().encode(),
        password.encode("unicode_escape").replace(b"\\x", b"\\u00"),
    )
    answer = site.client.post("/auth/login", content=raw, headers={"Content-Type": "application/json"})
    assert error_code(answer) == ("VALIDATION_FAILED" if not password or password == "\ud800" else "LOGIN_FAILED")
    if password:
        assert answer.status_code in (401, 422)


def test_unknown_disabled_and_wrong_answer_alike(site):
    known, disabled = site.add_user(), site.add_user(disabled=True)
    answers = [
        site.client.post("/auth/login", json={"username": name, "password": password})
        for name, password in ((known, "wrong"), ("nobody-of-that-name", PASSWORD), (disabled, PASSWORD))
    ]
    assert {answer.status_code for answer in answers} == {401}
    assert len({str(answer.json()["error"]) for answer in answers}) == 1


@pytest.mark.parametrize("name", ["' OR 1=1 --", 'x" OR ""="', "admin'/*", "%", "*", "a" * 255])
def test_a12_names_are_not_sql(site, name):
    answer = site.client.post("/auth/login", json={"username": name, "password": PASSWORD})
    assert error_code(answer) == "LOGIN_FAILED"


def test_a13_fields_that_nobody_asked_for_are_refused(site):
    name = site.add_user()
    body = {"username": name, "password": PASSWORD, "role": "admin"}
    assert error_code(site.client.post("/auth/login", json=body)) == "VALIDATION_FAILED"


def test_a32_references_in_a_request_stay_text(site):
    answer = site.client.post("/auth/login", json={"username": "os.environ/HOME", "password": "file:///etc/passwd"})
    assert error_code(answer) == "LOGIN_FAILED"
    assert "root:" not in answer.text


def test_validation_does_not_repeat_what_was_sent(site):
    answer = site.client.post("/auth/login", json={"username": ["canary-value"], "password": {"canary-key": "canary"}})
    assert error_code(answer) == "VALIDATION_FAILED"
    assert "canary-value" not in answer.text
    assert {problem["where"] for problem in answer.json()["error"]["details"]["problems"]} >= {"body.username"}


def test_a9_logout_ends_both_tokens_at_once(site):
    made = site.login(site.add_user())
    other = site.login(made["data"]["user"]["username"])
    assert site.client.post("/auth/logout", headers=bearer(made["access_token"])).status_code == 200
    assert error_code(profile(site, made["access_token"])) == "TOKEN_INVALID"
    assert error_code(refresh(site, made["refresh_token"])) == "TOKEN_INVALID"
    assert profile(site, other["access_token"]).status_code == 200, "another login goes on"


def test_a10_a_refresh_token_is_good_once_and_a_copy_ends_the_login(site):
    first = site.login(site.add_user())
    second = refresh(site, first["refresh_token"]).json()
    assert profile(site, second["access_token"]).status_code == 200
    assert error_code(refresh(site, first["refresh_token"])) == "TOKEN_INVALID"
    for token in (first["access_token"], second["access_token"]):
        assert profile(site, token).status_code == 401
    assert refresh(site, second["refresh_token"]).status_code == 401


def test_a10_of_two_refreshes_at_the_same_moment_one_gets_tokens(site):
    made = site.login(site.add_user())
    barrier = threading.Barrier(4)

    def turn(_: int) -> int:
        barrier.wait()
        return refresh(site, made["refresh_token"]).status_code

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(turn, range(4))) == [200, 401, 401, 401]


def test_a10_an_access_token_does_not_refresh(site):
    made = site.login(site.add_user())
    assert error_code(refresh(site, made["access_token"])) == "TOKEN_INVALID"
    assert profile(site, made["access_token"]).status_code == 200, "and nothing is revoked by trying"


def test_a11_tokens_with_a_common_beginning_are_told_apart(site):
    name = site.add_user()
    one, other = site.login(name)["access_token"], site.login(name)["access_token"]
    assert one[:60] == other[:60]
    assert site.client.post("/auth/logout", headers=bearer(one)).status_code == 200
    assert profile(site, other).status_code == 200


def test_a9_a_new_password_ends_all_logins(site):
    name = site.add_user()
    one, other = site.login(name), site.login(name)
    body = {"current_password": PASSWORD, "new_password": "five other unrelated words"}
    assert site.client.put("/auth/password", headers=bearer(one["access_token"]), json=body).status_code == 200
    for made in (one, other):
        assert profile(site, made["access_token"]).status_code == 401
        assert refresh(site, made["refresh_token"]).status_code == 401
    assert site.client.post("/auth/login", json={"username": name, "password": PASSWORD}).status_code == 401
    site.login(name, "five other unrelated words")


def test_a15_a_new_password_needs_the_old_one(site):
    made = site.login(site.add_user())
    body = {"current_password": "wrong", "new_password": "five other unrelated words"}
    answer = site.client.put("/auth/password", headers=bearer(made["access_token"]), json=body)
    assert error_code(answer) == "LOGIN_FAILED"
    assert profile(site, made["access_token"]).status_code == 200


@pytest.mark.parametrize(
    "new", ["short", "aaaaaaaaaaaaaaaa", "passwordpassword", "é" * 37, PASSWORD, "nul in here\0 somewhere"]
)
def test_a_bad_new_password_is_refused(site, new):
    made = site.login(site.add_user())
    body = {"current_password": PASSWORD, "new_password": new}
    answer = site.client.put("/auth/password", headers=bearer(made["access_token"]), json=body)
    assert error_code(answer) == "BAD_INPUT"


class Work:
    """What bcrypt is given to do, in blocks of 2^rounds."""

    def __init__(self, monkeypatch):
        self.done = 0
        for name in ("checkpw", "hashpw"):
            monkeypatch.setattr(passwords.bcrypt, name, self._counting(getattr(passwords.bcrypt, name)))

    def _counting(self, real):
        def counted(password, hashed):
            self.done += 2 ** int(hashed.split(b"$")[2])
            return real(password, hashed)

        return counted


def test_a14_a_refused_login_costs_the_same_whoever_is_named(site, monkeypatch):
    monkeypatch.setattr(passwords, "ROUNDS", 6)
    known = [bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(rounds)).decode() for rounds in (4, 5, 6)]
    hasher = PasswordHasher()
    work = Work(monkeypatch)
    costs = []
    for password in ("wrong", "x" * 100, "nul\0", ""):
        for hashed in (None, *known):
            work.done = 0
            assert not site.run(hasher.verify(password, hashed))
            costs.append(work.done)
    hasher.close()
    assert set(costs) == {2**6}


def test_a_hash_with_fewer_rounds_is_made_anew_at_the_next_login(site, monkeypatch):
    monkeypatch.setattr(passwords, "ROUNDS", 5)
    name = site.add_user(password_hash=bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode())

    def log_in(_: int) -> int:
        return site.client.post("/auth/login", json={"username": name, "password": PASSWORD}).status_code

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(log_in, range(4))) == {200}

    async def kept() -> str:
        async with site.platform.database.read() as session:
            return (await user_named(session, name)).password_hash

    assert site.run(kept()).startswith("$2b$05$")
    assert site.client.post("/auth/login", json={"username": name, "password": "wrong"}).status_code == 401
    site.login(name)


def test_a14_guessing_locks_the_account_whatever_header_is_sent(make_site):
    site = make_site(login_attempts=5, login_attempts_per_address=1000)
    name = site.add_user()
    codes = []
    for number in range(8):
        answer = site.client.post(
            "/auth/login",
            json={"username": name.upper() if number % 2 else name, "password": "wrong"},
            headers={"X-Forwarded-For": f"203.0.113.{number}", "X-Real-IP": f"203.0.113.{number}"},
        )
        codes.append(error_code(answer))
    assert codes == ["LOGIN_FAILED"] * 5 + ["LOGIN_LOCKED"] * 3
    assert answer.status_code == 429
    assert 0 < int(answer.headers["retry-after"]) <= 900
    right = site.client.post("/auth/login", json={"username": name, "password": PASSWORD})
    assert error_code(right) == "LOGIN_LOCKED", "or the lock would tell when the guess was right"
    site.login(site.add_user())


def test_a14_guesses_at_the_same_moment_are_counted_before_they_are_checked(make_site):
    site = make_site(login_attempts=3)
    name = site.add_user()

    def guess(_: int) -> int:
        return site.client.post("/auth/login", json={"username": name, "password": "wrong"}).status_code

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(guess, range(12))) == [401] * 3 + [429] * 9


def test_a14_many_names_from_one_address_are_locked_too(make_site):
    site = make_site(login_attempts_per_address=4)
    codes = [
        site.client.post("/auth/login", json={"username": f"nobody{number}", "password": "wrong"}).status_code
        for number in range(6)
    ]
    assert codes == [401] * 4 + [429] * 2


def test_a14_one_address_cannot_lock_others_out_but_many_are_stopped(make_site):
    site = make_site(login_attempts=2, login_attempts_per_account=6, trusted_proxies="127.0.0.0/8")
    name = site.add_user()

    def log_in(password: str, address: str) -> int:
        body = {"username": name, "password": password}
        return site.client.post("/auth/login", json=body, headers={"X-Forwarded-For": address}).status_code

    assert [log_in("wrong", "198.51.100.1") for _ in range(9)] == [401] * 2 + [429] * 7
    assert log_in(PASSWORD, "198.51.100.2") == 200
    spread = [log_in("wrong", f"198.51.100.{number}") for number in range(10, 17)]
    assert spread == [401] * 4 + [429] * 3
    assert log_in(PASSWORD, "198.51.100.2") == 429


def test_right_logins_do_not_count(make_site):
    site = make_site(login_attempts=2, login_attempts_per_address=2)
    name = site.add_user()
    for _ in range(4):
        site.client.post("/auth/login", json={"username": name, "password": "wrong"})
        break
    for _ in range(3):
        site.login(name)


def test_a_trusted_proxy_is_believed(make_site):
    site = make_site(login_attempts_per_address=2, trusted_proxies="127.0.0.0/8")

    def guess(forwarded: str) -> int:
        body = {"username": f"nobody-{time.time_ns()}", "password": "wrong"}
        return site.client.post("/auth/login", json=body, headers={"X-Forwarded-For": forwarded}).status_code

    assert [guess("198.51.100.7") for _ in range(3)] == [401, 401, 429]
    assert guess("198.51.100.8") == 401
    assert guess("203.0.113.99, 198.51.100.7") == 429, "what the client wrote before the proxy's own is not believed"


def test_a_login_ends_after_its_time(make_site):
    site = make_site(session_s=2, refresh_token_s=2, access_token_s=1)
    made = site.login(site.add_user())
    time.sleep(2.1)
    assert error_code(profile(site, made["access_token"])) == "TOKEN_INVALID"
    assert error_code(refresh(site, made["refresh_token"])) == "TOKEN_INVALID"


def test_keys_rotate(make_site):
    old, new = "k1:" + "0123456789abcdef" * 4, "k2:" + "fedcba9876543210" * 4
    first = make_site(jwt_secrets=old)
    made = first.login(first.add_user("user", "rotating"))
    shared = {"DATABASE_URL": first.settings.location}
    if first.settings.redis_url is not None:
        shared["REDIS_URL"] = first.settings.redis_url.get_secret_value()
    both = make_site(jwt_secrets=f"{new},{old}", **shared)
    assert profile(both, made["access_token"]).status_code == 200
    again = refresh(both, made["refresh_token"]).json()
    assert jwt.get_unverified_header(again["access_token"])["kid"] == "k2"
    without = make_site(jwt_secrets=new, **shared)
    assert profile(without, again["access_token"]).status_code == 200
    assert profile(without, made["access_token"]).status_code == 401


def test_who_is_connected_stays_while_the_login_holds(site):
    """With a shared cache the login's key there is enough for a while; the database has the last word."""
    platform, asked = site.platform, []

    async def still(who, original=platform.tickets.still):
        asked.append(who.user_id)
        return await original(who)

    def standing():
        token = site.login(site.add_user())["access_token"]
        who = site.run(platform.identifier.identify(token))
        found = platform.tickets.standing(who)
        found._tickets = SimpleNamespace(still=still)
        assert site.run(found.holds())
        return token, who, found

    is_shared = platform.cache.kind == "redis"
    token, _, leaving = standing()
    before = len(asked)
    assert [site.run(leaving.holds()) for _ in range(3)] == [True] * 3
    assert len(asked) - before == (0 if is_shared else 3)
    assert site.client.post("/auth/logout", headers=bearer(token)).status_code == 200
    assert site.run(leaving.holds()) is False

    _, who, unnoticed = standing()

    async def end() -> None:
        async with platform.database.write() as session:
            await repository.end_login(session, who.session_id, "and the cache misses it")

    site.run(end())
    assert site.run(unnoticed.holds()) is is_shared
    unnoticed._sure_until = 0.0
    assert site.run(unnoticed.holds()) is False
