"""Users, API keys and the audit log, and what somebody else's number is worth."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select, text

from agentlightning.platform.auth.models import ApiKey, User
from tests.unit.platform.site import PASSWORD, bearer, error_code

USERS, KEYS, AUDIT = "/api/v2/users", "/api/v2/api-keys", "/api/v2/audit"
LOGIN_ONLY = [
    ("GET", KEYS),
    ("POST", KEYS),
    ("DELETE", f"{KEYS}/1"),
    ("PUT", "/auth/password"),
    ("POST", "/auth/logout"),
]


@pytest.fixture(scope="module")
def admin(site):
    return site.headers("admin")


def create(site, admin, **body):
    body.setdefault("username", f"made-{time.time_ns()}")
    return site.client.post(USERS, headers=admin, json=body)


def test_a_user_is_made_with_a_one_time_password(site, admin):
    answer = create(site, admin, role="developer")
    data = answer.json()["data"]
    assert (answer.status_code, data["role"], data["must_change_password"]) == (201, "developer", True)
    token = site.login(data["username"], data["one_time_password"])["access_token"]
    assert error_code(site.client.get("/auth/profile", headers=bearer(token))) == "PASSWORD_CHANGE_REQUIRED"
    body = {"current_password": data["one_time_password"], "new_password": "five other unrelated words"}
    assert site.client.put("/auth/password", headers=bearer(token), json=body).status_code == 200
    token = site.login(data["username"], "five other unrelated words")["access_token"]
    assert site.client.get("/auth/profile", headers=bearer(token)).status_code == 200
    seen = site.client.get(f"{USERS}/{data['user_id']}", headers=admin)
    assert "one_time_password" not in seen.json()["data"]


def test_a_user_is_made_with_a_password(site, admin):
    data = create(site, admin, username="  John.Doe ", password=PASSWORD).json()["data"]
    assert (data["username"], data["role"], data["one_time_password"]) == ("john.doe", "user", None)
    site.login("John.Doe")
    assert error_code(create(site, admin, username="JOHN.DOE", password=PASSWORD)) == "CONFLICT"


@pytest.mark.parametrize(
    "body",
    [
        {"role": "root"},
        {"role": "*"},
        {"username": "a"},
        {"username": "x" * 65},
        {"username": "a b"},
        {"username": "\uff41dmin"},
        {"username": "../../etc"},
        {"username": "<script>"},
        {"permissions": ["*"]},
        {"id": 1},
        {"password": ""},
    ],
)
def test_a13_users_that_cannot_be_made(site, admin, body):
    assert error_code(create(site, admin, **body)) == "VALIDATION_FAILED"


def test_users_are_listed_in_pages(site, admin):
    for _ in range(3):
        site.add_user()
    first = site.client.get(USERS, headers=admin, params={"limit": 2}).json()["data"]
    assert len(first["users"]) == 2
    after, seen = first["next"], [user["user_id"] for user in first["users"]]
    while after is not None:
        page = site.client.get(USERS, headers=admin, params={"limit": 2, "after": after}).json()["data"]
        seen += [user["user_id"] for user in page["users"]]
        after = page["next"]
    assert len(seen) == len(set(seen)) >= 4
    assert "hash" not in str(first)


@pytest.mark.parametrize(
    "params", [{"limit": 0}, {"limit": 501}, {"after": -1}, {"after": "1;DROP"}, {"limit": "9" * 40}]
)
def test_a12_pages_that_cannot_be_meant(site, admin, params):
    assert error_code(site.client.get(USERS, headers=admin, params=params)) == "VALIDATION_FAILED"


@pytest.mark.parametrize(
    "number", ["0", "-1", "user_", "user_0", "1 OR 1=1", "٣", "9" * 19, "9" * 40, "user_user_1", "1.0"]
)
@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
def test_numbers_of_nobody(site, admin, method, number):
    body = {"disabled": True} if method == "PATCH" else None
    assert error_code(site.client.request(method, f"{USERS}/{number}", headers=admin, json=body)) == "NOT_FOUND"


@pytest.mark.parametrize("change", [{"role": "user"}, {"disabled": True}, {"reset_password": True}])
def test_a9_what_is_taken_away_ends_logins_at_once(site, admin, change):
    made = site.login(site.add_user("developer"))
    number = made["data"]["user"]["user_id"]
    answer = site.client.patch(f"{USERS}/{number}", headers=admin, json=change)
    assert answer.status_code == 200
    assert site.client.get("/auth/profile", headers=bearer(made["access_token"])).status_code == 401
    again = site.client.post("/auth/refresh", json={"refresh_token": made["refresh_token"]})
    assert again.status_code == 401
    if "role" in change:
        name = made["data"]["user"]["username"]
        assert site.login(name)["data"]["user"]["permissions"][0] == "agent:read"


def test_a8_a_deleted_user_is_nobody_and_its_number_is_not_given_again(site, admin):
    made = site.login(site.add_user())
    number = made["data"]["user"]["user_id"]
    headers = bearer(made["access_token"])
    key = site.client.post(KEYS, headers=headers, json={"name": "k"}).json()["data"]["key"]
    assert site.client.delete(f"{USERS}/{number}", headers=admin).status_code == 200
    for sent in (headers, bearer(key)):
        assert site.client.get("/auth/profile", headers=sent).status_code == 401
    assert error_code(site.client.get(f"{USERS}/{number}", headers=admin)) == "NOT_FOUND"
    assert create(site, admin).json()["data"]["user_id"] != number


def test_nothing_to_change_and_fields_of_others(site, admin):
    number = site.login(site.add_user())["data"]["user"]["user_id"]
    assert error_code(site.client.patch(f"{USERS}/{number}", headers=admin, json={})) == "BAD_INPUT"
    for body in (
        {"password_hash": "x"},
        {"username": "other"},
        {"must_change_password": False},
        {"reset_password": False},
    ):
        assert error_code(site.client.patch(f"{USERS}/{number}", headers=admin, json=body)) == "VALIDATION_FAILED"


def test_the_last_admin_stays(make_site):
    site = make_site()
    one = site.login(site.add_user("admin"))
    number, headers = one["data"]["user"]["user_id"], bearer(one["access_token"])
    site.add_user("admin", disabled=True)
    for answer in (
        site.client.patch(f"{USERS}/{number}", headers=headers, json={"role": "developer"}),
        site.client.patch(f"{USERS}/{number}", headers=headers, json={"disabled": True}),
        site.client.delete(f"{USERS}/{number}", headers=headers),
    ):
        assert (answer.status_code, error_code(answer)) == (409, "CONFLICT")
    assert site.client.get("/auth/profile", headers=headers).status_code == 200
    site.add_user("admin")
    assert site.client.delete(f"{USERS}/{number}", headers=headers).status_code == 200


def test_two_admins_who_remove_each_other_at_the_same_moment(make_site):
    site = make_site()
    for _ in range(3):
        pair = [site.login(site.add_user("admin")) for _ in range(2)]
        others = [pair[1], pair[0]]

        def remove(pairing):
            me, other = pairing
            path = f"{USERS}/{other['data']['user']['user_id']}"
            return site.client.delete(path, headers=bearer(me["access_token"])).status_code

        with ThreadPoolExecutor(2) as pool:
            codes = sorted(pool.map(remove, zip(pair, others, strict=True)))
        assert codes[0] == 200
        assert codes[1] in (200, 401, 409), "only the very last one is refused, and nobody meets a deadlock"

        async def admins():
            async with site.platform.database.read() as session:
                query = select(User.id).where(User.role == "admin", User.disabled.is_(False))
                return len(list((await session.execute(query)).scalars()))

        assert site.run(admins()) >= 1


def test_an_api_key_is_shown_once_and_kept_as_a_hash(site):
    headers = site.headers("developer")
    answer = site.client.post(KEYS, headers=headers, json={"name": "ci"})
    data = answer.json()["data"]
    key = data["key"]
    assert answer.status_code == 201
    assert key.startswith("agl_")
    assert len(key) >= 4 + 43, "256 bits"
    for sent in ({"X-API-Key": key}, bearer(key)):
        profile = site.client.get("/auth/profile", headers=sent).json()["data"]
        assert profile["role"] == "developer"
    listed = site.client.get(KEYS, headers=headers)
    assert key not in listed.text
    assert [(item["name"], item["prefix"]) for item in listed.json()["data"]] == [("ci", key[:12])]
    assert listed.json()["data"][0]["used_at"] is not None

    async def kept():
        async with site.platform.database.read() as session:
            return (await session.execute(select(ApiKey).where(ApiKey.id == data["id"]))).scalar_one()

    assert key not in str(vars(site.run(kept())))


@pytest.mark.parametrize("method", ["query", "cookie"])
def test_a5_a_key_elsewhere_is_no_key(site, method):
    key = site.client.post(KEYS, headers=site.headers(), json={"name": "k"}).json()["data"]["key"]
    sent = {"params": {"api_key": key, "key": key}} if method == "query" else {"headers": {"Cookie": f"api_key={key}"}}
    assert site.client.get("/auth/profile", **sent).status_code == 401


def test_a_key_may_not_do_what_needs_a_login(site):
    headers = site.headers("admin")
    made = site.client.post(KEYS, headers=headers, json={"name": "k"}).json()["data"]
    sent = {"X-API-Key": made["key"]}
    assert site.client.get(USERS, headers=sent).status_code == 200
    for method, path in LOGIN_ONLY:
        assert error_code(site.client.request(method, path, headers=sent)) == "FORBIDDEN"


def test_a_key_with_few_permissions_may_little(site):
    headers = site.headers("admin")
    made = site.client.post(KEYS, headers=headers, json={"name": "k", "permissions": ["system:read"]}).json()["data"]
    sent = {"X-API-Key": made["key"]}
    assert site.client.get("/metrics", headers=sent).status_code == 200
    assert site.client.get(USERS, headers=sent).status_code == 403
    assert site.client.get("/auth/profile", headers=sent).json()["data"]["permissions"] == ["system:read"]


@pytest.mark.parametrize("permissions", [["*"], ["user:write"], ["agent:*"], ["agent:read", "rl:*"]])
def test_a_key_never_has_more_than_its_user(site, permissions):
    answer = site.client.post(KEYS, headers=site.headers("user"), json={"name": "k", "permissions": permissions})
    assert error_code(answer) == "BAD_INPUT"


def test_a_key_loses_what_its_user_loses(site, admin):
    made = site.login(site.add_user("developer"))
    body = {"name": "k", "permissions": ["system:read"]}
    key = site.client.post(KEYS, headers=bearer(made["access_token"]), json=body).json()["data"]["key"]
    sent = {"X-API-Key": key}
    assert site.client.get("/metrics", headers=sent).status_code == 200
    number = made["data"]["user"]["user_id"]
    site.client.patch(f"{USERS}/{number}", headers=admin, json={"role": "user"})
    assert site.client.get("/metrics", headers=sent).status_code == 403
    site.client.patch(f"{USERS}/{number}", headers=admin, json={"disabled": True})
    assert site.client.get("/auth/profile", headers=sent).status_code == 401


def test_keys_expire_and_can_be_removed(site):
    headers = site.headers()
    short = site.client.post(KEYS, headers=headers, json={"name": "k", "expires_in_s": 1}).json()["data"]
    other = site.client.post(KEYS, headers=headers, json={"name": "k", "expires_in_s": 1000}).json()["data"]
    time.sleep(1.1)
    assert site.client.get("/auth/profile", headers={"X-API-Key": short["key"]}).status_code == 401
    assert site.client.get("/auth/profile", headers={"X-API-Key": other["key"]}).status_code == 200
    assert site.client.delete(f"{KEYS}/{other['id']}", headers=headers).status_code == 200
    assert site.client.get("/auth/profile", headers={"X-API-Key": other["key"]}).status_code == 401


@pytest.mark.parametrize("key", ["agl_", "agl_x", "agl_' OR 1=1 --", "agl_%", "agl_\xff"])
def test_a12_keys_that_are_none(site, key):
    assert site.client.get("/auth/profile", headers={"X-API-Key": key.encode("latin-1")}).status_code == 401


def test_a17_somebody_elses_key_is_not_there(site):
    mine, theirs = site.headers(), site.headers("admin")
    made = site.client.post(KEYS, headers=mine, json={"name": "k"}).json()["data"]
    for number in (made["id"], 999_999, "x", "9" * 19, "9" * 30, "0"):
        assert error_code(site.client.delete(f"{KEYS}/{number}", headers=theirs)) == "NOT_FOUND"
    assert site.client.get("/auth/profile", headers={"X-API-Key": made["key"]}).status_code == 200


def test_nobody_has_very_many_keys(site, monkeypatch):
    monkeypatch.setattr("agentlightning.platform.auth.keys.MAX_KEYS", 2)
    headers = site.headers()
    answers = [site.client.post(KEYS, headers=headers, json={"name": "k"}).status_code for _ in range(3)]
    assert answers == [201, 201, 409]


def test_every_change_is_noted_with_who_and_where(make_site):
    site = make_site()
    name = site.add_user("admin")
    one = site.login(name)
    headers = {**bearer(one["access_token"]), "X-Request-ID": "audit-test-1"}
    made = create(site, headers, username="noted").json()["data"]
    site.client.patch(f"{USERS}/{made['user_id']}", headers=headers, json={"role": "developer", "reset_password": True})
    key = site.client.post(KEYS, headers=headers, json={"name": "k"}).json()["data"]
    site.client.delete(f"{KEYS}/{key['id']}", headers=headers)
    site.client.delete(f"{USERS}/{made['user_id']}", headers=headers)
    site.client.post("/auth/login", json={"username": name, "password": "wrong"})
    site.client.post("/auth/login", json={"username": "typed-a-password-here", "password": "wrong"})
    second = site.client.post("/auth/refresh", json={"refresh_token": one["refresh_token"]}).json()
    entries = site.client.get(AUDIT, headers=headers).json()["data"]["entries"]
    actions = [entry["action"] for entry in reversed(entries) if entry["actor"] != "system"]
    changes = ["user.create", "user.change", "key.create", "key.delete", "user.delete"]
    assert actions == ["login", *changes, "login.failed", "login.failed"]
    for entry in entries:
        if entry["action"] in changes:
            assert (entry["actor"], entry["request_id"], entry["address"]) == (name, "audit-test-1", "127.0.0.1")
    whole = str(entries)
    for secret in (key["key"], made["one_time_password"], "typed-a-password-here", second["access_token"]):
        assert secret not in whole
    only = site.client.get(AUDIT, headers=headers, params={"action": "user.change", "actor": name}).json()["data"]
    assert [entry["details"] for entry in only["entries"]] == [{"role": "developer", "password_reset": True}]
    site.client.post("/auth/refresh", json={"refresh_token": one["refresh_token"]})
    last = site.login(name)
    headers = bearer(last["access_token"])
    newest = site.client.get(AUDIT, headers=headers, params={"limit": 2}).json()["data"]
    assert [entry["action"] for entry in newest["entries"]] == ["login", "refresh.reuse"]
    older = site.client.get(AUDIT, headers=headers, params={"before": newest["next"]}).json()["data"]
    assert len(older["entries"]) == len(entries)
    assert older["next"] is None


@pytest.mark.parametrize("params", [{"actor": "' OR 1=1 --"}, {"action": "x' UNION SELECT"}])
def test_a12_filters_are_not_sql(site, admin, params):
    assert site.client.get(AUDIT, headers=admin, params=params).json()["data"]["entries"] == []


def test_the_first_admin_is_made_once(make_site):
    site = make_site()
    password = site.run(site.platform.auth.first_admin())
    assert site.run(site.platform.auth.first_admin()) is None
    made = site.login("admin", password)
    assert made["data"]["user"]["must_change_password"] is True


def test_old_logins_are_cleared_away(site):
    name = site.add_user()
    site.login(name)

    async def age():
        async with site.platform.database.write() as session:
            await session.execute(text("UPDATE sessions SET expires_at = 1"))

    async def count():
        async with site.platform.database.read() as session:
            return (await session.execute(text("SELECT count(*) FROM sessions"))).scalar_one()

    site.run(age())
    site.login(name)
    assert site.run(count()) == 1
