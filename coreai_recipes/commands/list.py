"""`recipe list`: the built-in recipes."""

from coreai_recipes.commands.options import JsonOption


def list_(as_json: JsonOption = False) -> None:
    """List the built-in recipes."""
    from coreai_recipes.recipe import list_recipes
    from coreai_recipes.report import console

    entries = list_recipes()
    if as_json:
        fields = ("name", "family", "parameters", "kinds", "rotary")
        console.print_json([{field: getattr(entry, field) for field in fields} for entry in entries])
        return
    rows = [
        (
            e.name,
            e.family or "-",
            f"{e.parameters / 1e6:,.1f} M" if e.parameters else "-",
            ", ".join(f"{n} {k}" for k, n in e.kinds.items()),
            e.rotary,
        )
        for e in entries
    ]
    console.print_table(("name", "family", ">parameters", "layers", "rotary"), rows)
