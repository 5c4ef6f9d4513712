"""WebDataset tars: which samples there are, reading and decoding any of them, and writing more.

- `ShardIndex.open(folder, split)`: the samples of a split, from one strict scan that is kept next to the shards.
- `IndexedReader(index)`: the encoded image of any sample, in any process.
- `decode_rgb(data, name)`: the pixels; `decoder_versions()` names what they depend on.
- `ShardWriter(folder, split)`: shards and their info file, all or nothing.
"""

from lit_robust.shards.decode import decode_rgb, decoder_versions
from lit_robust.shards.index import ShardIndex
from lit_robust.shards.read import IndexedReader
from lit_robust.shards.scan import IMAGE_EXTENSIONS
from lit_robust.shards.write import ShardWriter

__all__ = ["IMAGE_EXTENSIONS", "IndexedReader", "ShardIndex", "ShardWriter", "decode_rgb", "decoder_versions"]
