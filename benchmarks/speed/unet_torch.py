"""The PyTorch side of `benchmarks.speed.unet`: diffusers' UNet at its best settings.

Attention is PyTorch's own fused one, diffusers' default. Walks are Python loops over a
module, as pipelines are.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxanom.diffusion import schedules

FORMS = ("eager", "channels last", "compiled")


class Peer(NamedTuple):
    """One form of the PyTorch model, and the calls that are timed.

    Attributes:
      forward: () -> noise prediction, NHWC.
      step: () -> loss; one AdamW step.
      walk: (table) -> latents at the table's end, NHWC.
      loss_and_grads: () -> (loss, {name: gradient}), before any step.
      compile_s: name of a call -> seconds its first call took, where it compiles.
    """

    forward: Callable[[], np.ndarray]
    step: Callable[[], float]
    walk: Callable[[schedules.Table], np.ndarray]
    loss_and_grads: Callable[[], tuple[float, dict[str, np.ndarray]]]
    compile_s: dict[str, float]


def make(
    folder: Path,
    form: str,
    batch: dict[str, np.ndarray],
    dtype: str = "float32",
    calls: Sequence[str] = ("forward", "train_step"),
) -> Peer:
    """Reads the weights and prepares the calls.

    Args:
      folder: holds config.json and the safetensors file.
      form: one of `FORMS`.
      batch: `latents`, `noise` [B, h, w, C], `timesteps` [B], `context` [B, L, D].
      dtype: "bfloat16" computes under autocast; weights and moments stay float32.
      calls: that will be made; "compiled" compiles what they need, which is a forward
        pass for all but "train_step".
    """
    import diffusers
    import torch

    model = diffusers.UNet2DConditionModel.from_pretrained(
        folder, torch_dtype=torch.float32
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layout = torch.channels_last if form == "channels last" else torch.contiguous_format
    model = model.to(device=device, memory_format=layout)
    plain = torch.compile(model) if form == "compiled" else model

    def call(*args: Any) -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            return plain(*args).sample.float()

    def planes(array: np.ndarray) -> Any:
        tensor = torch.from_numpy(np.moveaxis(array, -1, 1).copy())
        return tensor.to(device=device, memory_format=layout)

    def array(tensor: Any) -> np.ndarray:
        return np.moveaxis(tensor.cpu().numpy(), 1, -1)

    latents, noise = planes(batch["latents"]), planes(batch["noise"])
    timesteps = torch.from_numpy(batch["timesteps"]).long().to(device)
    context = torch.from_numpy(batch["context"]).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=1e-2)

    @torch.inference_mode()
    def forward() -> np.ndarray:
        return array(call(latents, timesteps, context))

    def backward() -> Any:
        optimizer.zero_grad()
        noise_pred = call(latents, timesteps, context)
        loss = torch.nn.functional.mse_loss(noise_pred, noise)
        loss.backward()
        return loss.detach()

    def step() -> float:
        loss = backward()
        optimizer.step()
        return float(loss)

    @torch.inference_mode()
    def walk(table: schedules.Table) -> np.ndarray:
        scaled = latents / float(np.sqrt(table.alpha_from[0]))
        for row in zip(*table, strict=True):
            timestep, alpha_from, _, sigma_from, sigma_to, _ = row
            at = torch.full((len(scaled),), int(timestep), device=device)
            noise_pred = call(scaled * float(np.sqrt(alpha_from)), at, context)
            scaled = scaled + float(sigma_to - sigma_from) * noise_pred
        scaled = scaled * float(np.sqrt(table.alpha_to[-1]))
        return array(scaled)

    def loss_and_grads() -> tuple[float, dict[str, np.ndarray]]:
        loss = float(backward())
        grads = {
            name: parameter.grad.cpu().numpy().copy()
            for name, parameter in model.named_parameters()
        }
        return loss, grads

    compile_s = {}
    if form == "compiled":
        needed = [("forward", forward)] if set(calls) - {"train_step"} else []
        needed += [("train_step", backward)] if "train_step" in calls else []
        for name, first in needed:
            start = time.perf_counter()
            first()
            compile_s[name] = time.perf_counter() - start
    return Peer(forward, step, walk, loss_and_grads, compile_s)
