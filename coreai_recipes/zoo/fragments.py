"""Converted fragments in a store: what one worker has converted, no other converts again."""

from contextlib import suppress

from coreai_recipes.export.cache import FragmentCache, default_root, fingerprint, sealed, unsealed
from coreai_recipes.zoo.store import Store, StoreError


class StoredFragments(FragmentCache):
    """The user's cache on this disk, and behind it the store's. As there, what fails is only a saving less."""

    def __init__(self, store: Store) -> None:
        super().__init__(default_root())
        self.store = store

    def get(self, key: str) -> bytes | None:
        data = super().get(key)
        if data is None:
            with suppress(StoreError):
                entry = self.store.get(_name(key))
                data = None if entry is None else unsealed(key, entry)
            if data is not None:
                super().put(key, data)
            return data
        with suppress(StoreError):
            if not self.store.has(_name(key)):
                self.store.put(_name(key), sealed(key, data))
        return data

    def put(self, key: str, data: bytes) -> None:
        super().put(key, data)
        with suppress(StoreError):
            self.store.put(_name(key), sealed(key, data))


def _name(key: str) -> str:
    return f"fragments/{fingerprint(key)}"
