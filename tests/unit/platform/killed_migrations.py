"""Migrates in children that are killed before a given statement or commit; one program, so that imports are paid once.

Lines in: `URL REVISION STATEMENT TIMES`, answered by the exit status of each child; a statement of 0 kills nobody.
"""

import os
import signal
import sys

from sqlalchemy import Engine, event

from agentlightning.platform import migrations


def migrate(url: str, to: str, at: int) -> None:
    seen = 0

    def count(*_: object) -> None:
        nonlocal seen
        seen += 1
        if seen == at:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(Engine, "before_cursor_execute", count)
    event.listen(Engine, "commit", count)
    migrations.migrate(url, to)


def fork(url: str, to: str, at: int) -> int:
    child = os.fork()
    if child:
        return child
    try:
        migrate(url, to, at)
    except BaseException as error:  # noqa: BLE001 - nothing may run on in the child
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


for line in sys.stdin:
    url, to, at, times = line.split()
    children = [fork(url, to, int(at)) for _ in range(int(times))]
    print(*(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children), flush=True)
