"""Writes settings as TOML (Python reads TOML but does not write it)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def to_toml(data: Mapping[str, Any], prefix: str = "") -> str:
    """Return ``data`` as TOML; keys that are None are written as comments, since TOML has no null."""
    lines, tables = [], []
    for key, value in data.items():
        if isinstance(value, Mapping) and not _is_limits(value):
            tables.append((key, value))
        elif value is None:
            lines.append(f"# {key} =")
        else:
            lines.append(f"{_key(key)} = {_value(value)}")
    text = "\n".join(lines) + "\n" if lines else ""
    for key, value in tables:
        name = f"{prefix}{_key(key)}"
        text += f"\n[{name}]\n" + to_toml(value, f"{name}.").lstrip("\n")
    return text


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else json.dumps(key)


def _is_limits(value: Mapping[str, Any]) -> bool:
    return set(value) == {"low", "high"}


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"[{value['low']}, {value['high']}]"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return repr(value)
