"""The cost of float8 frozen weights in quality, compared with bfloat16 and NF4: real weights, real rows, strop's code.

    python benchmarks/float8_quality.py [--model FOLDER_OR_GGUF] [--steps 300] [--seeds 0 1 2] [--answers 100]
                                        [--bases bfloat16 float8 nf4] [--rows FILE --held-out FILE] [--json FILE]
    python benchmarks/float8_quality.py --device cpu --seeds          # only the errors of single products

Model, rows, batch and learning rate come from the demo recipe unless set here. A seed decides the initial adapter and
the order of the rows, in the same way for every base. The results are printed and written as lines of JSON:

training  the held-out loss of each base before training, and of each trained adapter both on the base that it was
          trained on and on the bfloat16 base, where adapters are served. With --answers, also the share of held-out
          rows for which the adapter on the bfloat16 base generates the reference answer, or one with the same numbers.
product   relative errors of every frozen product on real activations and gradients; see product_errors.py
gradient  relative error of LoRA's whole gradient, through all layers, compared with the same model in float32; to show
          which errors matter, also that of the float32 gradient of the next batch

The last two are measured on 8 held-out rows, at the initial adapter and, if there was training, at the adapter trained
on the bfloat16 base with the first seed.
"""

import argparse
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

import product_errors
import report
from strop.data.dataset import Dataset, open_dataset
from strop.data.store import SampleStore
from strop.evaluation.generate import generate
from strop.evaluation.held_out_loss import held_out_loss
from strop.evaluation.score import exact_match, numbers, split_question
from strop.microbatch.order import Order
from strop.microbatch.pack import Microbatch, Microbatches
from strop.model.lora import LoraAdapter, projections
from strop.model.pretrained.locate import locate_model
from strop.model.pretrained.weights import load_decoder
from strop.recipe import LoraSection, Recipe, TrainSection, load_recipe
from strop.training.budget import wanted_tokens
from strop.training.gradients import choose_gradients
from strop.training.optim import FlatAdamW, learning_rate
from strop.training.step import train_step


class Base:
    """A model with one kind of frozen weights, and an adapter that is trained on it as a run does it."""

    def __init__(self, name: str, folder: Path, device: torch.device, lora: LoraSection) -> None:
        self.name, self.lora = name, lora
        dtype = torch.float32 if name == "float32" else torch.bfloat16
        self.decoder = load_decoder(folder, dtype, device, name == "float8", name == "nf4")
        self.adapter = LoraAdapter(self.decoder, lora, seed=0)
        self.gradients = choose_gradients(self.adapter)

    def put(self, flat: Tensor) -> None:
        self.adapter.flat.copy_(flat)

    def held_out(self, store: SampleStore) -> float:
        max_tokens = wanted_tokens(self.decoder.device, int(store.lengths.max()))
        return held_out_loss(self.decoder, store, max_tokens, nll_of=self.gradients.nll_of).nll

    def batches(self, store: SampleStore, section: TrainSection) -> Microbatches:
        max_tokens = wanted_tokens(self.decoder.device, int(store.lengths.max()))
        return Microbatches(store, Order.of(section, len(store)), max_tokens, True, self.decoder.config.rope.long_from)

    def train(self, start: Tensor, store: SampleStore, section: TrainSection) -> tuple[Tensor, list[float]]:
        """The trained adapter and each step's loss."""
        self.put(start)
        batches, optimizer = self.batches(store, section), FlatAdamW(self.adapter, section)
        in_flight = []
        for step in range(section.max_steps):
            rate = learning_rate(step, section, section.max_steps)
            norm = section.max_grad_norm
            in_flight.append(train_step(self.gradients, optimizer, batches.of_step(step), rate, norm))
        return self.adapter.flat.clone(), [step.result().loss for step in in_flight]

    def gradient(self, flat: Tensor, batch: Microbatch) -> Tensor:
        self.put(flat)
        _, grad = self.gradients.of([batch], 1.0 / batch.num_loss_tokens)
        return grad.clone()


class Experiment:
    def __init__(self, options: argparse.Namespace, recipe: Recipe) -> None:
        device = torch.device(options.device)
        self.options, self.recipe, self.section = options, recipe, recipe.train
        self.folder = locate_model(recipe.model.model_name_or_path, note=print)
        self.data: Dataset = open_dataset(recipe.data, self.folder, recipe.model.max_seq_length, seed=0)
        on_host = load_decoder(self.folder, torch.bfloat16)
        self.starts = {seed: LoraAdapter(on_host, recipe.lora, seed).flat for seed in {0, *options.seeds}}
        self.bases = {name: Base(name, self.folder, device, recipe.lora) for name in options.bases}
        self.reference = self.bases.get("bfloat16") or Base("bfloat16", self.folder, device, recipe.lora)

    def note(self, what: str, **figures: Any) -> None:
        report.append(self.options.json, {"what": what} | figures)
        shown = (f"{k} {v:.5g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items())
        print(f"{what:9} " + ", ".join(shown), flush=True)

    def training(self) -> dict[tuple[str, int], Tensor]:
        """Train and return the adapters by base and seed."""
        store, trained, own, served = self.data.validation, {}, {}, {}
        for name, base in self.bases.items():
            base.put(self.starts[0])
            held = [projection.frozen.float8 for projection in projections(base.decoder).values()]
            matrices = f"{sum(held)} of {len(held)}"
            self.note("untrained", base=name, float8_matrices=matrices, held_out=base.held_out(store))
            for seed in self.options.seeds:
                section = self.section.model_copy(update={"seed": seed})
                started = time.perf_counter()
                trained[name, seed], steps = base.train(self.starts[seed], self.data.train, section)
                seconds = time.perf_counter() - started
                own[name, seed] = base.held_out(store)
                self.reference.put(trained[name, seed])
                served[name, seed] = self.reference.held_out(store)
                self.note(
                    "training", base=name, seed=seed, steps=len(steps), held_out=own[name, seed],
                    held_out_on_bfloat16=served[name, seed], loss_first=steps[0], loss_last_50=mean(steps[-50:]),
                    seconds=seconds,
                )  # fmt: skip
        self.compare("its own base", own)
        self.compare("bfloat16", served)
        return trained

    def compare(self, on: str, losses: dict[tuple[str, int], float]) -> None:
        """Compare each base's losses with the spread over bfloat16's seeds."""
        by_base = {name: [losses[name, seed] for seed in self.options.seeds] for name in self.bases}
        for name, own in by_base.items() if "bfloat16" in by_base else ():
            spread = by_base["bfloat16"]
            self.note(
                "spread", trained_on=name, measured_on=on, mean=mean(own), lowest=min(own), highest=max(own),
                mean_over_bfloat16=mean(own) - mean(spread),
                seeds_above_bfloat16=sum(loss > max(spread) for loss in own),
                seeds_below_bfloat16=sum(loss < min(spread) for loss in own),
            )  # fmt: skip

    def answers(self, trained: dict[tuple[str, int], Tensor]) -> None:
        """Score the answers that the bfloat16 base generates with each base's adapter of the first seed."""
        store, template = self.data.validation, self.data.template
        count = min(self.options.answers, len(store))
        pairs = [split_question(store[i], template.stop_ids) for i in range(count)]

        def text(ids: list[int]) -> str:
            return template.tokenizer.decode(ids, skip_special_tokens=True).strip()

        references = [text(answer) for _, answer in pairs]
        for name in self.bases if count else ():
            self.reference.put(trained[name, self.options.seeds[0]])
            prompts = [prompt for prompt, _ in pairs]
            answers = generate(self.reference.decoder, prompts, template.stop_ids, 48, slots=len(prompts))
            texts = [text(answer.ids) for answer in answers]
            both = list(zip(texts, references, strict=True))
            exact = sum(exact_match(*pair) for pair in both) / count
            right = sum(numbers(x) == numbers(y) for x, y in both) / count
            self.note("answers", trained_on=name, served_on="bfloat16", rows=count, exact=exact, numbers=right)

    def errors(self, points: dict[str, Tensor]) -> None:
        device = self.reference.decoder.device
        batches = self.reference.batches(self.data.validation, self.section)
        batch, another = batches.of_step(0)[0], batches.of_step(1)[0]
        exact = Base("float32", self.folder, device, self.recipe.lora)
        for point, flat in points.items():
            wanted = exact.gradient(flat, batch)
            found = {base.name: base.gradient(flat, batch) for base in self.bases.values()}
            found["float32, the next 8 rows"] = exact.gradient(flat, another)
            for name, gradient in found.items():
                cosine = torch.nn.functional.cosine_similarity(gradient, wanted, dim=0).item()
                self.note("gradient", adapter=point, base=name, error=product_errors.error(gradient, wanted),
                          cosine=cosine)  # fmt: skip
            self.reference.put(flat)
            results = product_errors.record(self.reference.adapter, batch)
            for result in results:
                report.append(self.options.json, {"what": "product", "adapter": point} | result)
            print(f"relative errors in percent of {batch.num_tokens} tokens' products, smallest/median/largest of "
                  f"the layers; {point} adapter\n{product_errors.table(results)}", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model folder or GGUF file (default: the demo recipe's)")
    parser.add_argument("--rows", help="training rows (default: the demo recipe's)")
    parser.add_argument("--held-out", help="held-out rows (default: the demo recipe's)")
    parser.add_argument("--held-out-rows", type=int, default=400)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="none: no training")
    parser.add_argument("--bases", nargs="+", default=["bfloat16", "float8", "nf4"],
                        choices=["bfloat16", "float8", "nf4"])  # fmt: skip
    parser.add_argument("--answers", type=int, default=0, help="held-out rows to generate answers for")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="append the figures to this file, a line of JSON each")
    options = parser.parse_args()

    chosen = {
        "model.model_name_or_path": options.model,
        "data.train_file": options.rows,
        "data.validation_file": options.held_out,
        "data.max_eval_samples": options.held_out_rows,
        "train.max_steps": options.steps,
        "train.seed": 0,
    }
    recipe = load_recipe("demo", {key: value for key, value in chosen.items() if value is not None})
    started = time.perf_counter()
    experiment = Experiment(options, recipe)
    device = torch.cuda.get_device_name() if options.device.startswith("cuda") else "CPU"
    experiment.note("setup", device=device, torch=torch.__version__, rows=len(experiment.data.train),
                    held_out_rows=len(experiment.data.validation))  # fmt: skip
    trained = experiment.training() if options.seeds else {}
    if trained:
        experiment.answers(trained)
    points = {"initial": experiment.starts[0]}
    if options.seeds and "bfloat16" in options.bases:
        points["trained"] = trained["bfloat16", options.seeds[0]]
    experiment.errors(points)
    experiment.note("total", seconds=time.perf_counter() - started)


if __name__ == "__main__":
    main()
