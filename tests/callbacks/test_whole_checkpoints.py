"""A checkpoint that cannot be finished leaves the older one as it was."""

import pytest
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning import Trainer

from lit_robust.callbacks.whole_checkpoints import WholeCheckpoints, write_whole_checkpoints


class Unfinished:
    """A value that fails while it is written, when part of the file is there."""

    def __reduce__(self):
        raise OSError(28, "No space left on device")


def test_what_is_written_is_what_was_given(tmp_path):
    WholeCheckpoints().save_checkpoint({"weights": torch.arange(5)}, tmp_path / "folder" / "last.ckpt")
    found = torch.load(tmp_path / "folder" / "last.ckpt", weights_only=True)
    assert torch.equal(found["weights"], torch.arange(5))


def test_an_error_in_the_middle_leaves_the_older_checkpoint(tmp_path):
    writer = WholeCheckpoints()
    writer.save_checkpoint({"step": 1}, tmp_path / "last.ckpt")
    with pytest.raises(Exception, match="No space left"):
        writer.save_checkpoint({"weights": torch.zeros(1000), "rest": Unfinished()}, tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True) == {"step": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]


class Own(TorchCheckpointIO):
    """A user's own way."""


@pytest.mark.parametrize(
    ("root", "plugins", "kind"),
    [("runs", None, WholeCheckpoints), ("s3://runs", None, TorchCheckpointIO), ("runs", Own(), Own)],
)
def test_a_users_own_way_and_urls_stay(root, plugins, kind):
    trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=root, plugins=plugins)
    write_whole_checkpoints(trainer)
    assert type(trainer.strategy.checkpoint_io) is kind
