"""docs/reference, written from the code by `python -m tools.reference`; `--check` fails when it is stale."""

from __future__ import annotations

import argparse
import difflib
import inspect
import json
import sys
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

import click
from tools import surface

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "reference"
KEEP_LINES = "\b\n"
NOTE = "<!-- Written by `make gen` from the code; change it there. -->"


def page(title: str, *blocks: str) -> str:
    """A Markdown page from its blocks."""
    return "\n\n".join([NOTE, f"# {title}", *blocks]) + "\n"


def table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table; bars and line breaks in cells are escaped."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(cell(text) for text in line) + " |" for line in lines)


def cell(text: str) -> str:
    """The text of one table cell."""
    parts = " ".join(text.split()).replace("|", "\\|").split("`")
    return "`".join(part if index % 2 else part.replace("<", "&lt;") for index, part in enumerate(parts))


def cli_page() -> str:
    """Every command with its arguments and options."""
    root, *members = surface.commands()
    everywhere = {option.name for option in root.command.params}
    codes = table(
        ("Exit code", "Meaning"), ((f"`{code}`", text) for code, text in surface.exit_codes().items())
    )
    return page(
        "Command line",
        "Data goes to stdout, progress and hints to stderr. `gpufleet COMMAND --help` shows the same.",
        command_block(root, hidden=set()),
        "Every command has the options above as well.",
        *(command_block(item, hidden=everywhere) for item in members),
        "## Exit codes",
        codes,
    )


def command_block(item: surface.Command, hidden: Container[str | None]) -> str:
    """One command: its help, its usage, its options except the `hidden` ones."""
    context = click.Context(item.command, info_name=item.path)
    usage = " ".join([item.path, *item.command.collect_usage_pieces(context)])
    blocks = [f"## {item.path}", help_text(item.command), f"```\n{usage}\n```"]
    options = [one for one in surface.options(item.command) if one.name not in hidden]
    if options:
        blocks.append(table(("Option", "Meaning"), (option_row(option, context) for option in options)))
    if isinstance(item.command, click.Group):
        members = [
            (name, item.command.get_command(context, name)) for name in item.command.list_commands(context)
        ]
        rows = [(f"`{name}`", member.get_short_help_str(200)) for name, member in members if member]
        blocks.append(table(("Command", "What it does"), rows))
    return "\n\n".join(blocks)


def help_text(command: click.Command) -> str:
    """The help of a command as Markdown: where click keeps line breaks, a code block."""
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    return "\n\n".join(
        f"```\n{text.removeprefix(KEEP_LINES)}\n```" if text.startswith(KEEP_LINES) else text
        for text in paragraphs
    )


def option_row(option: click.Option, context: click.Context) -> tuple[str, str]:
    """An option's names with its value, and its help with its default."""
    record = option.get_help_record(context)
    names, text = record or ("", "")
    return f"`{names}`", text


def crds_page() -> str:
    """Every custom resource with its columns and fields."""
    return page(
        "Custom resources",
        "`gpufleet up` installs these. `kubectl explain` shows the same fields.",
        *(crd_block(crd) for crd in surface.custom_resources()),
    )


def crd_block(crd: dict[str, Any]) -> str:
    """One custom resource."""
    spec = crd["spec"]
    names = spec["names"]
    short = ", ".join(f"`{name}`" for name in names.get("shortNames", ())) or "none"
    blocks = [f"## {names['kind']}"]
    for version in spec["versions"]:
        schema = version["schema"]["openAPIV3Schema"]
        identity = f"`{spec['group']}/{version['name']}`, {spec['scope'].lower()} scoped, `{names['plural']}`"
        blocks += [schema.get("description", ""), f"{identity}, short names: {short}."]
        if columns := version.get("additionalPrinterColumns"):
            rows = [(item["name"], f"`{item['jsonPath']}`", item.get("description", "")) for item in columns]
            blocks.append(table(("Column", "Path", "Meaning"), rows))
        own = {
            **schema,
            "properties": {
                name: member for name, member in schema["properties"].items() if name in ("spec", "status")
            },
        }
        blocks.append(field_table(surface.fields(own, {})))
        if rules := [*validations(own)]:
            blocks.append(table(("Where", "Rule", "Message"), rules))
    return "\n\n".join(blocks)


def validations(schema: Any, path: str = "") -> Iterable[tuple[str, str, str]]:
    """The CEL rules of a schema and where they stand."""
    for rule in schema.get("x-kubernetes-validations", ()):
        yield path or "(whole)", f"`{rule['rule']}`", rule.get("message", rule.get("messageExpression", ""))
    for name, member in schema.get("properties", {}).items():
        yield from validations(member, f"{path}.{name}" if path else name)
    if isinstance(schema.get("items"), dict):
        yield from validations(schema["items"], f"{path}[]")


def field_table(fields: Iterable[surface.Field]) -> str:
    """Fields as a table."""
    rows = [(f"`{f.path}`", f.type, presence(f), f.description) for f in fields]
    return table(("Field", "Type", "Default", "Meaning"), rows)


def presence(field: surface.Field) -> str:
    """Whether a field must be given, or what holds when it is not."""
    return "required" if field.required else f"`{field.default}`" if field.default else ""


def metrics_page() -> str:
    """Every metric family."""
    rows = [(f"`{m.name}`", m.type, ", ".join(m.labels), m.help) for m in surface.metrics()]
    return page(
        "Metrics",
        "Every long-running process serves its metrics at `/metrics`, beside `/healthz` and `/readyz`.",
        table(("Metric", "Type", "Labels", "Meaning"), rows),
    )


def reasons_page() -> str:
    """The vocabulary of reasons."""
    rows = [(f"`{code}`", text) for code, text in surface.reason_codes().items()]
    return page(
        "Reason codes",
        "One code for one cause, everywhere: the pod's conditions, Events, `gpufleet why`, metrics.",
        table(("Code", "Meaning"), rows),
    )


def fleet_page() -> str:
    """The fleet file's fields."""
    schema = surface.fleet_schema()
    root = {**schema, **surface.resolve(schema, schema.get("$defs", {}))}
    return page(
        "Fleet file",
        "What `gpufleet up --fleet FILE` reads; editors check it with [its schema](fleet.schema.json).",
        root.get("description", ""),
        field_table(surface.fields(root, schema.get("$defs", {}))),
    )


def render() -> dict[str, str]:
    """Every generated file, by name."""
    return {
        "cli.md": cli_page(),
        "crds.md": crds_page(),
        "metrics.md": metrics_page(),
        "reasons.md": reasons_page(),
        "fleet-file.md": fleet_page(),
        "fleet.schema.json": json.dumps(surface.fleet_schema(), indent=2) + "\n",
    }


def stale(name: str, content: str) -> list[str]:
    """How the file differs from what the code says, as the first lines of a diff."""
    path = FOLDER / name
    current = path.read_text() if path.exists() else ""
    difference = difflib.unified_diff(
        current.splitlines(), content.splitlines(), f"docs/reference/{name}", "the code", n=0, lineterm=""
    )
    return list(difference)[:12]


def main() -> None:
    """Write the reference, or check it with `--check`."""
    parser = argparse.ArgumentParser(description="Write docs/reference from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file is stale")
    check = parser.parse_args().check
    files = render()
    FOLDER.mkdir(parents=True, exist_ok=True)
    if check:
        differences = [line for name, content in files.items() for line in stale(name, content)]
        differences += [
            f"docs/reference/{p.name} is not generated" for p in FOLDER.iterdir() if p.name not in files
        ]
        if differences:
            sys.exit("\n".join([*differences, "hint: make gen"]))
        return
    for name, content in files.items():
        (FOLDER / name).write_text(content)
        print(f"wrote docs/reference/{name}")


if __name__ == "__main__":
    main()
