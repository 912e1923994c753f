"""Direct preference optimisation (DPO): of two answers, the chosen one becomes the likelier.

Source: Rafailov et al., arXiv 2305.18290. The loss is TRL's `DPOTrainer`'s (`loss_type="sigmoid"`,
summed log-probabilities), written out here because TRL has it only inside a trainer that replaces the
model's forward and tokenises for itself; the tests compare the two. The model as it was is recorded
once, so that no second one is needed, whether LoRA or all weights are trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from es2.defences.trainer import TrainSettings, batch_indices
from es2.models.blocks import logits
from es2.models.forward import Forward, forward
from es2.models.loading import ChatModel


@dataclass(frozen=True)
class Answer:
    """A templated prompt and an answer to it.

    Attributes:
        row: token ids.
        begin: where the answer begins.
    """

    row: list[int]
    begin: int

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True)
class Pair:
    """Two answers to a prompt.

    Attributes:
        chosen: the one to prefer.
        rejected: the other.
        chosen_before: log-probability of the chosen one under the model as it was, in nats.
        rejected_before: the same of the rejected one.
    """

    chosen: Answer
    rejected: Answer
    chosen_before: float
    rejected_before: float


def passed(chat: ChatModel, answers: Sequence[Answer]) -> Forward:
    """A pass over answers that leaves final states from the token before each of them on."""
    rows = [answer.row for answer in answers]
    return forward(chat, rows, keep=min(answer.begin for answer in answers) - 1)


def log_probabilities(
    chat: ChatModel, out: Forward, answers: Sequence[Answer]
) -> Float[Tensor, "n"]:
    """Of each answer given its prompt, in nats, summed over its tokens."""
    assert out.final is not None
    sums = []
    for place, answer in enumerate(answers):  # row by row, as logits of all are much memory
        said = answer.row[answer.begin :]
        before = range(answer.begin - 1, len(answer) - 1)
        scores = logits(chat.model, out.at(out.final, [place] * len(said), before))
        targets = torch.tensor(said, device=scores.device)
        sums.append(-cross_entropy(scores, targets, reduction="sum"))
    return torch.stack(sums)


def dpo_loss(margin: Float[Tensor, "n"], beta: float) -> Float[Tensor, "n"]:
    """-log sigmoid(beta m): m is by how many nats training favours the chosen answer."""
    return -logsigmoid(beta * margin)


@dataclass
class Dpo:
    """DPO's objective for the trainer.

    Attributes:
        beta: how closely the model is held to what it was.
        settings: of the training loop; `batch_size` pairs of each class a step.
        harmful: pairs of answers to harmful prompts.
        harmless: pairs of answers to harmless prompts.
        labels: what there is to say of the pairs; logged at every step.
    """

    beta: float
    settings: TrainSettings
    harmful: Sequence[Pair]
    harmless: Sequence[Pair]
    labels: Mapping[str, float] = field(default_factory=dict)

    def loss(self, chat: ChatModel, step: int) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """The mean over the step's pairs, whose chosen answers stand in the first half of the batch."""
        size, seed = self.settings.batch_size, self.settings.seed
        pairs = [self.harmful[i] for i in batch_indices(len(self.harmful), size, step, seed)]
        pairs += [self.harmless[i] for i in batch_indices(len(self.harmless), size, step, seed + 1)]
        answers = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
        before = [pair.chosen_before for pair in pairs] + [pair.rejected_before for pair in pairs]
        now = log_probabilities(chat, passed(chat, answers), answers)
        chosen, rejected = (now - torch.tensor(before, device=now.device)).chunk(2)
        margin = chosen - rejected
        metrics = {
            "margin": float(margin.detach().mean()),
            "preferred": float((margin.detach() > 0).float().mean()),
            "chosen_change": float(chosen.detach().mean()),
            "rejected_change": float(rejected.detach().mean()),
            **self.labels,
        }
        return dpo_loss(margin, self.beta).mean(), metrics
