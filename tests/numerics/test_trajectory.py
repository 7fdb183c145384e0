"""Fifty steps against a plain loop of transformers + PEFT + torch.optim.AdamW on the same samples, in float64."""

from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers

from strop.data.store import Sample
from strop.microbatch.order import Order
from strop.microbatch.pack import pack
from strop.model.lora import LoraAdapter
from strop.model.pretrained.weights import load_decoder
from strop.recipe import LoraSection, TrainSection
from strop.training.gradients import PlainGradients
from strop.training.optim import FlatAdamW, learning_rate
from strop.training.step import train_step
from tiny_models import load_oracle, write_checkpoint

STEPS, BATCH, COUNT = 50, 8, 90
ORDER = Order(COUNT, BATCH, 1.0, STEPS, seed=0)
SECTION = TrainSection(
    learning_rate=5e-3, weight_decay=0.1, warmup_steps=5, lr_scheduler_type="cosine", max_grad_norm=0.5
)


def rows() -> list[Sample]:
    """Random rows, every other one with one of two beginnings."""
    random = np.random.default_rng(0)
    heads = random.integers(3, 128, (2, 18))
    made = []
    for i in range(COUNT):
        length = int(random.integers(4, 24))
        ids = random.integers(3, 128, length).astype(np.int32)
        if i % 2:
            ids = np.concatenate([heads[i % 4 // 2], ids]).astype(np.int32)
            length += 18
        made.append(Sample(ids, np.arange(length) >= length // 2))
    return made


def ours(folder: Path, samples: list[Sample], section: TrainSection) -> tuple[list[float], LoraAdapter]:
    adapter = LoraAdapter(load_decoder(folder, torch.float64), LoraSection(r=4), seed=0)
    optimizer, losses = FlatAdamW(adapter, section), []
    for step in range(STEPS):
        chosen = ORDER.samples(step).tolist()
        batches = pack([samples[i] for i in chosen], chosen, 60)
        rate = learning_rate(step, section, STEPS)
        losses.append(
            train_step(PlainGradients(adapter), optimizer, batches, rate, section.max_grad_norm).result().loss
        )
    return losses, adapter


def theirs(folder: Path, samples: list[Sample], adapter: LoraAdapter) -> tuple[list[float], torch.nn.Module]:
    config = peft.LoraConfig(r=4, lora_alpha=16, target_modules=adapter.target_modules, task_type="CAUSAL_LM")
    model = peft.get_peft_model(load_oracle(folder, torch.float64), config).double()
    fresh = LoraAdapter(load_decoder(folder, torch.float64), LoraSection(r=4), seed=0).state_dict()
    for name, tensor in fresh.items():
        module, leaf = name.removesuffix(".weight").rsplit(".", 1)
        getattr(model.get_submodule(module), leaf)["default"].weight.data.copy_(tensor)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=SECTION.learning_rate, weight_decay=SECTION.weight_decay)
    scheduler = transformers.get_cosine_schedule_with_warmup(optimizer, SECTION.warmup_steps, STEPS)
    losses = []
    for step in range(STEPS):
        chosen = [samples[i] for i in ORDER.samples(step)]
        labels = [np.where(s.learned, s.input_ids, -100) for s in chosen]
        count = sum(int((label[1:] != -100).sum()) for label in labels)
        total = torch.zeros((), dtype=torch.float64)
        for sample, label in zip(chosen, labels, strict=True):
            logits = model(torch.from_numpy(sample.input_ids.astype(np.int64))[None]).logits[0, :-1]
            target = torch.from_numpy(label[1:].astype(np.int64))
            total = total + torch.nn.functional.cross_entropy(logits, target, reduction="sum")
        loss = total / count
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, SECTION.max_grad_norm)
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return losses, model


@pytest.mark.parametrize("family", ["llama3", "phi3"])
def test_fifty_steps_follow_the_plain_loop(family: str, tmp_path: Path) -> None:
    folder, samples = write_checkpoint(tmp_path, family), rows()
    got, adapter = ours(folder, samples, SECTION)
    want, model = theirs(folder, samples, adapter)
    assert want[-1] < want[0] - 0.3, "the plain loop does not learn, so following it shows nothing"
    assert max(abs(a - b) for a, b in zip(got, want, strict=True)) < 1e-8
    for name, tensor in adapter.state_dict().items():
        module, leaf = name.removesuffix(".weight").rsplit(".", 1)
        trained = getattr(model.get_submodule(module), leaf)["default"].weight.data
        assert (tensor - trained).abs().max().item() < 1e-7

    changes = {"weight_decay": 0.0, "max_grad_norm": 0.0, "warmup_steps": 4}
    for key, value in changes.items():  # the control: each setting, a little off, must show
        wrong, _ = ours(folder, samples, SECTION.model_copy(update={key: value}))
        assert max(abs(a - b) for a, b in zip(wrong, want, strict=True)) > 1e-5, key
