"""Which family's rules read a config.json, and which part of it."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from coreai_recipes.errors import CheckpointError
from coreai_recipes.recipe.importing.checking import NOT_UNDERSTOOD, find_config_problems, shown
from coreai_recipes.recipe.importing.family import Family, family_names, load_family, refused_models
from coreai_recipes.recipe.yaml_reader import shorten

# what classes that give logits of a next token are called
LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForMultimodalLM")
TIE = "tie_word_embeddings"
# without which nothing is said of a Llama
LLAMAS = {"hidden_size", "num_hidden_layers", "num_attention_heads"}


def choose_family(config: Mapping[str, Any], chosen: str | None = None) -> tuple[Family, Mapping[str, Any]]:
    """The family of a config's model_type (or the `chosen` one) and the part of the config that it reads.

    Raises CheckpointError when there is no family: with what recipes lack, or the family whose fields these are.
    """
    place = "config.json"
    model_type = config.get("model_type") if chosen is None else chosen
    if model_type is None:
        raise CheckpointError(
            f"{place}: model_type: missing, so nothing says which family this is\n"
            f"  `--as FAMILY` says it: {', '.join(family_names())}"
        )
    if not isinstance(model_type, str):
        raise CheckpointError(f"{place}: model_type: {shown(model_type)} is not a word")
    if model_type not in family_names():
        raise CheckpointError(_why_unknown(config, model_type, chosen is not None))
    _check_architectures(config)
    family = load_family(model_type)
    if family.part is None:
        return family, config
    return _open_part(config, family)


def _open_part(config: Mapping[str, Any], family: Family) -> tuple[Family, Mapping[str, Any]]:
    """The text part of a config that has others; what stands around it must be known too."""
    part_name, inner = family.part or "", family.family or ""
    part = config.get(part_name)
    around = {name: value for name, value in config.items() if name != TIE or family.draft}
    problems = list(find_config_problems(around, family))
    if not isinstance(part, Mapping):
        problems.append(f"{part_name}: {'missing' if part is None else shown(part) + ' is not a mapping'}")
    elif part.get("model_type", inner) != inner:
        problems.append(f"{part_name}.model_type: {shown(part['model_type'])} is not {inner}")
    CheckpointError.collect(f"config.json: {problem}" for problem in problems)
    part = part or {}
    if TIE in config and not family.draft:  # the head is the wrapper's, and so is the word about it
        part = {**part, TIE: config[TIE]}
    return load_family(inner), part


def _check_architectures(config: Mapping[str, Any]) -> None:
    names = config.get("architectures")
    if names and isinstance(names, list) and not any(str(name).endswith(LANGUAGE_MODELS) for name in names):
        raise CheckpointError(
            f"config.json: architectures: {shorten(', '.join(map(str, names)))} gives no logits of a next token"
        )


def _why_unknown(config: Mapping[str, Any], model_type: str, is_chosen: bool) -> str:
    name = shorten(model_type)
    if is_chosen:
        close = get_close_matches(model_type[:100], family_names(), n=1)
        hint = f"did you mean `{close[0]}`?" if close else f"there are: {', '.join(family_names())}"
        return f"--as {name}: no such family\n  {hint}"
    lead = f"config.json: model_type: {name}"
    if model_type in refused_models():
        return f"{lead}: {refused_models()[model_type]}"
    foreign = [problem.partition(":")[0] for problem in find_config_problems(config, load_family("llama"))]
    if not foreign and config.keys() >= LLAMAS:
        return f"{lead}: not known, but every field is one of Llama's\n  if it is a Llama by another name: `--as llama`"
    if not foreign:
        return f"{lead}: {NOT_UNDERSTOOD}"
    return f"{lead}: {NOT_UNDERSTOOD}; Llama has no {', '.join(foreign[:8])}{' ...' if len(foreign) > 8 else ''}"
