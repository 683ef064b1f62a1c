"""The model registry: versions of named models below one folder, safe against crashes and for several processes.

Layout: `<root>/<name>/v<n>/` is a Hugging Face model (or adapter) directory with a `version.json` that never changes;
`<root>/<name>/stages.json` says which version is in production and how that came. Knows nothing of engines.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import msgspec
import orjson

from agentlightning.kit.clock import now
from agentlightning.kit.directories import UNFINISHED, copy_tree, refused, whole_directory
from agentlightning.kit.errors import BadInputError, ConflictError, NotFoundError, StorageError
from agentlightning.kit.files import exclusive_lock, write_atomic
from agentlightning.registry.version import Action, Ledger, ModelVersion, StageChange

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_VERSION = re.compile(r"v[1-9][0-9]*")
_LEDGER, _FACTS = "stages.json", "version.json"
_LOCK_WAIT_S = 60.0
_FIELDS = {field.name for field in fields(ModelVersion)} - {"path", "stage"}


class ModelRegistry:
    """Registers, finds and promotes model versions below one folder.

    Every method reads the disk, so several processes see each other's changes; changes of one name exclude each other.

    Args:
        root: The folder; it need not exist yet.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    # -- finding ----------------------------------------

    def names(self) -> list[str]:
        """Names with at least one version."""
        if not self.root.is_dir():
            return []
        return sorted(p.name for p in self.root.iterdir() if p.is_dir() and self.versions(p.name))

    def versions(self, name: str) -> list[ModelVersion]:
        """Versions of a name, oldest first.

        Raises:
            StorageError: A file of the registry cannot be read.
        """
        folder = self.root / name
        if not _NAME.fullmatch(name) or not folder.is_dir():
            return []
        ledger = self._ledger(name)
        found = [
            _read(path, ledger)
            for path in folder.glob(f"v*/{_FACTS}")
            if _VERSION.fullmatch(path.parent.name) and path.parent.name not in ledger.deleted
        ]
        return sorted(found, key=lambda entry: entry.number)

    def get(self, ref: str) -> ModelVersion:
        """Find a version.

        Args:
            ref: `name@v3`; `name@production`; `name@latest` or `name@candidate` (the newest of them); `name` alone is
                the one in production, or the newest while none is.

        Raises:
            NotFoundError: There is no such version; the message lists what there is.
        """
        name, _, which = ref.partition("@")
        versions = self.versions(name)
        if which in ("", "latest", "production", "candidate", "archived"):
            chosen = [v for v in versions if which in ("", "latest", v.stage)]
            if which == "":
                chosen = [v for v in versions if v.stage == "production"] or chosen
        else:
            chosen = [v for v in versions if v.version == which]
        if chosen:
            return chosen[-1]
        if versions and which == "production":
            raise NotFoundError(
                f"No version of {name!r} is in production.", hint=f"Promote one: agl models promote {versions[-1].ref}"
            )
        known = [v.ref for n in self.names() for v in self.versions(n)]
        raise NotFoundError(
            f"No registered model {ref!r}.",
            hint=f"Registered: {', '.join(known) or 'none yet'}; see `agl models list`.",
        )

    def find(self, path: Path) -> ModelVersion | None:
        """The version whose directory `path` is, if it is one."""
        resolved = path.resolve()
        if resolved.parent.parent != self.root.resolve():
            return None
        return next((v for v in self.versions(resolved.parent.name) if v.version == resolved.name), None)

    def history(self, name: str) -> list[StageChange]:
        """Changes of stage, oldest first."""
        return self._ledger(name).history

    def mark(self, name: str) -> tuple[int, int]:
        """Something that differs after every change of stages: compare it to notice one cheaply."""
        try:
            stat = (self.root / name / _LEDGER).stat()
        except OSError:
            return 0, 0
        return stat.st_mtime_ns, stat.st_ino

    # -- changing ----------------------------------------

    def register(
        self,
        name: str,
        source: Path,
        *,
        base: str,
        run_id: str,
        step: int,
        metrics: dict[str, Any],
        parent: str | None = None,
    ) -> ModelVersion:
        """Copy a model directory in as the next version; repeating it for the same run and step returns the first.

        Args:
            name: Letters, digits, `.`, `_` and `-`.
            source: The directory to copy.
            base: What the model was made from.
            run_id: The run that made it.
            step: The run's step.
            metrics: JSON-able results.
            parent: The version it was trained from; by default `base`, where that is one.

        Raises:
            BadInputError: The name has characters that do not belong into a file name, or `source` is no directory.
            StorageError: The disk refused; the registry is unchanged.
            BusyError: Another process has been changing this name for a minute.
        """
        if not _NAME.fullmatch(name):
            raise BadInputError(f"{name!r} is no model name.", hint="Use letters, digits, '.', '_' and '-'.")
        if not source.is_dir():
            raise BadInputError(f"{source} is no directory.", hint="Give a model directory in Hugging Face format.")
        folder = self.root / name
        with self._changing(name) as ledger:
            for known in self.versions(name):
                if (known.run_id, known.step) == (run_id, step):
                    return known
            self._clean(folder, ledger)
            version = f"v{ledger.next_number}"
            entry = ModelVersion(
                name, version, folder / version, base, run_id, step, now(), metrics=metrics,
                parent=parent or self._parent_of(base),
            )  # fmt: skip
            record = {key: value for key, value in asdict(entry).items() if key in _FIELDS}
            with whole_directory(folder / version) as unfinished:
                copy_tree(source, unfinished)
                (unfinished / _FACTS).write_bytes(orjson.dumps(record, option=orjson.OPT_INDENT_2))
        return entry

    def promote(self, ref: str, *, reason: str = "") -> ModelVersion:
        """Put a version into production; the one that was there is archived. Harmless when it is there already.

        Args:
            ref: As `get` takes it, but `name` alone is the newest version.
            reason: For the history.

        Raises:
            NotFoundError: There is no such version.
        """
        ref = ref if "@" in ref else f"{ref}@latest"
        name = self.get(ref).name
        with self._changing(name) as ledger:
            chosen = self.get(ref)
            if chosen.version != ledger.production:
                replaced = ledger.production
                if replaced is not None:
                    ledger.previous.append(replaced)
                ledger.put_in_production(chosen.version)
                self._write(name, ledger, "promote", chosen.version, reason, replaced)
        return self.get(chosen.ref)

    def rollback(self, name: str, *, reason: str = "") -> ModelVersion:
        """Put the version back into production that was there before; repeat it to go back further.

        Raises:
            NotFoundError: There is no such model.
            ConflictError: There is no earlier production version.
        """
        self._check_known(name)
        with self._changing(name) as ledger:
            if not ledger.previous:
                raise ConflictError(
                    f"{name} has no earlier production version to go back to.",
                    hint=f"Promote another version instead; `agl models list {name}` shows them.",
                )
            replaced, target = ledger.production, ledger.previous.pop()
            ledger.put_in_production(target)
            self._write(name, ledger, "rollback", target, reason, replaced)
        return self.get(f"{name}@{target}")

    def archive(self, ref: str, *, reason: str = "", force: bool = False) -> ModelVersion:
        """Archive a version.

        Raises:
            NotFoundError: There is no such version.
            ConflictError: It is in production, and `force` is not set.
        """
        name = self.get(ref).name
        with self._changing(name) as ledger:
            chosen = self.get(ref)
            _refuse_production(chosen, force=force, verb="archive")
            if chosen.stage != "archived":
                ledger.take_out(chosen.version)
                replaced = chosen.version if chosen.stage == "production" else None
                self._write(name, ledger, "archive", chosen.version, reason, replaced)
        return self.get(chosen.ref)

    def delete(self, ref: str, *, reason: str = "", force: bool = False) -> None:
        """Delete a version and its files; its number is not used again, and the history keeps it.

        Raises:
            NotFoundError: There is no such version.
            ConflictError: It is in production, and `force` is not set.
        """
        name = self.get(ref).name
        with self._changing(name) as ledger:
            chosen = self.get(ref)
            _refuse_production(chosen, force=force, verb="delete")
            ledger.forget(chosen.version)
            replaced = chosen.version if chosen.stage == "production" else None
            # Written before the files go: what a crash leaves of them is not listed, and removed with the next change.
            self._write(name, ledger, "delete", chosen.version, reason, replaced)
            self._clean(self.root / name, ledger)

    def prune(self, name: str, *, keep: int, reason: str = "") -> list[ModelVersion]:
        """Delete the oldest candidates; what is or ever was in production stays.

        Args:
            name: Of which model.
            keep: So many of the newest candidates stay.
            reason: For the history.

        Returns:
            What was deleted, oldest first.
        """
        candidates = [version for version in self.versions(name) if version.stage == "candidate"]
        deleted: list[ModelVersion] = []
        for version in candidates[: max(0, len(candidates) - keep)]:
            with suppress(ConflictError, NotFoundError):  # promoted or deleted by somebody else meanwhile
                self.delete(version.ref, reason=reason)
                deleted.append(version)
        return deleted

    # -- plumbing ----------------------------------------

    @contextmanager
    def _changing(self, name: str) -> Generator[Ledger]:
        with exclusive_lock(self.root / name / ".lock", purpose=f"A change of {name}", wait_s=_LOCK_WAIT_S):
            ledger = self._ledger(name)
            used = [int(p.name[1:]) for p in (self.root / name).glob("v*") if _VERSION.fullmatch(p.name)]
            ledger.next_number = max([ledger.next_number, *(number + 1 for number in used)])
            yield ledger

    def _ledger(self, name: str) -> Ledger:
        path = self.root / name / _LEDGER
        try:
            return msgspec.json.decode(path.read_bytes(), type=Ledger)
        except FileNotFoundError:
            return Ledger()
        except (OSError, msgspec.MsgspecError) as error:
            raise StorageError(f"{path} cannot be read: {error}", hint="Restore it from a backup.") from error

    def _write(
        self, name: str, ledger: Ledger, action: Action, version: str, reason: str, replaced: str | None
    ) -> None:
        stage = "deleted" if action == "delete" else ledger.stage_of(version)
        change = StageChange(action=action, version=version, stage=stage, replaced=replaced, at=now(), reason=reason)
        ledger.history.append(change)
        write_atomic(self.root / name / _LEDGER, msgspec.json.format(msgspec.json.encode(ledger), indent=2))

    def _clean(self, folder: Path, ledger: Ledger) -> None:
        leftovers = [*folder.glob(f"{UNFINISHED}*"), *(folder / version for version in ledger.deleted)]
        for leftover in leftovers:
            try:
                if leftover.exists():
                    shutil.rmtree(leftover)
            except OSError as error:
                raise refused(leftover, error) from error

    def _parent_of(self, base: str) -> str | None:
        found = self.find(Path(base)) if base and Path(base).is_dir() else None
        if found is None and "@" in base:
            name, _, version = base.partition("@")
            found = next((v for v in self.versions(name) if v.version == version), None)
        return found.ref if found else None

    def _check_known(self, name: str) -> None:
        if not self.versions(name):
            self.get(name)


def _refuse_production(version: ModelVersion, *, force: bool, verb: str) -> None:
    if version.stage == "production" and not force:
        raise ConflictError(
            f"{version.ref} is in production.",
            hint=f"Promote another version or roll back first, or {verb} it by force.",
        )


def _read(path: Path, ledger: Ledger) -> ModelVersion:
    try:
        facts = orjson.loads(path.read_bytes())
        known = {key: value for key, value in facts.items() if key in _FIELDS}
        return replace(ModelVersion(path=path.parent, **known), stage=ledger.stage_of(path.parent.name))
    except (OSError, TypeError, AttributeError, orjson.JSONDecodeError) as error:
        raise StorageError(f"{path} cannot be read: {error}", hint="Restore it, or move the folder away.") from error
