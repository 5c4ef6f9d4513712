"""Packing by several threads: each shard whole or not there, and what a killed run finished is kept."""

import json
import re
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from threading import Event

from tqdm import tqdm

from lit_robust.core.files import atomic_path, write_text
from lit_robust.data.packing.encode import extension_of, packed_extension, readable, shrink
from lit_robust.data.packing.plan import DIGEST, Plan, Shard, check_place
from lit_robust.data.packing.tree import Tree
from lit_robust.shards.members import end_bytes, sample_bytes
from lit_robust.shards.write import any_shard, remove_leftovers, write_entry


class _StoppedError(Exception):
    """Another thread failed, or the user ended the run."""


@dataclass(frozen=True)
class Packer:
    """Writes the shards of a plan.

    Args:
        tree: where the images are.
        workers: threads; they wait for disks, and libraries let go of Python's lock while they encode.
        progress: counts images.
    """

    tree: Tree
    workers: int
    progress: "tqdm[None]"

    def pack(self, plan: Plan) -> int:
        """Write the shards that are missing, then the info file, and return how many shards were written.

        Raises:
            UserError: the folder belongs to another plan, or cannot be written.
            DataError: an image cannot be read.
        """
        finished = check_place(plan)
        remove_leftovers(plan.folder, f"{any_shard(plan.stem)}|{re.escape(plan.mark.name)}")
        lengths = [len(shard.images) for shard in plan.shards]
        missing = plan.missing()
        self._count(sum(lengths) - sum(len(shard.images) for shard in missing))
        if missing or not finished:
            write_text(plan.mark, json.dumps({"by": "lit-robust data shard", DIGEST: plan.digest}) + "\n")
            self._write(plan, missing)
            write_entry(plan.folder, plan.split, [shard.name for shard in plan.shards], lengths, plan.extras)
        plan.mark.unlink(missing_ok=True)
        return len(missing)

    def _count(self, images: int) -> None:
        with self.progress.get_lock():
            self.progress.update(images)

    def _write(self, plan: Plan, missing: list[Shard]) -> None:
        stop = Event()
        with ThreadPoolExecutor(self.workers) as pool:
            tasks = [pool.submit(self._write_shard, plan, shard, stop) for shard in missing]
            try:
                for task in as_completed(tasks):
                    task.result()
            finally:
                stop.set()
                pool.shutdown(cancel_futures=True)

    def _write_shard(self, plan: Plan, shard: Shard, stop: Event) -> None:
        with atomic_path(plan.folder / shard.name) as beside, beside.open("wb") as file:
            for image in shard.images:
                if stop.is_set():
                    raise _StoppedError
                name, extension = f"{image.file.name} in {self.tree.name}", extension_of(image.file.name)
                content = readable(self.tree.read(image.file), extension, name)
                if plan.resize is not None:
                    content = shrink(content, plan.resize, packed_extension(extension, resized=False), name)
                extension = packed_extension(extension, plan.resize is not None)
                file.write(sample_bytes(image.key, {extension: content, "cls": b"%d" % image.label}))
                self._count(1)
            file.write(end_bytes(file.tell()))
