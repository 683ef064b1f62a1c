"""Databases: one writer that groups commits, a few readers, errors that say what to do. Knows no tables of ours.

`agentlightning.kit.db.postgres` is imported by itself: its driver is an optional package.
"""

from agentlightning.kit.db.base import Database
from agentlightning.kit.db.database import SqliteDatabase
from agentlightning.kit.db.expressions import contains, one_of
from agentlightning.kit.db.jobs import Announcements, Merge
from agentlightning.kit.db.session import BeforeCommit, Params, Row, Session
from agentlightning.kit.db.sqlite import Synchronous

__all__ = [
    "Announcements",
    "BeforeCommit",
    "Database",
    "Merge",
    "Params",
    "Row",
    "Session",
    "SqliteDatabase",
    "Synchronous",
    "contains",
    "one_of",
]
