"""The command `passes`."""

from __future__ import annotations

from typing import Annotated

import typer

from suture.cli.application import EPILOG, Json, app
from suture.cli.display import print_json
from suture.cli.guard import guarded


@app.command("passes", epilog=EPILOG)
@guarded
def passes_(
    name: Annotated[str | None, typer.Argument(help="A pass, to see its options.")] = None,
    json: Json = False,
) -> None:
    """List the passes, or one pass with its options."""
    from suture.cli.display import print_pass, print_rows
    from suture.passes.options import describe
    from suture.passes.registry import find, passes

    chosen = [find(name)] if name else list(passes().values())
    if json:
        print_json(
            {
                "passes": [
                    {
                        "name": entry.name,
                        "contract": entry.contract.value,
                        "summary": entry.summary,
                        "options": [
                            {"name": o.name, "takes": describe(o.type), "required": o.required, "doc": o.doc}
                            for o in entry.options
                        ],
                    }
                    for entry in chosen
                ]
            }
        )
    elif name:
        print_pass(chosen[0])
    else:
        print_rows(["pass", "promises", ""], [[p.name, p.contract.value, p.summary] for p in chosen], left=(0, 1, 2))
