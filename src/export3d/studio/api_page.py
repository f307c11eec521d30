"""The page that describes the API, made from its OpenAPI description; it loads nothing from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any


def api_page(description: Mapping[str, Any]) -> str:
    """An HTML page of an OpenAPI description: every operation, its parameters and the fields of its body."""
    info = description["info"]
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(info['title'])}: API</title>",
        '<link rel="stylesheet" href="/page/page.css"><link rel="stylesheet" href="/page/api.css">'
        '<link rel="icon" href="/page/icon.svg">',
        f"<main><h1>{escape(info['title'])}: API</h1><p>Version {escape(info['version'])}. ",
        f'{escape(info["description"])} As data: <a href="/openapi.json">openapi.json</a>. '
        'Gradio\'s client finds the same verbs at <code>/gradio</code>. <a href="/">Back to the studio</a></p>',
    ]
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            parts.append(f"<section><h2><code>{method.upper()} {escape(path)}</code></h2>")
            parts.append(f"<p>{escape(operation.get('description', ''))}</p>")
            rows = [_row(one["name"], one["schema"], one["in"]) for one in operation.get("parameters", [])]
            for content, body in operation.get("requestBody", {}).get("content", {}).items():
                parts.append(f"<p>Body: <code>{escape(content)}</code></p>")
                rows += _fields(body["schema"])
            if rows:
                head = "<tr><th>field<th>where<th>type<th>default</tr>"
                parts.append(f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>")
            parts.append("</section>")
    return "\n".join([*parts, "</main></html>"])


def _fields(schema: Mapping[str, Any]) -> Iterator[str]:
    """Rows of the fields of a body, of each of its alternatives."""
    known = schema.get("$defs", {})
    for one in schema.get("oneOf", [schema]):
        kind = known.get(one.get("$ref", "").rpartition("/")[2], one)
        where = kind.get("title", "body").lower()
        for name, field in kind.get("properties", {}).items():
            yield _row(name, field, where)


def _row(name: str, schema: Mapping[str, Any], where: str) -> str:
    default = json.dumps(schema["default"]) if "default" in schema else ""
    cells = (name, where, _words(schema), default)
    return "<tr>" + "".join(f"<td>{escape(cell)}" for cell in cells) + "</tr>"


def _words(schema: Mapping[str, Any]) -> str:
    """What values a field takes."""
    if "description" in schema:
        return str(schema["description"])
    if "const" in schema:
        return json.dumps(schema["const"])
    if "enum" in schema:
        return " or ".join(map(json.dumps, schema["enum"]))
    if "anyOf" in schema:
        return " or ".join(map(_words, schema["anyOf"]))
    limits = [f"{schema[key]:g}" for key in ("minimum", "maximum") if key in schema]
    return " ".join([str(schema.get("type", "any")), *([" to ".join(limits)] if len(limits) == 2 else [])])
