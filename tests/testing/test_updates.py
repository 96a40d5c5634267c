"""The declared AdamW is torch's, and an optimiser that does something else is named."""

import copy

import pytest

torch = pytest.importorskip("torch")

from gem.testing.gradients import gradient_of
from gem.testing.updates import AdamW, ComputedUpdates, update_difference

DECLARED = AdamW(1e-2, betas=(0.9, 0.95), weight_decay=0.1, max_norm=0.5, not_decayed=("bias",))


def made(optimizer=DECLARED, decay_all=False, clipped=True):
    """Return the updates that torch's AdamW makes of a small network."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
    decayed = [each for name, each in model.named_parameters() if "bias" not in name]
    others = [each for name, each in model.named_parameters() if "bias" in name]
    groups = [{"params": decayed}, {"params": others, **({} if decay_all else {"weight_decay": 0.0})}]
    options = {"betas": optimizer.betas, "eps": optimizer.eps, "weight_decay": optimizer.weight_decay}
    torches = torch.optim.AdamW(groups, optimizer.lr, **options)
    updates = []
    for _ in range(4):
        model.zero_grad()
        model(torch.randn(7, 6)).square().sum().backward()
        updates.append((gradient_of(model), copy.deepcopy(model)))
        if clipped:
            torch.nn.utils.clip_grad_norm_(model.parameters(), optimizer.max_norm)
        torches.step()
    return updates


def test_the_declared_optimiser_is_torchs():
    wrong, figures = update_difference(ComputedUpdates(made(), DECLARED))
    assert (wrong, "of 3 updates" in figures) == ("", True)


@pytest.mark.parametrize(
    "updates",
    [
        made(AdamW(1.01e-2, betas=(0.9, 0.95), weight_decay=0.1, max_norm=0.5)),
        made(AdamW(1e-2, betas=(0.9, 0.999), weight_decay=0.1, max_norm=0.5)),
        made(AdamW(1e-2, betas=(0.9, 0.95), eps=1e-4, weight_decay=0.1, max_norm=0.5)),
        made(AdamW(1e-2, betas=(0.9, 0.95), weight_decay=0.0, max_norm=0.5)),
        made(decay_all=True),
        made(clipped=False),
        made(AdamW(0.0, betas=(0.9, 0.95), weight_decay=0.1, max_norm=0.5)),
    ],
    ids=["learning rate", "betas", "eps", "weight decay", "biases decay, too", "nothing clipped", "nothing moves"],
)
def test_another_optimiser_is_named(updates):
    assert "differs by" in update_difference(ComputedUpdates(updates, DECLARED))[0]
