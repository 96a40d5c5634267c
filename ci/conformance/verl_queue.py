"""verl's TransferQueue, as a dictionary in this process."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import transfer_queue
from tensordict import TensorDict
from transfer_queue.storage.managers.simple_storage_manager import AsyncSimpleStorageManager


class Queue:
    """TransferQueue in one process; columns are packed by a function of its own."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = defaultdict(dict)
        self.tags: dict[str, dict[str, dict[str, Any]]] = defaultdict(lambda: defaultdict(dict))

    def init(self) -> None:
        """Begin."""

    def kv_list(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Return all tags, by partition and key."""
        return {partition_id: dict(tags) for partition_id, tags in self.tags.items()}

    def kv_clear(self, keys: list[str], partition_id: str) -> None:
        """Forget rows."""
        for key in keys:
            del self.tags[partition_id][key]
            self.rows.pop(key, None)

    def kv_batch_put(
        self,
        keys: list[str],
        partition_id: str,
        fields: TensorDict | None = None,
        tags: list[dict[str, Any]] | None = None,
    ) -> transfer_queue.KVBatchMeta:
        """Store columns, and add to tags."""
        own = self.tags[partition_id]
        for i, key in enumerate(keys):
            own[key].update({} if tags is None else tags[i])
            self.rows[key].update({} if fields is None else fields[i].items())
        return transfer_queue.KVBatchMeta(keys, [own[key] for key in keys], partition_id)

    def kv_batch_get(self, keys: list[str], partition_id: str, select_fields: list[str] | None = None) -> TensorDict:
        """Return those of the columns that there are."""
        rows = [self.rows[key] for key in keys]
        names = [name for name in rows[0] if select_fields is None or name in select_fields]
        pack = AsyncSimpleStorageManager._pack_field_values
        return TensorDict({name: pack([row[name] for row in rows]) for name in names}, batch_size=len(rows))

    async def async_kv_put(self, key: str, partition_id: str, tag: dict[str, Any]) -> None:
        """Add to a tag."""
        self.kv_batch_put([key], partition_id, tags=[tag])

    async def async_kv_batch_put(self, **columns: Any) -> None:
        """Store columns."""
        self.kv_batch_put(**columns)
