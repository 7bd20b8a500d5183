"""A built folder, opened: nothing in it is believed."""

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coreai_recipes.errors import BundleError
from coreai_recipes.manifest.contents import foreign_entries
from coreai_recipes.manifest.files import locate, read_regular
from coreai_recipes.manifest.reading import (
    MANIFEST,
    PACKAGES,
    RECIPE,
    REPORT,
    read_manifest,
    read_report,
    read_sealed,
    typed,
)
from coreai_recipes.manifest.schema import Manifest
from coreai_recipes.manifest.staging import recover

if TYPE_CHECKING:
    from coreai_recipes.lint.findings import Lint
    from coreai_recipes.recipe import Recipe

RECIPE_BYTES = 1 << 20  # its reader takes no more


def identity_of(folder: Path) -> str:
    """Of manifest.json, which holds the digest of every other file: another one is another bundle."""
    return digest_of(folder / MANIFEST)


@dataclass(frozen=True)
class Bundle:
    """A built folder. When it was built just now: `seconds` are those of the build's steps, `left_out` what of the
    checkpoint it did not use, `notes` what it decided against the recipe's word, `lint` which rules of the engine's the
    package breaks, `weights` how many there are in the package, their bytes and forms."""

    path: Path
    manifest: dict[str, Any]
    report: dict[str, Any]
    seconds: dict[str, float] | None = None
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    lint: "Lint | None" = None
    weights: dict[str, Any] | None = None

    @classmethod
    def open(cls, path: str | Path) -> "Bundle":
        """The bundle at `path`. Raises BundleError when there is none, when its format is a later one, and when what
        its files say cannot be. What contradicts the recipe that was built is told where that is asked for: opening
        takes nothing of what builds a bundle.
        """
        path = Path(path)
        recover(path)
        try:
            manifest, report = read_manifest(path), read_report(path)
        except (FileNotFoundError, NotADirectoryError):
            raise BundleError(
                f"{path}: not a bundle: it has no {MANIFEST} and {REPORT}; `recipe build` writes one"
            ) from None
        except OSError as error:
            raise BundleError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from None
        bundle = cls(path, manifest, report)
        bundle._check_places()
        bundle._check_recipe()
        return bundle

    @cached_property
    def described(self) -> Manifest:
        """The manifest, typed."""
        return typed(Manifest, self.manifest, f"{self.path}: {MANIFEST}")

    @property
    def recipe(self) -> "Recipe":
        """The resolved recipe that was built. Raises BundleError where the manifest contradicts it."""
        return self._recipe

    @cached_property
    def _recipe(self) -> "Recipe":
        from coreai_recipes.planning.contract import hold_manifest
        from coreai_recipes.recipe.loader import load_sealed

        self._check_recipe()
        recipe = load_sealed(self.path / RECIPE)
        hold_manifest(self.described, recipe, str(self.path))
        return recipe

    @property
    def package(self) -> Path:
        """Its package, or what several beside one another are named after. Raises BundleError where they are not those
        of its recipe, for whoever looks inside."""
        from coreai_recipes.storage.chunks import packages_of

        names = [program.file for program in self.described.programs]
        wanted = [path.name for path in packages_of(self.recipe, self._package)]
        if names != wanted:
            raise BundleError(
                f"{self.path}: has the packages {', '.join(names)}, and its recipe asks for {', '.join(wanted)}: "
                "`recipe run`, `chat` and `lint` take them all the same"
            )
        return self._package

    @property
    def _package(self) -> Path:
        return self.path / PACKAGES[self.recipe.export.format]

    def _check_recipe(self) -> None:
        """Raise BundleError with all that was modified, where the recipe was."""
        if hashlib.sha256(_read_recipe(self.path)).hexdigest() != self.described.recipe_sha256:
            self.check_files()

    @property
    def bytes(self) -> int:
        """The size of every file that was sealed."""
        return sum(file.bytes for file in self.described.files.values())

    def _check_places(self) -> None:
        """Raise BundleError where something is no file, or a link that leads outside: whoever reads it later does not
        look again."""
        problems: list[str] = []
        for name in self.described.files:
            try:
                locate(self.path, name)
            except (FileNotFoundError, NotADirectoryError):
                continue  # whoever needs it says so
            except BundleError as error:
                problems += error.problems
        added = foreign_entries(self.path, self.described)
        problems += [
            f"{self.path}: added since it was built: {name}" for name in added if (self.path / name).is_symlink()
        ]
        BundleError.collect(problems)

    def check_package(self) -> None:
        """Raise UserError where the manifest contradicts the recipe, or a package is not what the manifest says of it.

        Digests are `check_files`'s.
        """
        from coreai_recipes.planning.contract import hold_package

        _ = self.recipe  # whose reader holds the manifest against it
        places = tuple(package.file for package in self.described.packages)
        problems = []
        for name, sealed in sorted(self.described.files.items()):
            if name.startswith(places):
                try:
                    size = locate(self.path, name).stat().st_size
                except (FileNotFoundError, NotADirectoryError):
                    problems.append(f"{self.path}: missing since it was built: {name}")
                    continue
                if size != sealed.bytes:
                    problems.append(f"{self.path}: modified since it was built: {name}")
        BundleError.collect(problems)
        for program in self.described.programs:
            hold_package(self.path, program, self.described)

    def check_ends(self) -> None:
        """Raise BundleError where manifest.json, which no digest seals, ends an answer elsewhere than tokens.json."""
        from coreai_recipes.tokenizer.tokens import TOKENS, read_tokens

        if TOKENS in self.described.files and set(read_tokens(self.path).end_tokens) != {*self.described.eos_token_ids}:
            raise BundleError(f"{self.path}: {MANIFEST}: eos_token_ids are not the end tokens of {TOKENS}")

    def check_files(self) -> None:
        """Raise BundleError with each file that is missing, added or not as it was sealed."""
        sealed = read_sealed(self.path)
        added = sorted(foreign_entries(self.path, sealed))
        there = {name for name in sealed.files if os.path.isfile(self.path / name) and name not in added}
        missing = sorted(sealed.files.keys() - there - set(added))
        problems = [f"{self.path}: missing since it was built: {name}" for name in missing]
        problems += [f"{self.path}: added since it was built: {name}" for name in added]
        for name in sorted(there):
            file = self.path / name
            try:
                same = file.stat().st_size == sealed.files[name].bytes and digest_of(file) == sealed.files[name].sha256
            except OSError as error:
                problems.append(f"{file}: cannot be read: {(error.strerror or str(error)).lower()}")
                continue
            if not same:
                problems.append(f"{self.path}: modified since it was built: {name}")
        BundleError.collect(problems)


def digest_of(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def recipe_of(folder: Path) -> "Recipe":
    """The recipe that lies in a bundle, of which nothing else is looked at."""
    from coreai_recipes.recipe.loader import load_sealed

    _read_recipe(folder)
    return load_sealed(folder / RECIPE)


def _read_recipe(folder: Path) -> bytes:
    try:
        return read_regular(folder / RECIPE, RECIPE_BYTES, folder)
    except FileNotFoundError:
        raise BundleError(f"{folder}: missing since it was built: {RECIPE}") from None
