"""What the reference is made of: transformers' config of the checkpoint's own config.json, never of the recipe.

So a stage sees what a recipe got wrong. Of the recipe comes only what a file cannot say: which of longrope's two lists
holds, for transformers chooses by the length of each call and a package by its context when it is built. Where more has
to come from us, `Origin` says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from coreai_recipes.checkpoint.adapted import AdaptedCheckpoint, without_adapters
from coreai_recipes.checkpoint.base import TIE_FLAG, Checkpoint
from coreai_recipes.checkpoint.gguf import GGUFCheckpoint
from coreai_recipes.checkpoint.settings import FLOAT
from coreai_recipes.errors import CheckpointError
from coreai_recipes.recipe.importing.assembling import left_out, recipe_from_config
from coreai_recipes.recipe.importing.choosing import taken_as
from coreai_recipes.recipe.importing.comparing import compare_models
from coreai_recipes.recipe.importing.family import family_names, load_family
from coreai_recipes.recipe.schema import Recipe
from coreai_recipes.verification.random_checkpoint import RandomCheckpoint
from coreai_recipes.verification.their_gguf import TheirReading, read_by_transformers

CONFIG = "config.json"
# see draft_reference.all_layers_may_share
BY_PEFT = "merged by peft"
OF_DRAFT = "its own config.json, without transformers 5.23's check that refuses layers which all share caches"
OF_TOKENIZER = {"tokenizer": "transformers' AutoTokenizer of the checkpoint's own files"}
OUR_MODULE = {"config": "the recipe, as stage torch compares it", "tensors": "our own module's, as stored"}
BY_EVALUATOR = {"tensors": "the evaluator's decompression of the asset's, and our own module's, as stored"}
# what a quantised checkpoint says about itself: its tensors come to us as floats
DROPPED = ("model_type", "quantization_config", "quantization", "auto_map")


@dataclass(frozen=True)
class Origin:
    """Where the reference's config and tensors come from, in the words of the report.

    Attributes:
        wrapper: the model_type of the whole whose text part is the reference, by which its tensors are named.
        notes: what else a reader must know to judge how independent the reference is.
        reading: of a GGUF file, what transformers makes of it.
    """

    config: str
    tensors: str = "the checkpoint's, by transformers' names"
    wrapper: str | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    reading: TheirReading | None = field(default=None, compare=False)

    def to_json(self) -> dict[str, Any]:
        return {"config": self.config, "tensors": self.tensors, **self.notes}


def describe_reference(recipe: Recipe, checkpoint: Checkpoint) -> dict[str, Any]:
    """What the report says of the reference: `config` and `tensors`, and the exceptions."""
    if recipe.reference is None:
        return {"config": "none (reference: null)", "tensors": "our own module's, as stored"}
    packing = {} if checkpoint.packing is None else {"dequantised_from": checkpoint.packing}
    merged = {} if not isinstance(checkpoint, AdaptedCheckpoint) else {"adapters": BY_PEFT}
    return make_config(recipe, checkpoint)[1].to_json() | packing | merged


def make_config(recipe: Recipe, checkpoint: Checkpoint) -> tuple[Any, Origin]:
    """transformers' config of the reference, as the checkpoint's own config says it, and where it comes from.

    Raises CheckpointError when config.json is of another model_type than the recipe's reference, or transformers
    refuses it.
    """
    config, origin = _read_config(recipe, without_adapters(checkpoint))
    carry_theta(config, checkpoint.config)
    fix_longrope(getattr(config, "rope_parameters", None) or {}, recipe.export.context)
    return config, origin


def carry_theta(config: Any, settings: Mapping[str, Any]) -> None:
    """DBRX's own code turns by attn_config.rope_theta, which transformers 5.23 keeps and does not look at."""
    own = (settings.get("attn_config") or {}).get("rope_theta")
    if own is not None and settings.get("model_type") == "dbrx" and not settings.get("rope_parameters"):
        config.rope_parameters["rope_theta"] = own


def _read_config(recipe: Recipe, checkpoint: Checkpoint) -> tuple[Any, Origin]:
    from transformers import CONFIG_MAPPING

    if recipe.reference is None:
        raise ValueError(f"{recipe.name} has no reference")
    wanted, settings = recipe.reference.model_type, checkpoint.config
    found = taken_as(settings)
    if isinstance(checkpoint, GGUFCheckpoint):
        reading = read_by_transformers(checkpoint)
        settings, said = reading.merge(settings)
        written_as = {"written_as": found} if wanted in checkpoint.architecture.also else {}
        if found == wanted or written_as:
            origin = Origin(said.pop("config"), reading.tensors, notes={**said, **written_as}, reading=reading)
            return config_of(str(found), settings, checkpoint), origin
    if isinstance(checkpoint, RandomCheckpoint):
        return config_of(wanted, settings, checkpoint), Origin("of the recipe (not independent)", "random")
    if found in CONFIG_MAPPING:
        whole = config_of(str(found), settings, checkpoint)
        config = whole.get_text_config(decoder=True)
        if config.model_type == wanted:
            if config is whole:
                return config, Origin(CONFIG)
            config.tie_word_embeddings = getattr(whole, TIE_FLAG, config.tie_word_embeddings)
            return config, Origin(f"{CONFIG}, the text part of {found}", wrapper=str(found))
        if config.model_type in family_names() and load_family(config.model_type).reference == wanted:
            config = _config_without_rest(wanted, config, checkpoint)
            config.tie_word_embeddings = getattr(whole, TIE_FLAG, config.tie_word_embeddings)
            part = f"{CONFIG}, the text part of {found}, as {wanted}'s: transformers has no class for it alone"
            return config, Origin(part, wrapper=str(found))
    elif is_read_as(recipe, settings):
        read = f"{CONFIG}, read as {wanted}'s (not independent)"
        unread = list(left_out(settings, wanted))
        notes = {"left_out": unread} if unread else {}
        return config_of(wanted, settings, checkpoint), Origin(read, notes=notes)
    says = f"config.json says model_type {found}"
    if isinstance(checkpoint, GGUFCheckpoint):
        says = f"is a {checkpoint.architecture.name}"
    raise CheckpointError(f"{checkpoint.place}: {says}, but the recipe's reference is {wanted}")


def _config_without_rest(wanted: str, text: Any, checkpoint: Checkpoint) -> Any:
    """The config of the family `wanted` with the fields of a text part that has no class of its own (Qwen's with eyes).

    Its rotary turns text as the family's does: all three of its positions are the token's.
    """
    turns = {key: value for key, value in (text.rope_parameters or {}).items() if not key.startswith(("mrope", "type"))}
    return config_of(wanted, {**text.to_dict(), "rope_parameters": turns}, checkpoint)


def config_of(model_type: str, settings: Mapping[str, Any], checkpoint: Checkpoint) -> Any:
    """transformers' config of that model_type with the settings of a config.json."""
    from transformers import AutoConfig

    said = {key: _as_number(value) for key, value in settings.items() if key not in DROPPED}
    try:
        return AutoConfig.for_model(model_type, **said)
    except Exception as error:  # a config class has errors of its own, and its properties raise whatever comes
        why = " ".join(str(error).split())
        raise CheckpointError(
            f"{checkpoint.place}: config.json: transformers' {model_type} refuses it: {why}"
        ) from error


def _as_number(value: Any) -> Any:
    """A value of config.json, whose numbers that JSON has not are objects: {"__float__": "Infinity"}."""
    if isinstance(value, Mapping):
        if value.keys() == {FLOAT} and value[FLOAT] in ("Infinity", "-Infinity", "NaN"):
            return float(value[FLOAT])
        return {key: _as_number(inner) for key, inner in value.items()}
    return [_as_number(inner) for inner in value] if isinstance(value, list) else value


def is_read_as(recipe: Recipe, settings: Mapping[str, Any]) -> bool:
    """Whether a config of a model_type that transformers does not know describes, read as the reference's family, the
    recipe's own model: `recipe new --as FAMILY`. The tie is the tensors' affair."""
    if recipe.reference is None or recipe.reference.model_type not in family_names():
        return False
    try:
        read = recipe_from_config(settings, recipe.name, chosen=recipe.reference.model_type).recipe
    except CheckpointError:
        return False
    return all(difference.path == "head.tied" for difference in compare_models(recipe.model, read.model))


def fix_longrope(parameters: dict[str, Any], context: int) -> None:
    """Make both of longrope's lists, wherever they are nested, the one that a package of `context` positions has."""
    if parameters.get("rope_type") == "longrope":
        chosen = "long" if context > parameters["original_max_position_embeddings"] else "short"
        parameters["short_factor"] = parameters["long_factor"] = parameters[f"{chosen}_factor"]
    for nested in parameters.values():
        if isinstance(nested, dict):
            fix_longrope(nested, context)
