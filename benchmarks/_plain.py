"""The augmentation in the plain versions of the speed recipes: straightforward indexing."""

import torch
from torch import Tensor


def augmented(padded: Tensor, chosen: Tensor, flip: Tensor, pad: int, cutout: int = 0) -> Tensor:
    """Chosen images `[B, C, 32, 32]` out of all padded ones, each shifted at random and mirrored if `flip` is true."""
    device, count = padded.device, len(chosen)
    line = torch.arange(32, device=device)
    rows, columns = (start[:, None] + line for start in torch.randint(0, 2 * pad + 1, (2, count), device=device))
    cut = padded[chosen[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    images = torch.where(flip.view(-1, 1, 1, 1), cut.flip(-1), cut).contiguous()
    if cutout:
        below, right = ((line - at[:, None] + cutout // 2) for at in torch.randint(0, 32, (2, count), device=device))
        inside = [(side >= 0) & (side < cutout) for side in (below, right)]
        images.masked_fill_((inside[0][:, :, None] & inside[1][:, None, :])[:, None], 0)
    return images
