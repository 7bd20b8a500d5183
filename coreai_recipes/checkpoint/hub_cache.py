"""What of the hub lies on this disk."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CachedModel:
    """A model in huggingface_hub's cache, which other tools share."""

    repo_id: str
    path: Path
    bytes: int


def cached_models(repo_ids: Collection[str]) -> list[CachedModel]:
    """Those of the models that lie in the hub's cache; none where there is no cache."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        found = scan_cache_dir().repos
    except (CacheNotFound, OSError, ValueError):  # no cache, or nothing that can be read as one
        return []
    ours = [repo for repo in found if repo.repo_type == "model" and repo.repo_id in repo_ids]
    return sorted((CachedModel(r.repo_id, r.repo_path, r.size_on_disk) for r in ours), key=lambda each: each.repo_id)
