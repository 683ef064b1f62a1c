"""What happens to tasks, told over websockets and server-sent events, and to nobody else."""

import contextlib
import json
import socket
import time

import httpx
import pytest
import websockets.exceptions
from websockets.sync.client import connect

from agentlightning.kit.http import HttpServer
from agentlightning.platform.columns import now
from agentlightning.platform.tasks import repository
from agentlightning.platform.tasks.models import Event
from tests.unit.platform.models import scripted_server
from tests.unit.platform.site import error_code, until
from tests.unit.platform.tasks.things import Caller, add_agents, models


@pytest.fixture(scope="module")
def shared_server():
    with scripted_server() as running:
        yield running


@pytest.fixture
def server(shared_server):
    shared_server.script.clear()
    return shared_server


@pytest.fixture(scope="module")
def site(make_site, shared_server):
    made = make_site(models=models(shared_server), default_model="m")
    add_agents(made)
    return made


@contextlib.contextmanager
def socket_of(caller, **more):
    url = caller.site.url.replace("http", "ws") + "/ws/agents"
    with connect(url, additional_headers=more.pop("headers", caller.headers), open_timeout=10, **more) as opened:
        yield opened


def ask(socket, **message):
    """The answer to a message."""
    socket.send(json.dumps(message))
    return json.loads(socket.recv(10))


def events(socket, count, timeout_s=20):
    found = []
    while len(found) < count:
        message = json.loads(socket.recv(timeout_s))
        assert message["type"] == "event", message
        found.append(message)
    return found


def until_silent(socket):
    with contextlib.suppress(TimeoutError):
        while True:
            yield json.loads(socket.recv(1.5))


def read_on(socket):
    while True:
        socket.recv(10)


@contextlib.contextmanager
def refused(status, code):
    """The handshake is answered as any other call is, with a reason in the envelope."""
    with pytest.raises(websockets.exceptions.InvalidStatus) as caught:
        yield
    answer = caught.value.response
    body = json.loads(answer.body)
    assert (answer.status_code, body["error"]["code"]) == (status, code)
    assert set(body) == {"success", "error", "timestamp", "request_id"}
    assert body["request_id"] == answer.headers["X-Request-ID"]
    assert body["error"]["message"]
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert ("WWW-Authenticate" in answer.headers) == (status == 401)
    assert ("Retry-After" in answer.headers) == (code == "RATE_LIMITED")


def test_the_documented_subscription(site, server):
    user = Caller(site)
    with socket_of(user) as socket:
        asked = {"action": "subscribe", "agent_id": "data_agent", "events": ["task_completed", "training_update"]}
        assert ask(socket, **asked)["type"] == "subscribed"
        task_id = user.assign()
        user.until(user.assign(agent="poet_agent"))
        [event] = events(socket, 1)
        assert (event["event"], event["task_id"], event["agent"]) == ("task_completed", task_id, "data_agent")
        assert len(json.dumps(event)) < 4096
        assert "hello there" not in json.dumps(event)
        number = event["agent_id"]
        site.run(site.platform.tasks.events.publish("training_update", agent_id=number, agent="data_agent", step=1))
        assert events(socket, 1)[0]["step"] == 1
        assert ask(socket, action="ping") == {"type": "pong"}
        assert ask(socket, action="unsubscribe", agent_id="data_agent")["type"] == "unsubscribed"
        user.until(user.assign())
        with pytest.raises(TimeoutError):
            socket.recv(1)


def test_nothing_is_lost_between_two_connections(site, server):
    user = Caller(site)
    with socket_of(user) as socket:
        ask(socket, action="subscribe")
        first = user.assign()
        seen = events(socket, 3)
    assert [event["event"] for event in seen] == ["task_queued", "task_started", "task_completed"]
    missed = [user.assign() for _ in range(5)]
    for number in missed:
        user.until(number)
    with socket_of(user) as socket:
        told = ask(socket, action="subscribe", last_seq=seen[-1]["seq"])
        assert told["complete"] is True
        replayed = events(socket, 15)
    assert sorted({event["task_id"] for event in replayed}) == missed
    assert first not in {event["task_id"] for event in replayed}
    numbers = [event["seq"] for event in replayed]
    assert numbers == sorted(set(numbers))
    with socket_of(user) as socket:  # a second subscription with a past of its own tells nothing twice to the first
        ask(socket, action="subscribe", agent_id="poet_agent")
        ask(socket, action="subscribe", agent_id="data_agent", last_seq=seen[-1]["seq"])
        assert [event["seq"] for event in events(socket, 15)] == numbers


def test_a17_nobody_sees_what_others_do(site, server):
    user, other, admin = Caller(site), Caller(site, "developer"), Caller(site, "admin")
    with socket_of(other) as theirs, socket_of(admin) as admins:
        ask(theirs, action="subscribe", last_seq=0)
        ask(admins, action="subscribe")
        task_id = user.assign()
        user.until(task_id)
        assert {event["task_id"] for event in events(admins, 3)} == {task_id}
        heard = list(until_silent(theirs))
        assert task_id not in {event["task_id"] for event in heard}
    with site.client.stream("GET", "/api/v2/events?last_seq=0", headers=other.headers) as stream:
        for line in stream.iter_lines():
            assert f'"task_id":{task_id}' not in line
            if "still here" in line:
                break


def test_sse_goes_on_from_the_last_id(site, server):
    user = Caller(site)
    for number in [user.assign(), user.assign()]:
        user.until(number)

    def read(count, **headers):
        found = []
        with site.client.stream("GET", "/api/v2/events", headers={**user.headers, **headers}) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            for line in stream.iter_lines():
                if line.startswith("data: "):
                    found.append(json.loads(line.removeprefix("data: ")))
                    if len(found) == count:
                        return found
        return found

    everything = read(6, **{"Last-Event-ID": "0"})
    rest = read(2, **{"Last-Event-ID": str(everything[3]["seq"])})
    assert rest == everything[4:]


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "UNAUTHORIZED"),
        ({"Authorization": "Bearer x"}, "TOKEN_INVALID"),
        ({"X-API-Key": "agl_x"}, "UNAUTHORIZED"),
    ],
)
def test_a1_no_socket_without_a_login(site, headers, code):
    with refused(401, code), socket_of(Caller(site), headers=headers):
        pass


def test_a_refused_socket_says_why(site, make_site, caplog):
    user = Caller(site)
    made = user.post("/api/v2/api-keys", {"name": "narrow", "permissions": ["knowledge:read"]}).json()["data"]
    with refused(403, "FORBIDDEN"), socket_of(user, headers={"X-API-Key": made["key"]}):
        pass
    with refused(404, "NOT_FOUND"):
        connect(site.url.replace("http", "ws") + "/ws/elsewhere", open_timeout=10)
    with refused(400, "HOST_UNKNOWN"):
        connect(
            "ws://evil.example/ws/agents",
            sock=socket.create_connection(("127.0.0.1", int(site.url.rpartition(":")[2]))),
            open_timeout=10,
        )
    slow = make_site(requests_per_minute=3)
    caller = Caller(slow)
    for _ in range(3):
        with socket_of(caller):
            pass
    with refused(429, "RATE_LIMITED"), socket_of(caller):
        pass
    counted = slow.client.get("/metrics", headers=slow.headers("developer")).text
    assert 'http_requests_total{endpoint="/ws/agents",method="WEBSOCKET",status_code="429"} 1.0' in counted
    assert caplog.records == [], "whoever is refused fills no log"


def test_a34_no_token_in_the_url_and_no_foreign_page(site):
    user = Caller(site)
    token = user.headers["Authorization"].removeprefix("Bearer ")
    url = site.url.replace("http", "ws") + f"/ws/agents?token={token}&access_token={token}&ticket={token}"
    with refused(401, "UNAUTHORIZED"):
        connect(url, open_timeout=10)
    evil = {**user.headers, "Origin": "https://evil.example"}
    with refused(403, "ORIGIN_REFUSED"), socket_of(user, headers=evil):
        pass
    with socket_of(user, headers={**user.headers, "Origin": site.url}) as socket:
        assert ask(socket, action="ping") == {"type": "pong"}


def test_a_ticket_opens_one_socket(site):
    user = Caller(site)
    made = user.post("/api/v2/ws-ticket").json()["data"]
    protocols = ["agl.events", f"ticket.{made['ticket']}"]
    with socket_of(user, headers={}, subprotocols=protocols) as socket:
        assert socket.subprotocol == "agl.events"
        assert ask(socket, action="ping") == {"type": "pong"}
    with refused(401, "UNAUTHORIZED"), socket_of(user, headers={}, subprotocols=protocols):
        pass
    ended = Caller(site)
    protocols = ["agl.events", f"ticket.{ended.post('/api/v2/ws-ticket').json()['data']['ticket']}"]
    assert ended.post("/auth/logout").status_code == 200
    with refused(401, "UNAUTHORIZED"), socket_of(ended, headers={}, subprotocols=protocols):
        pass


@pytest.mark.parametrize("how", ["logout", "disable", "role", "key"])
def test_a9_an_open_socket_dies_with_its_login(site, server, how):
    user, admin = Caller(site, "developer"), Caller(site, "admin")
    headers = user.headers
    if how == "key":
        key = user.post("/api/v2/api-keys", {"name": "k"}).json()["data"]
        headers = {"X-API-Key": key["key"]}
    user_id = user.get("/auth/profile").json()["data"]["user_id"]
    with socket_of(user, headers=headers) as socket:
        ask(socket, action="subscribe")
        if how == "logout":
            user.post("/auth/logout")
        elif how == "key":
            user.site.client.delete(f"/api/v2/api-keys/{key['id']}", headers=user.headers)
        else:
            change = {"disabled": True} if how == "disable" else {"role": "user"}
            site.client.patch(f"/api/v2/users/{user_id}", headers=admin.headers, json=change)
        with pytest.raises(websockets.exceptions.ConnectionClosed) as closed:
            read_on(socket)
        assert closed.value.rcvd.code == 4401


NONSENSE = (
    *(b"\x00", "", "[", "[]", "1", '{"action": "rule"}', '{"action": "subscribe", "events": "all"}', "[" * 5000),
    *('{"action": "subscribe", "agent_id": "nobody"}', '{"action": "subscribe", "last_seq": -1}'),
)


def test_nonsense_is_answered(site):
    with socket_of(Caller(site)) as socket:
        for raw in NONSENSE:
            socket.send(raw)
            assert json.loads(socket.recv(10))["type"] == "error"
            assert ask(socket, action="ping") == {"type": "pong"}


def test_a38_floods_end(site):
    user = Caller(site)
    for texts in (["x" * 70_000], ['{"action": "ping"}'] * 500):
        with socket_of(user) as socket:
            with contextlib.suppress(websockets.exceptions.ConnectionClosed):
                for text in texts:
                    socket.send(text)
            with pytest.raises(websockets.exceptions.ConnectionClosed):
                read_on(socket)
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(socket_of(user))
        with refused(429, "TOO_MANY_CONNECTIONS"):
            stack.enter_context(socket_of(user))


@pytest.mark.slow
def test_a38_who_does_not_read_is_cut_off_and_misses_nothing(site, server):
    """A reader that takes nothing from its socket holds up nobody, and comes back to all of it."""
    admin, user = Caller(site, "admin"), Caller(site)
    hub, count = site.platform.tasks.events, 2_500
    before = site.run(hub.oldest_and_newest())[1]

    async def flood():
        async with site.platform.database.write() as session:
            for number in range(count):
                told = Event(event="training_update", created_at=now(), agent="", data={"n": number, "x": "y" * 3_000})
                await repository.add_event(session, told)
        await site.platform.tasks.wakes.tell()

    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect(("127.0.0.1", int(site.url.rpartition(":")[2])))
    with socket_of(admin, sock=raw, max_queue=1) as sleeping, socket_of(user) as awake:
        ask(sleeping, action="subscribe")
        ask(awake, action="subscribe")
        until(lambda: hub.followers == 2)
        site.run(flood())
        assert len(events(awake, count, timeout_s=30)) == count
        until(lambda: hub.followers == 1)
    with socket_of(admin) as again:
        ask(again, action="subscribe", last_seq=before)
        assert [event["n"] for event in events(again, count)] == list(range(count))


@pytest.mark.slow
def test_limits_on_what_is_asked_for(site):
    user = Caller(site)
    for query in ("last_seq=-1", "last_seq=x", f"events={'x' * 2000}"):
        assert error_code(user.get(f"/api/v2/events?{query}")) == "VALIDATION_FAILED"
    assert error_code(user.get("/api/v2/events?agent=nobody")) == "AGENT_NOT_FOUND"
    with socket_of(user) as socket:
        for number in range(99):
            assert ask(socket, action="subscribe", task_id=number + 1)["type"] == "subscribed"
        time.sleep(10.5)  # not to be a flood
        assert ask(socket, action="subscribe", task_id=100)["type"] == "subscribed"
        assert ask(socket, action="subscribe", task_id=101)["error"]["code"] == "RATE_LIMITED"


def test_followers_do_not_hold_up_a_stop(site):
    """Another server of the same platform, with a grace time that no test would wait for."""
    caller = Caller(site)

    async def start() -> HttpServer:
        other = HttpServer(site.app, shutdown_grace_s=3600, websockets=True)
        await other.start()
        return other

    other = site.run(start())
    url = f"{other.url}/api/v2/events"
    with (
        httpx.stream("GET", url, headers=caller.headers, timeout=60) as stream,
        httpx.stream("GET", f"{other.url}/v1/agl/events/stream", headers=site.headers("admin"), timeout=60) as store,
        connect(f"{other.url.replace('http', 'ws')}/ws/agents", additional_headers=caller.headers) as opened,
    ):
        assert ask(opened, action="subscribe")["type"] == "subscribed"
        lines, of_store = stream.iter_lines(), store.iter_lines()
        assert next(lines) == "retry: 2000"
        assert next(of_store) == ": connected"
        site.run(other.stop())  # within the 30 s that anything may take here
        assert [line for line in lines if line][-1] == ": over; come back with the last id"
        assert [line for line in of_store if line][-1] == ": the server stops; come back with the last id"
        with pytest.raises(websockets.exceptions.ConnectionClosed):
            opened.recv(20)
