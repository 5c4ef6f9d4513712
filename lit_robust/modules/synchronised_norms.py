"""Batch norm over the batches of all ranks, for any library's networks."""

from pytorch_lightning.plugins.layer_sync import LayerSync
from torch.nn import Module


class SynchronisedNorms(LayerSync):
    """Makes batch norms take their statistics over all ranks.

    Lightning's own plugin, which ``sync_batchnorm: true`` asks for, replaces every batch norm by a bare one. Some of
    timm's hold their activation, too (``BatchNormAct2d`` of EfficientNet, RegNet and others), and would lose it.
    """

    def apply(self, model: Module) -> Module:
        """Return the model with its batch norms replaced; parameters and buffers are the same tensors."""
        from timm.layers.norm_act import convert_sync_batchnorm  # It loads all of timm's networks.

        converted: Module = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted

    def revert(self, model: Module) -> Module:
        """Return the model as it is: where no other rank is, a synchronised norm is a plain one."""
        return model
