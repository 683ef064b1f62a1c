"""Databases: one writer that groups commits, a few readers, errors that say what to do. Knows no tables of ours."""

from agentlightning.kit.db.database import SqliteDatabase
from agentlightning.kit.db.session import Params, Row, Session
from agentlightning.kit.db.sqlite import Synchronous

__all__ = ["Params", "Row", "Session", "SqliteDatabase", "Synchronous"]
