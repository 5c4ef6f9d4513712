"""How large corruptions are beside adversarial perturbations (Orhan & Lake 2019, section 4.3)."""

from torch import Tensor

from lit_robust.core.errors import UserError
from lit_robust.data.loading.transforms import centre_crop, resize


def normalised_size(corrupted: Tensor, clean: Tensor) -> Tensor:
    """Return ``||x' - x||_inf / ||x||_inf`` for each image, float32 ``[B]``, as that paper measures perturbations.

    Args:
        corrupted: float32 ``[B, C, H, W]`` in [0, 1].
        clean: the same images before; an image that is black everywhere has no size, and gives NaN or infinity.

    Raises:
        UserError: they are not of one shape.
    """
    if corrupted.shape != clean.shape:
        raise UserError(f"{list(corrupted.shape)} and {list(clean.shape)} are not the same images: give pairs.")
    return (corrupted - clean).flatten(1).abs().amax(1) / clean.flatten(1).amax(1)


def misaligned(corrupted: Tensor, side: int = 256) -> Tensor:
    """Return images as that paper's pipeline saw ImageNet-C's: enlarged, and the centre cut out to the old size.

    ImageNet-C's files have been cut out already, so what stands at a pixel then stands at another (by up to an eighth
    of the half side) than in the clean image, and their difference is mostly that of the places.

    Args:
        corrupted: uint8 ``[C, S, S]``.
        side: pixels to which the image is enlarged; 256 for 224.
    """
    old = corrupted.shape[-1]
    return centre_crop(resize(corrupted, (side, side)), old)
