"""What a recipe says of the chat service that judges: where it is, how it samples, what it may cost."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import (
    Annotated,
    Any,
    Required,  # pydantic reads typing's own only from Python 3.12 on
)
from urllib.parse import urlsplit

from pydantic import AfterValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from llmrl.errors import RecipeError
from llmrl.options import typed

NAME_OF_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,99}")
KEY_IN_CAPITALS = re.compile(r"(?=.*[0-9])[A-Z0-9]{16,}")  # such as AKIA... or hexadecimal digits
SECRET_FIELD = re.compile(r"(?i)key|secret|password|authorization|bearer")
OWN_FIELDS = ("model", "messages", "stream", "n")


def hidden(text: str) -> PydanticCustomError:
    """A problem whose value is never shown, as it may be a secret."""
    return PydanticCustomError("secret", text)


def variable(name: str) -> str:
    if not NAME_OF_VARIABLE.fullmatch(name) or KEY_IN_CAPITALS.fullmatch(name):
        raise hidden(
            "found something else than the name of an environment variable, such as JUDGE_API_KEY. Put the key into a "
            "variable and name it here: keys never stand in a recipe."
        )
    if name not in os.environ:
        raise hidden(f"names {name}, which the environment does not have. Export it.")
    return name


def address(url: str) -> str:
    try:
        parts = urlsplit(url)
        plain = not (parts.username or parts.password or parts.query or parts.fragment)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        usable, plain = False, True
    if not usable:
        raise hidden("expected http:// or https://, a host and a path, such as http://127.0.0.1:8000/v1.")
    if not plain:
        raise hidden("found a user, a query or a fragment in it. Name a key by service.key_env instead.")
    return url.rstrip("/")


def fields(body: dict[str, Any]) -> dict[str, Any]:
    own = [name for name in body if name in OWN_FIELDS]
    if own:
        raise hidden(f"sets {', '.join(own)}; expected other fields than {', '.join(OWN_FIELDS)}, which are set here.")
    if any(SECRET_FIELD.search(name) for name in body):
        raise hidden("has a field for a secret. Name the environment variable that holds it by service.key_env.")
    return body


Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, le=1800)]


class ServiceOptions(TypedDict, total=False):
    """The `service` option of every judge; what each key means, and its default, stands at `Service`."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    url: Required[Annotated[str, AfterValidator(address)]]
    model: Required[Annotated[str, Field(min_length=1)]]
    key_env: Annotated[str, AfterValidator(variable)] | None
    temperature: Annotated[float, Field(ge=0)]
    max_tokens: Count
    seed: int
    body: Annotated[dict[str, Any], AfterValidator(fields)]
    concurrency: Count
    timeout: Seconds
    deadline: Seconds
    retries: Annotated[int, Field(ge=0)]
    backoff: Annotated[float, Field(ge=0)]
    breaker: Count
    pause: Annotated[float, Field(ge=0)]
    call_budget: Count | None
    token_budget: Count | None
    cache: str | None
    cache_mb: Count


@dataclass(frozen=True)
class Service:
    """A chat service.

    url: up to and without /chat/completions. key_env: the environment variable that holds the API key.
    temperature, max_tokens, seed: how an answer is sampled. body: further fields of the request, or null to leave one
    out ({max_tokens: null, max_completion_tokens: 2048}, {chat_template_kwargs: {enable_thinking: false}}).
    concurrency: requests at once. timeout: seconds for one request. deadline: seconds for one verdict with all its
    retries, not counting the wait for a free place. retries: further requests for a verdict. backoff: seconds before
    the first of them, doubled each time.
    breaker: after so many failed requests in a row nothing is asked for `pause` seconds.
    call_budget, token_budget: requests, and tokens as the service counts them, of this process; tokens may be passed by
    requests already under way. cache: folder of verdicts, shared by processes and runs; cache_mb: its largest size.
    """

    url: str
    model: str
    key_env: str | None = None
    temperature: float = 0.0
    max_tokens: int = 1024
    seed: int = 0
    body: dict[str, Any] = field(default_factory=dict)
    concurrency: int = 16
    timeout: float = 60.0
    deadline: float = 300.0
    retries: int = 3
    backoff: float = 0.5
    breaker: int = 32
    pause: float = 30.0
    call_budget: int | None = None
    token_budget: int | None = None
    cache: str | None = None
    cache_mb: int = 256


def service_of(options: ServiceOptions) -> Service:
    """The service that the options describe. Raises RecipeError, which never repeats what may be a secret."""
    values, problems = typed(ServiceOptions, options, "service")
    if problems:
        raise RecipeError(problems)
    return Service(**values)
