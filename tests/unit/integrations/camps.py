"""A small session of Training Camp, for tests to bend."""

import hashlib
from typing import Any

DRAFT = "A long draft. " * 40
DRAFT_ID = "sha256:" + hashlib.sha256(DRAFT.encode()).hexdigest()


def at(second: int) -> str:
    return f"2026-03-01T12:{second // 60:02d}:{second % 60:02d}Z"


def event(number: int, kind: str, **payload: Any) -> dict[str, Any]:
    return {"id": f"e{number}", "eventType": kind, "createdAt": at(number), "payload": payload}


def attempt(number: int, lineage: str, cycle: int, *, agent: str = "writer", **more: Any) -> dict[str, Any]:
    name = f"{lineage}-{cycle}"
    return event(
        number,
        "attempt.completed",
        **{
            "attemptId": name,
            "lineageId": lineage,
            "agentId": agent,
            "agentVersion": 1,
            "cycle": cycle,
            "input": {"topic": "rain"},
            "output": f"Rain, says {name}.",
            "startedAt": at(number - 1),
            "endedAt": at(number),
            "spans": [
                {
                    "id": "s2",
                    "parentId": "s1",
                    "name": "look_up",
                    "kind": "tool",
                    "startedAt": at(number - 1),
                    "endedAt": at(number),
                    "input": {"word": "rain"},
                    "output": {"$payload": DRAFT_ID},
                },
                {
                    "id": "s1",
                    "name": "ask",
                    "kind": "llm",
                    "startedAt": at(number - 2),
                    "endedAt": at(number),
                    "model": "some-model",
                    "inputTokens": 7,
                    "input": [
                        {"role": "system", "content": "You write."},
                        {"role": "user", "content": "rain"},
                    ],
                    "output": f"Rain, says {name}.",
                },
            ],
            "artifacts": [{"id": f"art-{name}", "content": f"Rain, says {name}."}],
            **more,
        },
    )


def session(**more: Any) -> dict[str, Any]:
    """Four lineages, two cycles, scores, one lock."""
    letters = "ABCD"
    events = [attempt(10 + n, letter, 1) for n, letter in enumerate(letters)]
    events += [
        event(20, "artifact.scored", artifactId="art-A-1", score=3, comment="too short", author="ada"),
        event(21, "artifact.scored", artifactId="art-B-1", score=8.5, author="ada"),
        event(22, "artifact.scored", artifactId="art-A-1", score=4, author="ada"),
        event(23, "feedback.given", attemptId="C-1", thumb="down", comment="dull"),
        event(24, "lineage.locked", lineageId="B", author="ada"),
        event(25, "lineage.locked", lineageId="B", author="ada"),
    ]
    events += [attempt(30 + n, letter, 2) for n, letter in enumerate("ACD")]
    events += [event(40, "artifact.scored", artifactId="art-A-2", score=9), event(41, "camp.mood", mood="good")]
    return {
        "format": "training-camp",
        "version": 1,
        "session": {"id": "s-1", "name": "about rain", "need": "short texts", "theme": "dark"},
        "lineages": [{"id": letter, "label": letter, "agentId": "writer"} for letter in letters],
        "agents": [{"id": "writer", "name": "Writer", "systemPrompt": "You write.", "tools": [{"name": "look_up"}]}],
        "payloads": {DRAFT_ID: DRAFT},
        "events": events,
        **more,
    }
