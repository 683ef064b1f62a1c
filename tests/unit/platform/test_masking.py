"""Personal data in log lines, audit details and kept errors: masked by policy, untouched without one."""

import io
import logging
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response

from agentlightning.gateway import MaskingPolicy
from agentlightning.kit.errors import ConfigError
from agentlightning.platform.masking import MaskedRecord, Masking, policy_of
from agentlightning.platform.tasks.record import RESULT, result_in
from agentlightning.schemas.semconv import OPERATION_NAME
from tests.unit.gateway.scripted import reply
from tests.unit.platform.models import scripted_server
from tests.unit.platform.site import settings_for
from tests.unit.platform.tasks.things import Caller, add_agents, models, said

SENT = "ann@example.org, +49 30 901820, 4111 1111 1111 1111, sk-proj-abcdefghijklmnopqrstuvwx, DE89370400440532013000"
KEPT = ("ann@example.org", "901820", "4111", "sk-proj", "DE8937")


@pytest.fixture
def written():
    """What a handler that is there before, and one that is added later, have written."""
    streams = [io.StringIO(), io.StringIO()]
    handlers = [logging.StreamHandler(stream) for stream in streams]
    logging.getLogger("agentlightning").addHandler(handlers[0])
    yield streams, handlers[1]
    for handler in handlers:
        logging.getLogger("agentlightning").removeHandler(handler)


def test_log_lines_of_every_handler(written):
    streams, later = written
    log = logging.getLogger("agentlightning.platform.somewhere")
    masking = Masking(MaskingPolicy.parse("all"))
    before = logging.getLogRecordFactory()  # other packages set theirs
    with masking.logs():
        logging.getLogger("agentlightning").addHandler(later)
        log.warning("asked for %s by %s", SENT, {"mail": "bob@example.org"})
        try:
            raise ValueError(f"cannot read {SENT}")
        except ValueError:
            log.exception("it failed", stack_info=True)
        log.warning("nothing to hide: %d", 4)
    log.warning("afterwards: ann@example.org")
    for stream in streams:
        during, _, after = stream.getvalue().partition("nothing to hide: 4")
        assert not [secret for secret in (*KEPT, "bob@") if secret in during]
        assert "[email], [phone], [card], [secret], [iban]" in during
        assert "ValueError: cannot read [email]" in during
        assert "Traceback" in during
        assert "afterwards: ann@example.org" in after
    assert logging.getLogRecordFactory() is before


def test_without_a_policy_nothing_is_in_the_way(tmp_path):
    masking = Masking(policy_of(settings_for(tmp_path)))
    details = {"title": SENT}
    before = logging.getLogRecordFactory()
    with masking.logs():
        assert logging.getLogRecordFactory() is before
    assert masking.details(details) is details
    assert masking.text(SENT) is SENT


def test_the_policy_is_a_setting(tmp_path):
    some = Masking(policy_of(settings_for(tmp_path, mask="email,phone", mask_phone_regions="DE")))
    assert some.text("ann@example.org, 030 901820; 4111 1111 1111 1111") == "[email], [phone]; 4111 1111 1111 1111"
    with pytest.raises(ConfigError, match="shoes"):
        policy_of(settings_for(tmp_path, mask="shoes"))


def test_another_record_factory_is_kept(written):
    def own(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = logging.LogRecord(*args, **kwargs)
        record.tag = "mine"
        return record

    before = logging.getLogRecordFactory()
    logging.setLogRecordFactory(own)
    try:
        one, two = Masking(MaskingPolicy.parse("email")), Masking(MaskingPolicy.parse("all"))
        with one.logs(), two.logs():
            record = logging.getLogger("agentlightning").makeRecord("n", 30, "f", 1, "to ann@example.org", (), None)
            assert (record.tag, record.getMessage()) == ("mine", "to [email]")
        assert logging.getLogRecordFactory() is own
    finally:
        logging.setLogRecordFactory(before)
    with pytest.raises(TypeError):
        MaskedRecord("n", 30, "f", 1, "wrong %s %s", ("arguments",), None).getMessage()


def test_a_platform_that_masks(make_site, caplog):
    """A key with an address in its name, and a model that repeats what it was asked when it fails."""

    async def fails(request: Request, body: dict[str, Any]) -> Response:
        return reply({"error": {"message": f"cannot do: {body['messages'][-1]['content']}", "type": "x"}}, 400)

    with scripted_server() as server:
        server.script = [fails]
        site = make_site(models=models(server), default_model="m", mask="all")
        add_agents(site)
        admin = Caller(site, "admin")
        made = admin.post("/api/v2/api-keys", {"name": f"for {SENT}"[:60], "permissions": ["agent:read"]})
        assert made.status_code == 201
        done = admin.until(admin.assign(f"write to {SENT}"))
        audit = admin.get("/api/v2/audit", params={"action": "key.create"}).json()["data"]["entries"][0]
        logging.getLogger("agentlightning.platform").warning("seen: %s", SENT)
        server.script = [said(f"written to {SENT}")]
        right = admin.until(admin.assign(f"write to {SENT}", context={"to": SENT}))
        assert right["result"]["output"] == f"written to {SENT}"
        for each in (done, right):
            rollout = site.run(site.platform.store.get_rollout_by_id(each["rollout_id"]))
            spans = site.run(site.platform.store.query_spans(each["rollout_id"])).items
            told = str(rollout) + str(spans) + admin.get(f"/api/v2/tasks/{each['task_id']}/trace").text
            assert "[email]" in told
            assert not [secret for secret in KEPT if secret in told]
        whole = next(span for span in spans if span.attributes.get(OPERATION_NAME) == RESULT)
        assert result_in(whole)["masked"]
    assert done["status"] == "failed"
    assert "[email]" in done["error"]["message"]
    assert not [secret for secret in KEPT if secret in done["error"]["message"]]
    assert done["task"] == f"write to {SENT}"  # what somebody asked for is theirs
    assert "[email]" in audit["details"]["name"]
    assert audit["actor"] == admin.name
    assert not [secret for secret in KEPT if secret in caplog.text]
