"""What the extra `zoo` installs. A leaf but for errors."""

from importlib.util import find_spec

from coreai_recipes.errors import UserError

EXTRA = "pip install 'coreai-recipes[zoo]'"
PACKAGES = {"distributed": "dask[distributed]", "fsspec": "fsspec", "pyarrow": "pyarrow"}


def check_extra() -> None:
    """Raise UserError where a part of it is missing, before anything is done that would be in vain."""
    missing = [package for module, package in PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise UserError(f"the extra zoo is not installed ({', '.join(missing)} missing): {EXTRA}")
