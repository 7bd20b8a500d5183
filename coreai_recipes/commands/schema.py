"""`recipe schema`: the JSON Schema of recipes."""


def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from coreai_recipes.recipe.editor_schema import schema_text

    print(schema_text(), end="")
