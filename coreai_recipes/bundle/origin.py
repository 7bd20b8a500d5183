"""The checkpoint that a bundle is proven against: the very one that it was built from."""

from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from coreai_recipes.manifest.schema import Origin

if TYPE_CHECKING:
    from coreai_recipes.checkpoint.base import Checkpoint
    from coreai_recipes.checkpoint.identity import Identity


@dataclass(frozen=True)
class Held:
    """A checkpoint and what compares it with the sealed one as it is read; or why there is none."""

    source: "Checkpoint | None" = None
    identity: "Identity | None" = None
    reason: str | None = None

    def check(self) -> None:
        """Raise CheckpointError when it is known to be another checkpoint."""
        if self.identity is not None:
            self.identity.check()

    def finish(self) -> None:
        """Wait until it is known whether it is the one, and raise CheckpointError when it is not."""
        if self.identity is not None:
            self.identity.finish()


def hold_origin(
    origin: Origin,
    built: str,
    given: "Checkpoint | str | Path | None",
    named: str | None,
    option: str,
    bundle: Path | None = None,
) -> Held:
    """The checkpoint `given`, or the one that `origin` says, as far as it can be found without a guess.

    A hub id has its commit, and one that ships with the package (`named` by the recipe) is where it was; a folder or
    file of the user's is only known by its base name, and asked for by `option`. Raises CheckpointError for a
    checkpoint that cannot be opened, and for another one than that of `built`; `bundle` is its
    folder, where the checkpoint's tokenizer is in it.
    """
    from coreai_recipes.checkpoint.base import Checkpoint
    from coreai_recipes.checkpoint.identity import Facts, Identity
    from coreai_recipes.checkpoint.open import EMBEDDED, HUB_ID, open_checkpoint

    if given is None:
        match = HUB_ID.fullmatch(origin.source)
        if match is not None and match["revision"] is not None:
            given = origin.source
        elif (
            named is not None
            and named.startswith(EMBEDDED)
            and PurePath(named.removeprefix(EMBEDDED)).name == origin.source
        ):
            given = named
        else:
            return Held(
                reason=f"{built} was built from {origin.source}, which is not on the hub: pass it with {option}"
            )
    source = given if isinstance(given, Checkpoint) else open_checkpoint(given)
    facts = Facts(origin.sha256, origin.bytes, origin.config_sha256, bundle)
    return Held(source, Identity(source, facts, built))
