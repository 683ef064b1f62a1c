"""Settings of the tools: a TOML file, keys by the names of environment variables. Secrets are never in the file.

The file is `AGL_TOOLS`, or `tools.toml` in `AGL_HOME`; without one the defaults hold. An unknown key is an error that
names its line. Nothing here comes from a model or through an API.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from agentlightning.config.settings import Settings
from agentlightning.config.tomlfile import TomlText
from agentlightning.kit.errors import ConfigError

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,40}$")]
Host = Annotated[str, StringConstraints(pattern=r"^(\*|(\*\.)?[a-z0-9.-]+(:[0-9]+)?|\[[0-9a-f:]+\](:[0-9]+)?)$")]
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
"""Name of an environment variable."""
Method = Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PythonSettings(_Strict):
    """Of the tool `python`."""

    sandbox: Literal["auto", "bubblewrap", "landlock", "off"] = "auto"
    timeout_s: float = Field(default=20.0, gt=0, le=3600)
    memory_mb: int = Field(default=512, ge=64)
    processes: int = Field(default=16, ge=1, le=512)
    output_bytes: int = Field(default=32 * 1024, ge=1024)
    files_mb: int = Field(default=32, ge=1)
    packages: tuple[str, ...] = ()
    """Taken along where Python has to be copied; elsewhere all that is installed can be imported."""
    at_once: int = Field(default=4, ge=1)
    """Programs that run at a time; more wait."""


class WebSettings(_Strict):
    """Of everything that fetches."""

    timeout_s: float = Field(default=20.0, gt=0)
    max_bytes: int = Field(default=5 * 2**20, ge=1024)
    max_redirects: int = Field(default=5, ge=0, le=20)
    allow_hosts: tuple[Host, ...] = ()
    """Only these may be browsed, if any are named; `*.example.com` for all below."""
    private_hosts: tuple[Host, ...] = ()
    """`host:port` on networks of your own that may be browsed and called although they are not public."""


class SearchSettings(_Strict):
    """Of the tool `web_search`."""

    backend: Literal["searxng", "brave", "tavily"]
    url: str | None = None
    """Of a SearXNG server; of others only to go through a gateway of your own."""
    key_env: Variable | None = None
    """Where the key is; `BRAVE_API_KEY` or `TAVILY_API_KEY` by default."""
    results: int = Field(default=8, ge=1, le=20)

    @model_validator(mode="after")
    def _needs(self) -> SearchSettings:
        if self.backend == "searxng" and not self.url:
            raise ValueError("a SearXNG server needs its url")
        return self


class FilesSettings(_Strict):
    """Of the tool `files`."""

    max_read_bytes: int = Field(default=256 * 1024, ge=1024)
    max_write_bytes: int = Field(default=2 * 2**20, ge=1024)
    max_total_mb: int = Field(default=256, ge=1)
    max_files: int = Field(default=2000, ge=1)


class DatabaseSettings(_Strict):
    """One database of the tool `database`."""

    url: str | None = None
    """`sqlite:///FILE`, or `postgresql://...` without a password."""
    url_env: Variable | None = None
    """Where the whole URL is, if it has a password."""
    description: str = ""
    tables: tuple[str, ...] | None = None
    """Only these can be read."""
    writable: bool = False
    """Allows INSERT, UPDATE and DELETE; nothing ever changes the schema."""
    max_rows: int = Field(default=200, ge=1)
    max_bytes: int = Field(default=256 * 1024, ge=1024)
    timeout_s: float = Field(default=15.0, gt=0)

    @model_validator(mode="after")
    def _one(self) -> DatabaseSettings:
        if (self.url is None) == (self.url_env is None):
            raise ValueError("a database needs either url or url_env")
        return self


class HttpSecret(_Strict):
    """A header that is added for one host, and that nobody sees."""

    host: Host
    header: str
    value_env: Variable
    prefix: str = ""
    """E.g. `"Bearer "`."""


class HttpSettings(_Strict):
    """Of the tool `http`."""

    hosts: dict[Host, tuple[Method, ...]] = Field(default_factory=dict[str, tuple[Method, ...]])
    """Which methods may be sent where; `*` for every public host."""
    secrets: tuple[HttpSecret, ...] = ()


class McpSettings(_Strict):
    """An MCP server whose tools are used. It is started, or called, as configured; never as a model says."""

    command: tuple[str, ...] = ()
    url: str | None = None
    env: tuple[Variable, ...] = ()
    """Variables that the command gets of this process's environment, besides `PATH` and `HOME`."""
    headers_env: dict[str, Variable] = Field(default_factory=dict[str, str])
    tools: tuple[str, ...] | None = None
    """Only these; all by default."""
    permission: str = "agent:assign"
    timeout_s: float = Field(default=60.0, gt=0)

    @model_validator(mode="after")
    def _one(self) -> McpSettings:
        if bool(self.command) == bool(self.url):
            raise ValueError("an MCP server needs either command or url")
        return self


class ToolSettings(_Strict):
    """All of them."""

    workspace: Path | None = None
    """Folder with a folder for each user; `workspaces` in `AGL_HOME` by default."""
    python: PythonSettings = PythonSettings()
    web: WebSettings = WebSettings()
    search: SearchSettings | None = None
    files: FilesSettings = FilesSettings()
    databases: dict[Name, DatabaseSettings] = Field(default_factory=dict[str, DatabaseSettings])
    http: HttpSettings = HttpSettings()
    mcp: dict[Name, McpSettings] = Field(default_factory=dict[str, McpSettings])


def load_tool_settings(path: Path | None = None, environment: Mapping[str, str] | None = None) -> ToolSettings:
    """From the file and the environment.

    Without a `[search]` in the file, `SEARXNG_URL`, `BRAVE_API_KEY` or `TAVILY_API_KEY` choose the search engine;
    `AGL_SANDBOX` chooses the sandbox unless the file does.

    Raises:
        ConfigError: The file cannot be read or is wrong; every fault is named with its line.
    """
    environment = os.environ if environment is None else environment
    home = Path(environment.get("AGL_HOME") or Settings().home)
    named = path or (Path(environment["AGL_TOOLS"]) if environment.get("AGL_TOOLS") else None)
    file = named or home / "tools.toml"
    settings = ToolSettings()
    if named is not None or file.exists():
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"The tools' settings in {file} cannot be read: {error}.") from error
        settings = TomlText(text, str(file)).parse(ToolSettings)
    changes: dict[str, object] = {}
    if settings.workspace is None:
        changes["workspace"] = home / "workspaces"
    if settings.search is None and (search := _search_of(environment)) is not None:
        changes["search"] = search
    if environment.get("AGL_SANDBOX") and settings.python.sandbox == "auto":
        changes["python"] = _with_sandbox(settings.python, environment["AGL_SANDBOX"])
    return settings.model_copy(update=changes)


def _with_sandbox(python: PythonSettings, mechanism: str) -> PythonSettings:
    try:
        return PythonSettings.model_validate({**python.model_dump(), "sandbox": mechanism})
    except ValidationError as error:
        raise ConfigError(
            f"AGL_SANDBOX is {mechanism!r}.", hint="It has to be auto, bubblewrap, landlock or off."
        ) from error


def _search_of(environment: Mapping[str, str]) -> SearchSettings | None:
    if url := environment.get("SEARXNG_URL"):
        return SearchSettings(backend="searxng", url=url)
    if environment.get("BRAVE_API_KEY"):
        return SearchSettings(backend="brave")
    if environment.get("TAVILY_API_KEY"):
        return SearchSettings(backend="tavily")
    return None


def host_matches(pattern: str, host: str, port: int) -> bool:
    """Whether `example.com`, `example.com:8080`, `*.example.com` or `*` covers a host; without a port, any."""
    name, _, wanted = pattern.rpartition(":") if pattern.rpartition(":")[2].isdigit() else (pattern, "", "")
    if wanted and int(wanted) != port:
        return False
    host = host.lower().rstrip(".")
    if name == "*":
        return True
    return host.endswith(name[1:]) if name.startswith("*.") else host == name.strip("[]")
