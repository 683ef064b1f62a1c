"""For runs of schemathesis: half of the ids that it invents become ones that exist, and the caller is left alone."""

import os
import zlib

import schemathesis

THERE = {
    "agent_id": ["code_agent", "data_agent", "1", "poet_agent"],
    "user_id": ["2", "user_3"],
    "version": ["1"],
    "name": ["files", "python", "knowledge"],
    **{f"{thing}_id": ["1", "2", "3"] for thing in ("task", "item", "memory", "key", "evaluation", "import")},
}


@schemathesis.hook
def before_load_schema(context, raw_schema):
    """Only the token: given a key that it invents beside it, every request would end at the door."""
    del raw_schema["components"]["securitySchemes"]["key"]
    for operations in raw_schema["paths"].values():
        for operation in operations.values():
            operation["security"] = [way for way in operation["security"] if "key" not in way]


@schemathesis.hook
def before_call(context, case, kwargs):
    """These are all texts: none of them is invalid by itself, so what is invalid elsewhere stays so."""
    for name, value in (case.path_parameters or {}).items():
        number = zlib.crc32(str(value).encode(errors="replace"))
        if name in THERE and number % 2:
            case.path_parameters[name] = THERE[name][number // 2 % len(THERE[name])]


@schemathesis.hook
def filter_case(context, case):
    """Leave out what would end the caller's login: schemathesis finds the number in answers."""
    user = str((case.path_parameters or {}).get("user_id", ""))
    return case.method.upper() == "GET" or os.environ["SELF"] not in user
