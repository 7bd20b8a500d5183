"""Predicates of what a host reads beside the program: tokenizer, chat template, manifest."""

from typing import Any

from coreai_recipes.lint.predicates.predicate import Answer, Item, predicate, yes

# What swift-transformers makes a tokenizer of, its `Fast` taken off (Sources/Tokenizers/Tokenizer.swift).
KNOWN_TOKENIZERS = frozenset({
    "BertTokenizer", "CodeGenTokenizer", "CodeLlamaTokenizer", "CohereTokenizer", "DistilBertTokenizer",
    "DistilbertTokenizer", "FalconTokenizer", "GPT2Tokenizer", "GemmaTokenizer", "LlamaTokenizer",
    "PreTrainedTokenizer", "Qwen2Tokenizer", "RobertaTokenizer", "T5Tokenizer", "WhisperTokenizer",
})  # fmt: skip


def _config(item: Item) -> dict[str, Any]:
    found = (item.context.subject.tokenizer or {}).get("tokenizer_config.json")
    return found if isinstance(found, dict) else {}


def _templates(item: Item) -> list[str]:
    """The texts of the chat templates, wherever a checkpoint keeps them."""
    found = (item.context.subject.tokenizer or {}).get("chat_template.jinja", _config(item).get("chat_template"))
    if isinstance(found, str):
        return [found]
    if isinstance(found, list):
        return [str(each.get("template", "")) for each in found if isinstance(each, dict)]
    return []


@predicate
def has_no_template(item: Item, wanted: bool) -> Answer:
    return yes(not any(_templates(item)))


@predicate
def template_never_ends(item: Item, wanted: bool) -> Answer:
    """No end token of the manifest's stands in the chat template, by its own text or as eos_token."""
    texts, manifest = _templates(item), item.context.subject.manifest
    if not any(texts) or manifest is None:
        return None
    names = _added_tokens(item)
    ends = [names[id_] for id_ in manifest["eos_token_ids"] if id_ in names]
    eos = _config(item).get("eos_token")
    eos = eos.get("content") if isinstance(eos, dict) else eos
    for text in texts:
        if any(end in text for end in ends) or ("eos_token" in text and eos in ends):
            return None
    return yes(bool(ends), ends=", ".join(ends[:4]))


@predicate
def tokenizer_class_unknown(item: Item, wanted: bool) -> Answer:
    said = _config(item).get("tokenizer_class")
    if not isinstance(said, str):
        return {"tokenizer": "no class"} if item.context.subject.tokenizer else None
    return yes(said.replace("Fast", "") not in KNOWN_TOKENIZERS, tokenizer=said)


@predicate
def vocabulary_differs(item: Item, wanted: bool) -> Answer:
    """Tokens that the tokenizer has, and columns that the logits have."""
    subject = item.context.subject
    tokenizer = (subject.tokenizer or {}).get("tokenizer.json")
    if not isinstance(tokenizer, dict) or subject.manifest is None:
        return None
    model = tokenizer.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    ids: set[int] = set(_added_tokens(item))
    if isinstance(vocab, dict):
        ids |= {id_ for id_ in vocab.values() if isinstance(id_, int)}
    elif isinstance(vocab, list):
        ids |= set(range(len(vocab)))
    columns = int(subject.manifest["vocab_size"])
    return yes(bool(ids) and max(ids) + 1 != columns, tokens=max(ids, default=-1) + 1, columns=columns)


def _added_tokens(item: Item) -> dict[int, str]:
    """Tokens that stand in no vocabulary, by id: from tokenizer.json, else from its config."""
    tokenizer = (item.context.subject.tokenizer or {}).get("tokenizer.json")
    added = tokenizer.get("added_tokens") if isinstance(tokenizer, dict) else None
    found = {
        each["id"]: str(each.get("content", ""))
        for each in (added if isinstance(added, list) else ())
        if isinstance(each, dict) and isinstance(each.get("id"), int)
    }
    decoder = _config(item).get("added_tokens_decoder")
    for key, each in decoder.items() if isinstance(decoder, dict) else ():
        if key.isdigit() and isinstance(each, dict):
            found.setdefault(int(key), str(each.get("content", "")))
    return found
