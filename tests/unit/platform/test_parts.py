"""The parts by themselves: settings, secrets, encryption, passwords, cache, limits, addresses."""

import asyncio
import json
import secrets as random
import stat
import time

import pytest
from starlette.datastructures import Headers

from agentlightning.kit.errors import BadInputError, ConfigError, StorageError
from agentlightning.platform.auth.passwords import PasswordHasher, check_new_password, one_time_password
from agentlightning.platform.auth.tokens import InvalidTokenError, Tokens
from agentlightning.platform.cache import MemoryCache, RedisCache, RedisLink
from agentlightning.platform.crypto import Vault
from agentlightning.platform.limits import MemoryLimiter, RedisLimiter
from agentlightning.platform.origins import Addresses
from agentlightning.platform.outage import Probe
from agentlightning.platform.secrets import load_secrets, parse_keys
from agentlightning.platform.settings import load_settings
from tests.unit.platform.site import settings_for

GOOD = "0123456789abcdef" * 4


def test_secrets_are_made_once_and_are_private(tmp_path):
    first = load_secrets(settings_for(tmp_path))
    assert load_secrets(settings_for(tmp_path)) == first
    path = tmp_path / "secrets.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(next(iter(first.jwt.values()))) == 64
    assert next(iter(first.jwt.values())) not in repr(first)
    other = load_secrets(settings_for(tmp_path / "other"))
    assert other.jwt != first.jwt


def test_given_secrets_leave_no_file(tmp_path):
    found = load_secrets(settings_for(tmp_path, jwt_secrets=f"a:{GOOD}", secret_key=GOOD))
    assert found.jwt == {"a": GOOD}
    assert not (tmp_path / "secrets.json").exists()


def test_a_file_that_others_read_is_refused(tmp_path):
    load_secrets(settings_for(tmp_path))
    (tmp_path / "secrets.json").chmod(0o644)
    with pytest.raises(ConfigError, match="other users"):
        load_secrets(settings_for(tmp_path))


@pytest.mark.parametrize("content", ["", "{}", "[]", json.dumps({"jwt_secrets": f"a:{GOOD}"})])
def test_a_damaged_file_is_said(tmp_path, content):
    load_secrets(settings_for(tmp_path))
    (tmp_path / "secrets.json").write_text(content)
    with pytest.raises(StorageError, match="damaged"):
        load_secrets(settings_for(tmp_path))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "k1:",
        "k1",
        f"k 1:{GOOD}",
        f"../k:{GOOD}",
        f"k1:{GOOD},k1:{GOOD[::-1]}",
        "k1:short",
        "k1:" + "a" * 64,
        "k1:" + "abab" * 16,
        "k1:your-256-bit-secret-change-me-please",
        "k1:supersecretkey-supersecretkey-supersecretkey",
        "k1:agent-lightning-jwt-secret-2026-11-21",
        f"k1:{GOOD},k2:secret",
    ],
)
def test_a6_weak_secrets_do_not_start(tmp_path, text):
    with pytest.raises(ConfigError) as caught:
        load_secrets(settings_for(tmp_path, jwt_secrets=text, secret_key=GOOD))
    assert GOOD not in str(caught.value)


def test_a6_a_weak_storage_key_does_not_start(tmp_path):
    with pytest.raises(ConfigError, match="AGL_SECRET_KEY"):
        load_secrets(settings_for(tmp_path, jwt_secrets=f"a:{GOOD}", secret_key="password"))


def test_what_is_generated_is_never_refused():
    for _ in range(2000):
        parse_keys(f"k:{random.token_hex(32)}")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cors_origins", "*"),
        ("cors_origins", "https://*.example"),
        ("cors_origins", "app.example"),
        ("allowed_hosts", "*"),
        ("allowed_hosts", "host:80"),
        ("trusted_proxies", "everybody"),
        ("access_token_s", "0"),
        ("jwt_secrets", ["canary"]),
    ],
)
def test_settings_that_cannot_be_meant(name, value):
    with pytest.raises(ConfigError) as caught:
        load_settings(**{name: value})
    assert "canary" not in str(caught.value)


def test_settings_come_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("AGL_HOME", str(tmp_path))
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:canary@host/db")
    monkeypatch.setenv("AGL_TRUSTED_PROXIES", "10.0.0.0/8, 192.168.0.1")
    monkeypatch.setenv("AGL_JWT_SECRETS", f"a:{GOOD}")
    found = load_settings()
    assert (found.home, found.trusted_proxies) == (tmp_path, ("10.0.0.0/8", "192.168.0.1/32"))
    assert found.location == "postgresql://u:canary@host/db"
    assert "canary" not in repr(found)
    assert GOOD not in repr(found)


def test_what_is_stored_encrypted_comes_back_in_its_place_only():
    vault = Vault(GOOD)
    sealed = vault.encrypt("s3cret ü", "tools/1/token")
    assert "s3cret" not in sealed
    assert sealed != vault.encrypt("s3cret ü", "tools/1/token")
    assert vault.decrypt(sealed, "tools/1/token") == "s3cret ü"
    for bad in (sealed[:-4] + "AAAA", sealed[3:], "v1.", "v1.AAAA", "v1.*", ""):
        with pytest.raises(StorageError):
            vault.decrypt(bad, "tools/1/token")
    with pytest.raises(StorageError):
        vault.decrypt(sealed, "tools/2/token")
    with pytest.raises(StorageError):
        Vault(GOOD[::-1]).decrypt(sealed, "tools/1/token")


async def test_passwords_are_hashed_with_twelve_rounds(full_rounds):
    hasher = PasswordHasher()
    hashed = await hasher.hash("ﬁve unrelated words")
    assert hashed.startswith("$2b$12$")
    assert await hasher.verify("five unrelated words", hashed), "one password however it is typed"
    assert not await hasher.verify("five unrelated word", hashed)
    assert not await hasher.verify("x" * 100, None)
    hasher.close()


def test_a_long_password_is_not_cut():
    with pytest.raises(BadInputError, match="72 bytes"):
        check_new_password("abcdefghij" * 8, "me")


def test_one_time_passwords_are_good_ones():
    made = {one_time_password() for _ in range(100)}
    assert len(made) == 100
    for password in made:
        check_new_password(password, "admin")


@pytest.mark.parametrize("password", ["adminadmin123", "Password123456", "bob.smith-bob.smith", "ab" * 10])
def test_passwords_that_are_guessed_first(password):
    with pytest.raises(BadInputError):
        check_new_password(password, "bob.smith")


@pytest.fixture(params=["memory", "redis"])
async def link(request):
    if request.param == "memory":
        yield None
        return
    found = RedisLink(request.getfixturevalue("shared_redis").url)
    await found.client.flushdb()
    yield found
    await found.close()


async def test_a_cache_keeps_for_a_while(link):
    cache = MemoryCache() if link is None else RedisCache(link)
    await cache.set("one", b"1", 60)
    await cache.set("short", b"2", 0.05)
    await cache.set("over", b"3", -1)
    assert await cache.get("one") == b"1"
    await asyncio.sleep(0.1)
    assert await cache.get("short") is None
    assert await cache.get("over") is None
    await cache.delete("one", "never there")
    await cache.delete()
    assert await cache.get("one") is None
    assert await cache.state() == "up"


async def test_a38_a_cache_in_memory_is_bounded():
    cache = MemoryCache(max_entries=10)
    for number in range(100):
        await cache.set(str(number), b"", 60)
    assert len(cache._kept) == 10
    assert await cache.get("99") is not None
    await cache.close()


async def test_a_limit_slides(link):
    limiter = MemoryLimiter() if link is None else RedisLimiter(link)
    verdicts = [await limiter.hit("me", 3, 0.4) for _ in range(5)]
    assert [verdict.allowed for verdict in verdicts] == [True, True, True, False, False]
    assert [verdict.remaining for verdict in verdicts] == [2, 1, 0, 0, 0]
    assert 0 < verdicts[-1].reset_s <= 0.4
    assert "Retry-After" in verdicts[-1].headers
    assert "Retry-After" not in verdicts[0].headers
    assert (await limiter.hit("you", 3, 0.4)).allowed
    await asyncio.sleep(0.5)
    assert (await limiter.hit("me", 3, 0.4)).remaining == 2


async def test_what_was_counted_can_be_taken_back(link):
    limiter = MemoryLimiter() if link is None else RedisLimiter(link)
    first = await limiter.hit("me", 1, 60)
    assert not (await limiter.hit("me", 1, 60)).allowed
    await limiter.undo("me", first.name)
    await limiter.undo("nobody", "nothing")
    assert (await limiter.hit("me", 1, 60)).allowed
    await limiter.forget("me")
    assert (await limiter.hit("me", 1, 60)).allowed


async def test_many_at_once_do_not_get_more(link):
    limiter = MemoryLimiter() if link is None else RedisLimiter(link)
    verdicts = await asyncio.gather(*(limiter.hit("all", 7, 60) for _ in range(60)))
    assert sum(verdict.allowed for verdict in verdicts) == 7


async def test_a38_limits_in_memory_are_bounded():
    limiter = MemoryLimiter(max_keys=10)
    for number in range(100):
        await limiter.hit(str(number), 1, 60)
    assert len(limiter._times) == 10


async def test_without_redis_each_worker_counts_for_itself_and_says_so(own_redis, caplog):
    link = RedisLink(own_redis.url)
    cache, limiter = RedisCache(link), RedisLimiter(link)
    await cache.set("one", b"1", 60)
    own_redis.stop()
    assert await cache.get("one") is None
    await cache.set("two", b"2", 60)
    assert await cache.state() == "down"
    assert [(await limiter.hit("me", 2, 60)).allowed for _ in range(3)] == [True, True, False]
    assert "Redis does not answer" in caplog.text
    own_redis.start()
    deadline = time.monotonic() + 120
    while await cache.state() == "down" and time.monotonic() < deadline:  # noqa: ASYNC110 - it is asked
        await asyncio.sleep(0.1)
    assert await cache.state() == "up"
    assert (await limiter.hit("me", 2, 60)).remaining == 1
    await cache.close()


async def test_a_redis_that_comes_back_empty_unlocks_nobody(own_redis):
    link = RedisLink(own_redis.url)
    limiter = RedisLimiter(link)

    async def attempts(key: str, count: int) -> list[bool]:
        return [(await limiter.hit(key, 3, 60, is_lock=True)).allowed for _ in range(count)]

    assert await attempts("locked", 4) == [True, True, True, False]
    right = await limiter.hit("right", 3, 60, is_lock=True)
    await limiter.undo("right", right.name)
    own_redis.stop()
    assert await attempts("locked", 1) == [False]
    assert await attempts("right", 4) == [True, True, True, False]
    assert link.outage.since is not None
    assert link.outage.reason
    own_redis.start()
    deadline = time.monotonic() + 60
    while (await RedisCache(link).state()) == "down" and time.monotonic() < deadline:  # noqa: ASYNC110 - it is asked
        await asyncio.sleep(0.1)
    assert link.outage.since is None
    assert await attempts("locked", 1) == await attempts("right", 1) == [False]
    assert await attempts("new", 4) == [True, True, True, False]
    await link.close()


async def test_a_probe_asks_one_question_at_a_time():
    asked = 0
    answer = asyncio.Event()

    async def ask() -> None:
        nonlocal asked
        asked += 1
        await answer.wait()

    probe = Probe(ask)
    problems = await asyncio.gather(*(probe.problem(0.05) for _ in range(5)))
    assert [type(problem) for problem in problems] == [TimeoutError] * 5
    assert asked == 1
    answer.set()
    assert await probe.problem(5) is None
    assert await probe.problem(5) is None
    assert asked == 2
    answer.clear()
    await probe.problem(0.01)
    await probe.close()


@pytest.mark.parametrize(
    ("trusted", "peer", "forwarded", "expected"),
    [
        ([], "9.9.9.9", "1.1.1.1", "9.9.9.9"),
        (["10.0.0.0/8"], "9.9.9.9", "1.1.1.1", "9.9.9.9"),
        (["10.0.0.0/8"], "10.0.0.1", "1.1.1.1", "1.1.1.1"),
        (["10.0.0.0/8"], "10.0.0.1", "6.6.6.6, 1.1.1.1, 10.0.0.2", "1.1.1.1"),
        (["10.0.0.0/8"], "10.0.0.1", "nonsense", "10.0.0.1"),
        (["10.0.0.0/8"], "10.0.0.1", "", "10.0.0.1"),
        (["10.0.0.0/8"], "10.0.0.1", "10.0.0.3", "10.0.0.3"),
        ([], "2001:db8:1:2:3::4", "", "2001:db8:1:2::"),
        ([], "::ffff:9.9.9.9", "", "9.9.9.9"),
        ([], "/a/socket", "", "unknown"),
    ],
)
def test_whose_address_counts(trusted, peer, forwarded, expected):
    headers = Headers({"x-forwarded-for": forwarded} if forwarded else {})
    assert Addresses(trusted).of(peer, headers) == expected


def signed(tokens: Tokens, kind="access", ttl_s=900.0):
    return tokens.sign(kind, user_id=7, username="u", role="user", session_id="s", token_id="t", ttl_s=ttl_s)


def test_a_token_that_was_verified_is_checked_for_everything_that_changes(monkeypatch):
    tokens = Tokens({"a": random.token_hex(32)})
    token = signed(tokens)
    assert tokens.read(token, "access") == tokens.read(token, "access")
    with pytest.raises(InvalidTokenError, match="not valid"):
        tokens.read(token, "refresh")  # another kind, also when it is known
    head, body, mark = token.split(".")
    for forged in (f"{head}.{body}.{'A' * len(mark)}", f"{head}.{body}.", f"{head}.{body[:-2]}AA.{mark}", token + "A"):
        with pytest.raises(InvalidTokenError, match="not valid"):
            tokens.read(forged, "access")
    with pytest.raises(InvalidTokenError, match="not valid"):
        Tokens({"a": random.token_hex(32)}).read(token, "access")  # other secrets know nothing of it
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 900)
    with pytest.raises(InvalidTokenError, match="expired"):
        tokens.read(token, "access")


def test_a38_tokens_that_are_remembered_are_bounded(monkeypatch):
    monkeypatch.setattr("agentlightning.platform.auth.tokens._MAX_VERIFIED", 3)
    tokens = Tokens({"a": random.token_hex(32)})
    some = [signed(tokens, ttl_s=900 + number) for number in range(5)]
    for token in [*some, *some]:
        assert tokens.read(token, "access").user_id == 7
    assert len(tokens._verified) == 3
