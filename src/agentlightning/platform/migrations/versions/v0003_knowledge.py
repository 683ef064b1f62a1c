"""Knowledge: items with versions and text indexes, vectors, what was imported; conversations and memories."""

import secrets

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.exc import DBAPIError

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
DOCUMENT = sa.JSON().with_variant(JSONB(), "postgresql")
TAGS = sa.JSON().with_variant(ARRAY(sa.Text), "postgresql")
MOMENT = sa.DateTime(timezone=True)

EXTENSION = (
    "SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'vector'"
)


def upgrade() -> None:
    _items()
    _of_items()
    _imports()
    _conversations()
    _memories()
    if op.get_bind().dialect.name == "sqlite":
        _fts5()
    else:
        _tsvector()
        _pgvector()


def _items() -> None:
    op.create_table(
        "knowledge_items",
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("title", sa.String(500), nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("category", sa.String(100)),
        sa.Column("tags", TAGS, nullable=False),
        sa.Column("metadata", DOCUMENT, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("updated_at", MOMENT, nullable=False),
        sa.Column("created_by", sa.String(255), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("content_hash", sa.String(64), nullable=False),
        sa.Column("source", sa.String(700)),
        sa.Column("facets", sa.Text, nullable=False),
        sa.Column("embedded_by", sa.String(100), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_knowledge_items"),
        sqlite_autoincrement=True,
    )
    op.create_index("idx_knowledge_category", "knowledge_items", ["category", "id"])
    op.create_index("ix_knowledge_items_embedded_by", "knowledge_items", ["embedded_by", "id"])
    op.create_index("ix_knowledge_items_source", "knowledge_items", ["source"])
    op.create_index("ix_knowledge_items_content_hash", "knowledge_items", ["content_hash"])


def _of_item(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["item_id"], ["knowledge_items.id"], name=f"fk_{table}_item_id", ondelete="CASCADE")


def _of_items() -> None:
    op.create_table(
        "knowledge_versions",
        sa.Column("item_id", NUMBER, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("title", sa.String(500), nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("category", sa.String(100)),
        sa.Column("tags", TAGS, nullable=False),
        sa.Column("metadata", DOCUMENT, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("created_by", sa.String(255), nullable=False),
        sa.PrimaryKeyConstraint("item_id", "version", name="pk_knowledge_versions"),
        _of_item("knowledge_versions"),
    )
    op.create_table(
        "knowledge_tags",
        sa.Column("tag", sa.String(100), nullable=False),
        sa.Column("item_id", NUMBER, nullable=False),
        sa.PrimaryKeyConstraint("tag", "item_id", name="pk_knowledge_tags"),
        _of_item("knowledge_tags"),
    )
    op.create_index("ix_knowledge_tags_item_id", "knowledge_tags", ["item_id"])
    op.create_table(
        "knowledge_vectors",
        sa.Column("item_id", NUMBER, nullable=False, autoincrement=False),
        sa.Column("embedder", sa.String(100), nullable=False),
        sa.Column("no", sa.BigInteger, nullable=False),
        sa.Column("vector", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("item_id", name="pk_knowledge_vectors"),
        _of_item("knowledge_vectors"),
    )
    op.create_index("ix_knowledge_vectors_no", "knowledge_vectors", ["embedder", "no"])
    op.create_table(
        "knowledge_bands",
        sa.Column("band", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("item_id", NUMBER, nullable=False, autoincrement=False),
        sa.PrimaryKeyConstraint("band", "item_id", name="pk_knowledge_bands"),
        _of_item("knowledge_bands"),
    )
    op.create_index("ix_knowledge_bands_item_id", "knowledge_bands", ["item_id"])


def _imports() -> None:
    op.create_table(
        "knowledge_sources",
        sa.Column("source", sa.String(700), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("items", sa.Integer, nullable=False),
        sa.Column("imported_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("source", name="pk_knowledge_sources"),
    )
    op.create_table(
        "knowledge_imports",
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("report", DOCUMENT, nullable=False),
        sa.Column("started_at", MOMENT, nullable=False),
        sa.Column("updated_at", MOMENT, nullable=False),
        sa.Column("created_by", sa.String(255), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_knowledge_imports"),
        sqlite_autoincrement=True,
    )
    state = op.create_table(
        "knowledge_state",
        sa.Column("id", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("token", sa.String(32), nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("last_no", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_knowledge_state"),
    )
    op.bulk_insert(state, [{"id": 1, "token": secrets.token_hex(8), "generation": 0, "last_no": 0}])


def _conversations() -> None:
    op.create_table(
        "conversations",
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("user_id", NUMBER, nullable=False),
        sa.Column("session_id", sa.String(200), nullable=False),
        sa.Column("summary", sa.Text, nullable=False),
        sa.Column("summarised", sa.Integer, nullable=False),
        sa.Column("truncated", sa.Boolean, nullable=False),
        sa.Column("messages", sa.Integer, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("updated_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_conversations"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_conversations_user_id", ondelete="CASCADE"),
        sa.UniqueConstraint("user_id", "session_id", name="uq_conversations_user_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_conversations_user_id", "conversations", ["user_id", "id"])
    op.create_table(
        "conversation_messages",
        sa.Column("conversation_id", NUMBER, nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("type", sa.String(32), nullable=False),
        sa.Column("message", DOCUMENT, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("conversation_id", "position", name="pk_conversation_messages"),
        sa.ForeignKeyConstraint(
            ["conversation_id"],
            ["conversations.id"],
            name="fk_conversation_messages_conversation_id",
            ondelete="CASCADE",
        ),
    )


def _memories() -> None:
    op.create_table(
        "memories",
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("user_id", NUMBER, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("session_id", sa.String(200)),
        sa.Column("metadata", DOCUMENT, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("updated_at", MOMENT, nullable=False),
        sa.Column("recalled_at", MOMENT),
        sa.Column("recalls", sa.Integer, nullable=False),
        sa.Column("text_hash", sa.String(64), nullable=False),
        sa.Column("embedder", sa.String(100), nullable=False),
        sa.Column("vector", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_memories"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_memories_user_id", ondelete="CASCADE"),
        sa.UniqueConstraint("user_id", "text_hash", name="uq_memories_user_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_memories_user_id", "memories", ["user_id", "id"])


def _fts5() -> None:
    """The text stays where it is: the index refers to it. No triggers: an untrusted schema may not write to it."""
    op.execute(
        "CREATE VIRTUAL TABLE knowledge_fts USING fts5(title, content, facets, content='knowledge_items', "
        "content_rowid='id', tokenize='porter unicode61 remove_diacritics 2')"
    )


def _tsvector() -> None:
    op.execute(
        "ALTER TABLE knowledge_items ADD COLUMN search tsvector GENERATED ALWAYS AS ("
        "setweight(to_tsvector('english', title), 'A') || setweight(to_tsvector('english', left(content, 200000)), 'B')"
        " || to_tsvector('simple', facets)) STORED"
    )
    op.execute("CREATE INDEX idx_knowledge_content ON knowledge_items USING GIN (search) WITH (fastupdate = off)")
    op.execute("CREATE INDEX idx_knowledge_tags ON knowledge_items USING GIN (tags)")


def _pgvector() -> None:
    """Where the extension is, or may be made; its index is made for each embedder, whose dimension it needs."""
    connection = op.get_bind()
    offered = connection.execute(sa.text("SELECT 1 FROM pg_available_extensions WHERE name = 'vector'")).scalar()
    if offered and connection.execute(sa.text(EXTENSION)).scalar() is None:
        try:
            with connection.begin_nested():
                connection.execute(sa.text("CREATE EXTENSION IF NOT EXISTS vector SCHEMA public"))
        except DBAPIError:  # not allowed, or somebody else is just making it
            pass
    schema = connection.execute(sa.text(EXTENSION)).scalar()
    if schema is not None:
        op.execute(
            "CREATE TABLE knowledge_embeddings ("
            "item_id bigint PRIMARY KEY REFERENCES knowledge_items ON DELETE CASCADE, "
            f'embedder varchar(100) NOT NULL, embedding "{schema}".vector NOT NULL)'
        )
