"""The guarded client: what it refuses (A26), at which hop (A27), and what it bounds."""

import asyncio
import datetime
import gzip
import ssl
import zlib
from dataclasses import replace

import pytest

from agentlightning.tools.web import GuardedClient, WebDeniedError, WebError, is_public
from tests.unit.tools.sites import moved, reply, site


@pytest.fixture
async def here():
    async with site() as made:
        yield made


@pytest.fixture
async def there():
    async with site() as made:
        yield made


@pytest.fixture
def client(here):
    return GuardedClient(trusted=frozenset({here.trusted}), timeout_s=5.0)


PRIVATE = """
0.0.0.0 0.1.2.3 10.0.0.1 100.64.0.1 100.100.100.200 127.0.0.1 127.255.255.254 168.63.129.16 169.254.169.254 172.16.0.1
172.31.255.255 192.0.0.8 192.168.1.1 198.18.0.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255
:: ::1 ::ffff:127.0.0.1 ::ffff:169.254.169.254 ::ffff:8.8.8.8 ::127.0.0.1 64:ff9b::7f00:1 64:ff9b::8.8.8.8 64:ff9b:1::1
fe80::1 fe80::1%eth0 fc00::1 fd00:ec2::254 ff02::1 2001::1 2002:7f00:1:: 2001:db8::1 100::1 fec0::1 3fff::1
"""
PUBLIC = "1.1.1.1 8.8.8.8 93.184.216.34 172.15.0.1 172.32.0.1 100.63.255.255 100.128.0.1 2606:4700::1111 2a00:1450::1"


@pytest.mark.parametrize("address", PRIVATE.split())
def test_private_addresses_are_known(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC.split())
def test_public_addresses_are_known(address):
    assert is_public(address)


UNUSUAL = ["2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "017700000001", "127.1", "127.0.1", "127.0.0.1.", "0"]
BAD_URLS = [
    *(f"http://{host}/" for host in UNUSUAL),
    *(f"http://{a}/" for a in PRIVATE.split() if ":" not in a),
    *(f"http://[{a}]/" for a in PRIVATE.split() if ":" in a),
    "http://localhost/",
    "http://LOCALHOST:80/",
    "http://user@1.1.1.1/",
    "http://user:pass@1.1.1.1/",
    "http://1.1.1.1@127.0.0.1/",
    "http://1.1.1.1:80\\@127.0.0.1/",
    "http://①②⑦.⓪.⓪.①/",
    "http://127。0。0。1/",
    "http://[::1]/",
    "http://[::]:80/",
    "http:///etc/passwd",
    "http://",
    "//1.1.1.1/",
    "/etc/passwd",
    "",
    "file:///etc/passwd",
    "gopher://1.1.1.1/",
    "ftp://1.1.1.1/",
    "data:text/plain,x",
    "javascript:1",
    "unix:///run/docker.sock",
    "http://1.1.1.1:22/",
    "http://1.1.1.1:6379/",
    "http://1.1.1.1:99999/",
    "http://exa mple.com/",
    "http://example.com\r\nHost: x/",
    "http://%31%32%37.0.0.1/",
    "http://\0/",
]


@pytest.mark.parametrize("url", BAD_URLS)
async def test_a26_it_is_refused_before_anything_is_sent(url):
    with pytest.raises(WebDeniedError):
        await GuardedClient(timeout_s=5.0).fetch("GET", url)


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "::ffff:10.0.0.1", "fd00::1"])
async def test_a26_a_name_for_a_private_address_is_refused(address):
    async def resolve(host, port):
        return ["93.184.216.34", address]  # one good one does not help

    with pytest.raises(WebDeniedError, match="not on the public internet"):
        await GuardedClient(resolve=resolve).fetch("GET", "http://10.0.0.1.nip.io/")


async def test_a27_the_address_is_looked_up_once_and_kept(here):
    """The second look-up would give another address, as rebinding does."""
    answers = [["127.0.0.1"], ["127.0.0.9"], ["127.0.0.9"]]

    async def resolve(host, port):
        return answers.pop(0)

    here.answers["/"] = reply("pinned")
    trusted = frozenset({f"rebind.example:{here.port}"})
    got = await GuardedClient(trusted=trusted, resolve=resolve).fetch("GET", f"http://rebind.example:{here.port}/")
    assert got.body == b"pinned"
    assert len(answers) == 2
    assert here.seen[0].headers["host"] == f"rebind.example:{here.port}"


@pytest.mark.parametrize("hops", [1, 2, 4])
@pytest.mark.parametrize(
    "inside", ["http://127.0.0.1:{port}/secret", "http://[::1]:{port}/", "http://2130706433/", "file:///etc/passwd"]
)
async def test_a27_a_redirect_to_inside_is_refused_at_every_hop(here, there, client, hops, inside):
    there.answers["/secret"] = reply("secret")
    for hop in range(1, hops):
        here.answers[f"/{hop}"] = moved(f"/{hop + 1}")
    here.answers[f"/{hops}"] = moved(inside.format(port=there.port))
    with pytest.raises(WebDeniedError):
        await client.fetch("GET", here.url + "/1")
    assert len(here.seen) == hops
    assert there.seen == []


async def test_redirects_are_followed_and_counted(here, client):
    for hop in range(5):
        here.answers[f"/{hop}"] = moved(f"/{hop + 1}")
    here.answers["/5"] = reply("there")
    got = await client.fetch("GET", here.url + "/0")
    assert (got.text, got.url, len(got.hops)) == ("there", here.url + "/5", 5)
    here.answers["/5"] = moved("/0")
    with pytest.raises(WebError, match="more than 5 times"):
        await client.fetch("GET", here.url + "/0")


async def test_credentials_stay_with_their_origin(here, there, client):
    client = replace(client, trusted=client.trusted | {there.trusted})
    here.answers["/same"] = moved("/other")
    here.answers["/other"] = moved(there.url + "/")
    there.answers["/"] = reply("ok")
    await client.fetch(
        "GET",
        here.url + "/same",
        headers={"Cookie": "a=b", "X-Mine": "1", "Accept": "text/plain"},
        secret_headers={"Authorization": "Bearer canary"},
    )
    assert here.seen[1].headers["authorization"] == "Bearer canary"
    assert there.seen[0].headers["accept"] == "text/plain"
    assert {"authorization", "cookie", "x-mine"}.isdisjoint(there.seen[0].headers)


async def test_what_was_posted_is_not_sent_elsewhere(here, there, client):
    client = replace(client, trusted=client.trusted | {there.trusted})
    here.answers["/"] = moved(there.url + "/", "307 Temporary Redirect")
    with pytest.raises(WebDeniedError, match="redirects what was sent"):
        await client.fetch("POST", here.url + "/", body=b"secret")
    here.answers["/"] = moved("/done", "303 See Other")
    here.answers["/done"] = reply("done")
    await client.fetch("POST", here.url + "/", headers={"Content-Type": "text/plain"}, body=b"x")
    assert (here.seen[-1].method, here.seen[-1].body) == ("GET", b"")
    assert "content-type" not in here.seen[-1].headers


async def test_each_hop_is_asked_for(here, client):
    asked = []
    here.answers["/"] = moved("/private")

    def permit(method, url):
        asked.append(url.path)
        if url.path == "/private":
            raise WebDeniedError("No.")

    with pytest.raises(WebDeniedError, match=r"No\."):
        await client.fetch("GET", here.url + "/", permit=permit)
    assert asked == ["/", "/private"]


async def test_sizes_are_bounded(here, client):
    client = replace(client, max_bytes=10_000)
    here.answers["/large"] = reply(b"x" * 20_000)
    here.answers["/endless"] = b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 200_000
    here.answers["/fits"] = reply(b"x" * 10_000)
    for path in ("/large", "/endless"):
        with pytest.raises(WebError, match="larger than 10000 bytes"):
            await client.fetch("GET", here.url + path)
        cut = await client.fetch("GET", here.url + path, cut=True)
        assert (len(cut.body), cut.truncated) == (10_000, True)
    assert len((await client.fetch("GET", here.url + "/fits")).body) == 10_000


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
async def test_a_bomb_does_not_go_off(here, client, pack):
    bomb = pack(bytes(300 * 2**20))
    assert len(bomb) < 2**20
    encoding = "gzip" if pack is gzip.compress else "deflate"
    here.answers["/"] = reply(bomb, content_encoding=encoding)
    import tracemalloc

    tracemalloc.start()
    with pytest.raises(WebError, match="larger than"):
        await client.fetch("GET", here.url + "/")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * 2**20


async def test_encodings(here, client):
    here.answers["/gzip"] = reply(
        gzip.compress(b"hello"), content_encoding="gzip", content_type="text/plain; charset=utf-8"
    )
    here.answers["/br"] = reply(b"x", content_encoding="br")
    here.answers["/damaged"] = reply(b"not gzip", content_encoding="gzip")
    here.answers["/latin"] = reply("é".encode("latin-1"), content_type='text/plain; charset="latin-1"')
    here.answers["/odd"] = reply(b"e", content_type="text/plain; charset=klingon")
    got = await client.fetch("GET", here.url + "/gzip")
    assert (got.text, got.content_type) == ("hello", "text/plain")
    assert here.seen[0].headers["accept-encoding"] == "gzip"
    assert (await client.fetch("GET", here.url + "/latin")).text == "é"
    assert (await client.fetch("GET", here.url + "/odd")).text == "e"
    with pytest.raises(WebError, match="not asked for"):
        await client.fetch("GET", here.url + "/br")
    with pytest.raises(WebError, match="damaged"):
        await client.fetch("GET", here.url + "/damaged")


async def test_a_slow_answer_ends(client, here):
    over = asyncio.Event()
    ended = asyncio.Event()

    async def drip(reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while not over.is_set():
            writer.write(b"x")
            await asyncio.sleep(0.05)
        writer.close()
        ended.set()

    server = await asyncio.start_server(drip, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        slow = GuardedClient(trusted=frozenset({f"127.0.0.1:{port}"}), timeout_s=0.5)
        with pytest.raises(WebError, match="within"):
            await slow.fetch("GET", f"http://127.0.0.1:{port}/")
        over.set()
        await ended.wait()


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil"},
        {"X": "a\r\nHost: evil"},
        {"X\r\nY": "a"},
        {"": "a"},
        {"Content-Length": "0"},
        {"Transfer-Encoding": "chunked"},
        {"Proxy-Authorization": "x"},
        {"X": "é"},
        {"Connection": "keep-alive"},
    ],
)
async def test_headers_that_break_the_request_are_refused(here, client, headers):
    with pytest.raises(WebDeniedError, match="header"):
        await client.fetch("GET", here.url + "/", headers=headers)
    assert here.seen == []


async def test_proxies_of_the_environment_are_not_used(here, client, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    here.answers["/"] = reply("direct")
    assert (await client.fetch("GET", here.url + "/")).text == "direct"


async def test_messages_keep_secrets(client, here):
    with pytest.raises(WebError) as told:
        await GuardedClient().fetch("GET", "http://user:canary@127.0.0.1/?key=canary#canary")
    assert "canary" not in str(told.value)
    trusted = replace(client, trusted=frozenset({"127.0.0.1:1"}))
    with pytest.raises(WebError, match="cannot be reached") as told:
        await trusted.fetch("GET", "http://127.0.0.1:1/?key=canary")
    assert "canary" not in str(told.value)


async def test_an_unknown_name_is_said():
    with pytest.raises(WebError, match="no host"):
        await GuardedClient().fetch("GET", "http://no-such-name.invalid/")

    async def nothing(host, port):
        return []

    with pytest.raises(WebError, match="no host"):
        await GuardedClient(resolve=nothing).fetch("GET", "http://example.com/")


def certificate(tmp_path, name):
    """A self-signed one for `name`, and contexts of both sides."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "cert.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(path)
    trusting = ssl.create_default_context(cadata=made.public_bytes(serialization.Encoding.PEM).decode())
    return server, trusting


async def test_tls_verifies_the_name_not_the_pinned_address(tmp_path):
    server, trusting = certificate(tmp_path, "good.example")
    asked = []
    server.sni_callback = lambda connection, name, context: asked.append(name)

    async def resolve(host, port):
        return ["127.0.0.1"]

    async with site(server) as secure:
        secure.answers["/"] = reply("secure")
        hosts = frozenset({f"good.example:{secure.port}", f"evil.example:{secure.port}"})
        client = GuardedClient(trusted=hosts, resolve=resolve, tls=trusting)
        assert (await client.fetch("GET", f"https://good.example:{secure.port}/")).text == "secure"
        assert asked == ["good.example"]
        with pytest.raises(WebError, match="cannot be reached"):
            await client.fetch("GET", f"https://evil.example:{secure.port}/")
        with pytest.raises(WebError, match="cannot be reached"):
            await replace(client, tls=None).fetch("GET", f"https://good.example:{secure.port}/")


async def test_the_next_address_is_tried(here):
    async def resolve(host, port):
        return ["127.0.0.77", "127.0.0.1"]

    here.answers["/"] = reply("second")
    client = GuardedClient(trusted=frozenset({f"two.example:{here.port}"}), resolve=resolve)
    assert (await client.fetch("GET", f"http://two.example:{here.port}/")).text == "second"
