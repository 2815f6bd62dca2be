"""A resumed run is the undisturbed one, bit for bit, for every modifier; and what cannot be resumed says so."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from sparsify import RequestError
from sparsify_torch import ScheduledModifierManager

from tests.torch.loops import EVERY, GRADUAL, OPTIMIZERS, STEPS, attach, batches, net, sgd, train

DATA = batches(14)


def reloaded(state: Any) -> Any:
    """Write and read a checkpoint as anyone does."""
    held = io.BytesIO()
    torch.save(state, held)
    held.seek(0)
    return torch.load(held, weights_only=True)


def snapshot(module: Any, optimizer: Any, manager: Any) -> dict[str, Any]:
    return copy.deepcopy(
        {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "manager": manager.state_dict()}
    )


def flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [one for key in value for one in (key, *flat(value[key]))]
    return [one for part in value for one in flat(part)] if isinstance(value, list | tuple) else [value]


def same(first: Any, second: Any) -> bool:
    one, other = flat(first), flat(second)
    return len(one) == len(other) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("optimizer_name", ["sgd", "adam"])
@pytest.mark.parametrize("stop", [1, 5, 9])
@pytest.mark.parametrize("name", EVERY)
def test_resume_is_undisturbed(name: str, stop: int, optimizer_name: str) -> None:
    make = OPTIMIZERS[optimizer_name]
    module = net()
    manager, optimizer = attach(EVERY[name], module, make(module))
    train(module, optimizer, DATA[:stop])
    saved = reloaded(snapshot(module, optimizer, manager))
    train(module, optimizer, DATA[stop:])
    manager.finalize(module)

    again = net(seed=9)
    again.load_state_dict(saved["module"])
    inner = make(again)
    other, resumed = attach(EVERY[name], again, inner, epoch=stop / STEPS)
    resumed.load_state_dict(saved["optimizer"])
    other.load_state_dict(saved["manager"])
    train(again, resumed, DATA[stop:])
    other.finalize(again)
    assert same(module.state_dict(), again.state_dict())
    assert same(optimizer.state_dict(), resumed.state_dict())
    assert same(manager.state_dict(), other.state_dict())


def test_state_may_be_loaded_before_modify() -> None:
    module = net()
    manager, optimizer = attach(EVERY["gm"], module, sgd(module))
    train(module, optimizer, DATA[:7])
    saved = reloaded(snapshot(module, optimizer, manager))
    again = net(seed=3)
    again.load_state_dict(saved["module"])
    other = ScheduledModifierManager(EVERY["gm"])
    other.load_state_dict(saved["manager"])
    other.modify(again, sgd(again), STEPS)
    assert same(other.state_dict(), saved["manager"])


def test_another_batch_size_goes_on_at_the_same_epoch() -> None:
    module = net()
    manager, optimizer = attach(EVERY["gm"], module, sgd(module))
    train(module, optimizer, DATA[:6])
    other, resumed = attach(EVERY["gm"], module, sgd(module), steps_per_epoch=10)
    other.load_state_dict(manager.state_dict())
    assert resumed.run.epoch == 1.5
    resumed.emulated_step()
    assert resumed.run.epoch == pytest.approx(1.6)


def test_state_of_another_recipe_or_model_is_refused() -> None:
    module = net()
    manager, optimizer = attach(EVERY["gm"], module, sgd(module))
    train(module, optimizer, DATA[:7])
    saved = manager.state_dict()
    other, _ = attach(EVERY["movement"], net(), sgd(module))
    with pytest.raises(RequestError, match="another recipe: it differs in GMPruningModifier, MovementPruningModifier"):
        other.load_state_dict(saved)
    saved["masks"]["GMPruningModifier"]["features.2.weight"] = torch.ones(2, 2, dtype=torch.bool)
    with pytest.raises(
        RequestError, match=r"mask of 'features.2.weight' with the shape \(2, 2\), here it has the shape"
    ):
        manager.load_state_dict(saved)
    saved["masks"]["GMPruningModifier"] = {"gone": torch.ones(2, 2, dtype=torch.bool)}
    with pytest.raises(RequestError, match=r"mask of 'gone' .*, here it does not exist"):
        manager.load_state_dict(saved)


def test_the_epoch_of_modify_begins_in_the_middle() -> None:
    """Without a state, a run that begins late has what an update at that epoch gives."""
    module = net()
    manager, optimizer = attach(EVERY["gm"], module, sgd(module), epoch=2.0)
    train(module, optimizer, DATA[:1])
    kept = manager.masks["features.2.weight"]
    goal = 0.7 - 0.6 * (1 - 0.75) ** 3
    assert int((~kept).sum()) == round(goal * kept.numel())
    assert GRADUAL["start_epoch"] == 0.5
