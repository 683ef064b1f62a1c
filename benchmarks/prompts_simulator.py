"""A SIMULATION of a task model and of a model that writes prompts, behind the real OpenAI chat completions protocol.

No language model is behind it. Tickets have four features; eight of the sixteen feature values have a hidden rule: a
word that belongs into the answer. The task model knows a rule when its prompt states it (`tier=gold add priority`) or
shows an example of it, forgets a known one in 4 % and guesses an unknown one in 5 % of the cases, and says what it was
unsure about. The proposer reads whatever it is shown (runs, critiques, examples with answers), names one or two rules
for which that gives evidence, sometimes none, and answers in the form it was asked for. All chance comes from the seed
and the text of the request, so the same question has the same answer. Everything said here of one optimizer's form is
only about how its questions look; what the proposer can find out is the same for all.

That is the world `tickets`. The world `forms` is held out: optimizers are developed without it. It has twelve rules,
rewards that are shares, data whose answers stand under no usual name (so nobody takes them for demonstrations), and a
task model that follows a stated rule in 92 %, one that it was only shown in 60 % of the cases.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from aiohttp import web

FEATURES = {
    "kind": ["refund", "bug", "order", "praise"],
    "tier": ["gold", "silver", "trial", "staff"],
    "lang": ["french", "german", "english", "polish"],
    "channel": ["phone", "mail", "chat", "shop"],
}
WORDS = ["priority", "translate", "callback", "finance", "escalate", "archive", "survey", "legal"]
MORE_WORDS = ["refer", "verify", "backlog", "notify"]
SEED_INSTRUCTION = "Route the ticket."
SEED_PROMPT = f"{SEED_INSTRUCTION}\nTicket: {{ticket}}"
GUESSES, MISREADS = 0.05, 0.15


@dataclass(frozen=True)
class World:
    """What is hidden, how well the task model follows it, and how answers are graded."""

    words: tuple[str, ...] = tuple(WORDS)
    forgets_stated: float = 0.04
    forgets_shown: float = 0.04
    answers_under: str = "expected"
    is_graded: bool = False
    name: str = ""


WORLDS = {
    "tickets": World(),
    "forms": World((*WORDS, *MORE_WORDS), 0.08, 0.4, answers_under="key", is_graded=True, name="forms/"),
}
TICKETS = WORLDS["tickets"]

_TICKET = re.compile(r"kind=(\w+) tier=(\w+) lang=(\w+) channel=(\w+)")
_ROUTE = re.compile(r"ROUTE:([\w+]+)")
_RULE = re.compile(r"(\w+=\w+) add (\w+)")


def rules_of(seed: int, world: World = TICKETS) -> dict[str, str]:
    """The hidden rules of a seed: feature to word."""
    chance = random.Random(f"rules/{world.name}{seed}")
    features = [f"{name}={value}" for name, values in FEATURES.items() for value in values]
    return dict(zip(chance.sample(features, len(world.words)), world.words, strict=True))


def make_tickets(seed: int, part: str, count: int, world: World = TICKETS) -> list[dict[str, str]]:
    """Different tickets with their right answers."""
    chance = random.Random(f"tickets/{world.name}{seed}/{part}")
    rules = rules_of(seed, world)
    found: dict[str, dict[str, str]] = {}
    while len(found) < count:
        features = [f"{name}={chance.choice(values)}" for name, values in FEATURES.items()]
        text = f"no. {part}{len(found)} {' '.join(features)}"
        found[text] = {"ticket": text, world.answers_under: route([rules[f] for f in features if f in rules])}
    return list(found.values())


def route(words: list[str]) -> str:
    """The form of an answer."""
    return "ROUTE:" + "+".join(["desk", *sorted(words)])


def features_of(match: re.Match[str]) -> list[str]:
    return [f"{name}={match[index]}" for index, name in enumerate(FEATURES, start=1)]


def chance_of(seed: int, *parts: str) -> random.Random:
    return random.Random(hashlib.sha256("\0".join([str(seed), *parts]).encode()).digest())


def evidence(text: str, rules: dict[str, str]) -> list[str]:
    """Features whose rule a reader of `text` could find out: stated, shown by an example, or asked for."""
    found: dict[str, None] = dict.fromkeys(f for f in re.findall(r"unsure about (\w+=\w+)", text) if f in rules)
    tickets = list(_TICKET.finditer(text))
    for index, match in enumerate(tickets):
        end = tickets[index + 1].start() if index + 1 < len(tickets) else match.end() + 600
        shown = {word for answer in _ROUTE.findall(text[match.end() : end]) for word in answer.split("+")}
        found.update(dict.fromkeys(f for f in features_of(match) if rules.get(f) in shown))
    return list(found)


def known_rules(prompt: str, rules: dict[str, str]) -> tuple[set[str], set[str]]:
    """Rules that a prompt states, and those it shows by examples before the ticket at its end."""
    stated = {f for f, word in _RULE.findall(prompt) if rules.get(f) == word}
    tickets = list(_TICKET.finditer(prompt))
    before = prompt[: tickets[-1].start()] if tickets else ""
    return stated, {f for f in evidence(before, rules) if f"unsure about {f}" not in before} - stated


def answer_task(text: str, seed: int, world: World = TICKETS) -> str:
    """The task model."""
    rules, tickets = rules_of(seed, world), list(_TICKET.finditer(text))
    if not tickets:
        return "Which ticket?"
    (stated, shown), chance = known_rules(text, rules), chance_of(seed, text)
    lapses = {**dict.fromkeys(stated, world.forgets_stated), **dict.fromkeys(shown, world.forgets_shown)}
    words: list[str] = []
    unsure: list[str] = []
    for feature in features_of(tickets[-1]):
        if feature not in rules:
            continue
        if chance.random() >= lapses.get(feature, 1 - GUESSES):
            words.append(rules[feature])
        elif feature not in lapses:
            unsure.append(f"unsure about {feature}")
    answer = " ".join([route(words), *(f"({note})" for note in unsure)])
    return f"[[ ## answer ## ]]\n{answer}\n\n[[ ## completed ## ]]" if "[[ ## answer ## ]]" in text else answer


def grade(ticket: dict[str, str], answer: str) -> float:
    """The reward: 1 for the exact answer; where the world grades, the words in common as a share of all words."""
    if "expected" in ticket:
        return float(answer == ticket["expected"])
    found = _ROUTE.search(answer)
    given, wanted = (set(text.split("+")) for text in (found[1] if found else "", ticket["key"].removeprefix("ROUTE:")))
    return len(given & wanted) / len(given | wanted)


def score_prompt(template: str, tickets: list[dict[str, str]], seed: int, world: World = TICKETS) -> float:
    """Mean reward of the task model's answers with this template."""
    grades = [grade(t, answer_task(template.format(ticket=t["ticket"]), seed, world)) for t in tickets]
    return sum(grades) / len(grades)


def propose(text: str, seed: int, world: World = TICKETS) -> str:
    """The model that writes prompts."""
    rules, chance = rules_of(seed, world), chance_of(seed, "propose", text)
    current = current_prompt(text)
    stated = {feature for feature, _ in _RULE.findall(current)}
    asks = ("Do not write new prompts", "brief critique", "titled 'Critique:'", "Sample Runs of the Prompts")
    wants_critique = any(phrase in text for phrase in asks)
    told = [f for f, word in _RULE.findall(text) if rules.get(f) == word and f not in stated]
    is_edit = bool(told) and not wants_critique and ("ritique" in text or "CRITIQUE" in text)
    if is_edit:
        chosen = list(dict.fromkeys(told))
        chosen = chosen[:1] if "ONE critique point" in text or "most important point" in text else chosen
    else:
        seen = [f for f in evidence(text, rules) if f not in stated]
        chance.shuffle(seen)
        chosen = seen[: chance.choice((1, 1, 2))] if chance.random() >= MISREADS else []
    lines = [f"For {feature} add {rules[feature]}." for feature in chosen] or ["Be careful and polite."]
    if wants_critique:
        return "\n".join(f"- The prompt does not say: {line}" for line in lines)
    return in_form(text, current, [line for line in lines if line not in current])


def current_prompt(text: str) -> str:
    """The prompt that is to be improved: from its first words to the placeholder, or the paragraph."""
    whole = re.search(rf"{re.escape(SEED_INSTRUCTION)}.*?Ticket: \{{ticket\}}", text, re.DOTALL)
    if whole:
        return whole[0]
    bare = re.search(rf"{re.escape(SEED_INSTRUCTION)}[^\n`]*(?:\n(?:For|Be) [^\n`]*)*", text)
    return bare[0] if bare else SEED_INSTRUCTION


def in_form(text: str, current: str, lines: list[str]) -> str:
    """The new prompt as the question wants it."""
    head, ticket, tail = current.partition("\nTicket: {ticket}")
    grown = "\n".join([head, *lines]) + ticket + tail
    named = re.findall(r'<prompt name="([^"]*)">', text)
    if named:
        return f'<prompt name="{named[0]}">\n{grown}\n</prompt>'
    field = re.findall(r"\[\[ ## (\w+) ## \]\]", text)
    if field:  # DSPy names the fields it wants last
        wanted = re.findall(r"starting with the field `\[\[ ## (\w+) ## \]\]`", text)
        name = wanted[-1] if wanted else "proposed_instruction"
        return f"[[ ## {name} ## ]]\n{grown}\n\n[[ ## completed ## ]]"
    return f"```\n{grown}\n```" if "```" in text else grown


class Simulator:
    """The server; counts calls by model. `POST /reset` with a seed and a delay starts a new count."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.seed = 0
        self.world = TICKETS
        self.delay_s = 0.0

    def app(self) -> web.Application:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/v1/chat/completions", self.complete)
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/reset", self.reset)
        app.router.add_get("/calls", self.count)
        return app

    async def complete(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.calls[body["model"]] += 1
        await asyncio.sleep(self.delay_s)
        text = "\n\n".join(_content(message) for message in body["messages"])
        answering = propose if body["model"] == "proposer" else answer_task
        content = answering(text, self.seed, self.world)
        used = {"prompt_tokens": len(text) // 4, "completion_tokens": len(content) // 4}
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
        answer = {
            "id": "chatcmpl-simulated",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [{**choice, "index": index} for index in range(body.get("n") or 1)],
            "usage": {**used, "total_tokens": sum(used.values())},
        }
        return web.json_response(answer)

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response(
            {"object": "list", "data": [{"id": m, "object": "model"} for m in ("task", "proposer")]}
        )

    async def reset(self, request: web.Request) -> web.Response:
        settings = await request.json()
        self.calls, self.seed, self.delay_s = Counter(), settings["seed"], settings["delay_s"]
        self.world = WORLDS[settings.get("world", "tickets")]
        return web.json_response({})

    async def count(self, request: web.Request) -> web.Response:
        return web.json_response(dict(self.calls))


def _content(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else json.dumps(content)


def main() -> None:
    import socket

    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    bound.listen(256)  # before anybody is told the port
    print(bound.getsockname()[1], flush=True)
    web.run_app(Simulator().app(), sock=bound, print=None)


if __name__ == "__main__":
    main()
