"""Every op once on small, odd shapes, forward and backward, for compute-sanitizer; on the CPU where there is no GPU."""

import torch

from simfast import ops
from simfast.ops.nearest import nearest_l1_ragged
from simfast.testing import STUFF, THINGS, smooth_labels

device = "cuda" if torch.cuda.is_available() else "cpu"
for height, width in ((1, 1), (13, 37), (67, 131)):
    labels = smooth_labels(2, height, width, scale=4, ignore=0.2).to(device)
    for connectivity in (4, 8):
        ops.connected_components(labels, connectivity)
        segments, areas = ops.find_regions(labels, STUFF, THINGS, 3, connectivity)
    for dtype in (torch.float32, torch.bfloat16):
        for memory_format in (torch.contiguous_format, torch.channels_last):
            features = (
                torch.randn(2, 24, height, width, device=device).to(dtype).contiguous(memory_format=memory_format)
            )
            means = ops.segment_mean(features.requires_grad_(), segments, areas.shape[1])
            bank, starts = torch.randn(7, 24, device=device), torch.tensor([0, 3], device=device)
            rings = torch.where(areas > 0, areas % 2, -1).flatten()
            filled = torch.tensor([3, 4], device=device)
            distances, rows = nearest_l1_ragged(means.flatten(0, 1), rings, bank, starts, filled, 4)
            torch.where(rows >= 0, distances, 0).sum().backward(retain_graph=True)
            assert features.grad.isfinite().all()
            slots = torch.arange(areas.shape[1], device=device)
            for logits in (None, torch.randn(areas.numel(), 19, device=device)):
                rings = ops.select_rings(areas, slots % 2, logits, slots % 19)
            by_slot = (x.view(areas.shape) for x in (distances, rows))
            sum(ops.matching_losses(*by_slot, rings, len(STUFF), 3, 24)).backward()
            sizes, written = torch.tensor([3, 4], device=device), torch.zeros(2, dtype=torch.int64, device=device)
            for storage in (bank, bank.bfloat16()):
                ops.ring_write(storage, written, means.flatten(0, 1), rings.flatten(), starts, sizes)
print(f"every op ran on {device}")
