"""Run as a program: a transfer, slow enough to be killed in the middle. Arguments: what, from, to, rows per part."""

import sys
import time

from agentlightning.store.transfer import copy_store, export, export_store, import_store


def slowly(fraction: float, what: str) -> None:
    sys.stdout.write(f"{fraction:.4f} {what}\n")
    sys.stdout.flush()
    time.sleep(0.004)  # so that a kill finds it in the middle


def main() -> None:
    what, source, target, part_rows = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    export._NOTE_EVERY_S = 0.0  # every part, since parts are tiny here
    if what == "copy":
        copy_store(source, target, slowly, part_rows=part_rows)
    elif what == "import":
        import_store(source, target, progress=slowly)
    else:
        export_store(source, target, encoding=what, part_rows=part_rows, progress=slowly)


if __name__ == "__main__":
    main()
