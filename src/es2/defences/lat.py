"""Latent adversarial training (LAT): refusing while the residual stream is moved to make it comply.

Source: Sheshadri et al., "Latent Adversarial Training Improves Robustness to Persistent Harmful
Behaviors in LLMs" (arXiv 2407.15549), with the settings of its code for Llama 3 8B. In every step
projected gradient descent looks for a perturbation of the residual stream at the prompt's tokens,
at several layers at once, under which a harmful response is likely and the refusal is not; then the
model is trained under it to prefer the refusal, and held to itself on harmless prompts without it.

Published harmful responses are a data set's. es2 keeps none: here they are what the model itself
goes on with behind an affirmative opening, made when training begins and stored nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from es2.attacks.target import OPENINGS
from es2.data.fitting import spread
from es2.defences.base import DEFENCES, Material, Range, seen_count
from es2.defences.reference import Reference, kl_from, record
from es2.defences.responses import Responses, read_responses
from es2.defences.safety_sft import REFUSAL
from es2.defences.trainer import TrainSettings, batch_indices
from es2.defences.unsafe import Unsafe, expected_unsafe, unsafe_answers
from es2.errors import Es2Error
from es2.models.activations import Edit
from es2.models.forward import Forward, Held, forward, shared_prefix
from es2.models.generation import in_batches
from es2.models.loading import ChatModel
from es2.models.work import Lengths, Work, answering, training
from es2.progress import bar

_PUBLISHED = (0, 9, 17, 25, 31)
"""Layers of 32: the embeddings and the outputs of blocks 8, 16, 24 and 30, counted from 0."""

_CALM = 1e-3
"""Nats of KL below which its pull fades: published as 1e-8, of a mean over 128 000 vocabulary ids."""


@DEFENCES.register
@dataclass(frozen=True)
class Lat:
    """Latent adversarial training: refusal under the worst perturbation found inside the model.

    Attributes:
        layers: where the residual stream is perturbed, 0 for the embeddings; None for the published
            ones, by their share of the model's depth.
        epsilon: L2 norm of the perturbation at a token at most (published: 6, at every layer); None
            for a share of the stream's own.
        share: that share, of the median norm at each layer.
        iterations: of the search for a perturbation.
        rate: how far an iteration moves a token at most, as a share of `epsilon`. Published: 0.53
            for Llama 2; 0.01 for Llama 3, which then stays far inside the ball.
        toward: weight of what is to become likelier: the harmful response for the perturbation, the
            refusal for the model.
        away: weight of what is to become unlikelier: the other of the two.
        kl: weight of the KL from the base on harmless prompts, divided by its own value, so that
            its pull does not fade as it falls.
        sft: weight of the cross-entropy of the model's own answers to them (published for Llama 2:
            1.5, and no KL).
        refusal: the response to every harmful prompt.
        openings: how harmful responses may start, in the order they are tried.
        harmful_tokens: how far the model continues such an opening.
        answer_tokens: length of the model's own answers to harmless prompts.
    """

    name: ClassVar[str] = "lat"
    source: ClassVar[str] = "Sheshadri et al., arXiv 2407.15549"
    # 100 perturbations, of which each serves four updates; here a step is one of each.
    published: ClassVar[TrainSettings] = TrainSettings(
        steps=100,
        batch_size=16,
        lr=8e-5,
        warmup=0,
        min_lr_rate=1.0,
        rank=64,
        alpha=8,
        validate_every=0,
    )
    keeps: ClassVar[str] = "last"
    layers: tuple[int, ...] | None = None
    epsilon: float | None = None
    share: float = 0.1
    iterations: int = 16
    rate: float = 0.5
    toward: float = 0.5
    away: float = 0.5
    kl: float = 0.1
    sft: float = 0.0
    refusal: str = REFUSAL
    openings: tuple[str, ...] = OPENINGS
    harmful_tokens: int = 32
    answer_tokens: int = 48

    least: ClassVar[Mapping[str, float]] = {
        "epsilon": 0,
        "share": 0,
        "iterations": 0,
        "rate": 0,
        "toward": 0,
        "away": 0,
        "kl": 0,
        "sft": 0,
        "harmful_tokens": 0,
        "answer_tokens": 1,
    }
    searched: ClassVar[Mapping[str, Range]] = {"kl": Range(0.03, 3.0, log=True)}

    def expected(
        self, settings: TrainSettings, lengths: Lengths, harmful: int, harmless: int, rows: int
    ) -> Work:
        """Both kinds of answers, then steps: a search over two rows a prompt, and the update."""
        bad, good = (seen_count(settings, count) for count in (harmful, harmless))
        opened = lengths.count(self.openings[0])
        written = expected_unsafe(lengths, bad, self.harmful_tokens, self.openings, rows)
        written += answering(good, lengths.own, self.answer_tokens, rows, lengths.head)
        size, kept = min(settings.batch_size, bad), min(settings.batch_size, good)
        refusal, harm = lengths.count(self.refusal) + 1, opened + self.harmful_tokens
        # Rows are padded to the longest of their pass.
        pair = lengths.own + max(refusal, harm)
        searched = training(
            settings.steps * self.iterations, 2 * size, pair, size * (refusal + harm)
        )
        row = max(pair, lengths.own + self.answer_tokens)
        scored = size * (refusal + harm) + kept * self.answer_tokens
        updated = training(settings.steps, 2 * size + kept, row, scored, lengths.head)
        return written + searched + updated

    def prepare(self, material: Material) -> LatentAdversary:
        """Both responses to harmful prompts, the model's answers to others, and the radii.

        Raises:
            Es2Error: if the model has no such layer, or refuses however it is opened.
        """
        bad, good = material.seen(material.fit.harmful), material.seen(material.fit.harmless)
        with bar("the model's own answers", len(bad) + len(good)) as advance:
            unsafe = unsafe_answers(material, bad, self.harmful_tokens, self.openings, advance)
            return self.rows(material.chat, unsafe, good, material.settings, advance)

    def rows(
        self,
        chat: ChatModel,
        harmful: Sequence[Unsafe],
        harmless: Sequence[str],
        settings: TrainSettings,
        progress: Callable[[int], None] = lambda done: None,
    ) -> LatentAdversary:
        """The objective for a model as it is.

        Args:
            chat: the model.
            harmful: prompts to refuse, with the answers that it gives to them.
            harmless: prompts to answer as before.
            settings: of the training loop.
            progress: called with the number of prompts answered.

        Raises:
            Es2Error: if the model has no such layer.
        """
        layers = self.layers or _layers(chat.depth)
        if strange := sorted(set(layers) - set(range(chat.depth + 1))):
            raise Es2Error(
                f"lat: layer {strange[0]} to perturb, but {chat.name} has 0 (the embeddings) to "
                f"{chat.depth}"
            )
        template = chat.template
        prompts = [template.encode(one.prompt) for one in harmful]
        refusal = [*template.encode_response(self.refusal), min(chat.stop_ids)]
        pairs = [
            Pair(len(prompt), [*prompt, *refusal], [*prompt, *one.response])
            for prompt, one in zip(prompts, harmful, strict=True)
        ]
        answers = record(chat, harmless, self.answer_tokens, progress=progress)
        if self.epsilon is None:
            norms = stream_norms(chat, spread(prompts, 64), layers)
            radii = {layer: self.share * norm for layer, norm in norms.items()}
        else:
            radii = dict.fromkeys(layers, self.epsilon)
        return LatentAdversary(self, settings, pairs, answers, radii)


def _layers(depth: int) -> tuple[int, ...]:
    """The published layers in a model of another depth; a shallow one has fewer."""
    return tuple(dict.fromkeys(round(layer * depth / 32) for layer in _PUBLISHED))


@torch.no_grad()
def stream_norms(
    chat: ChatModel, rows: Sequence[list[int]], layers: Sequence[int]
) -> dict[int, float]:
    """Median L2 norm of the residual stream at each layer, over tokens that not all prompts share.

    The template's first tokens are left out: in many models their norms are hundreds of times the
    others', and no perturbation stands there.

    Args:
        chat: the model.
        rows: token ids of templated prompts.
        layers: 0 for the embeddings.
    """
    start = min(shared_prefix(rows), chat.template.head)

    def run(batch: list[int]) -> list[Float[Tensor, "layers _"]]:
        own = [rows[place] for place in batch]
        streams: dict[int, Tensor] = {}

        def keeping(layer: int) -> Edit:
            def keep(stream: Float[Tensor, "batch suffix d"]) -> Float[Tensor, "batch suffix d"]:
                streams[layer] = stream
                return stream

            return keep

        out = forward(chat, own, keep=start, edits={layer: keeping(layer) for layer in layers})
        found = []
        for place, row in enumerate(own):
            span = range(start, len(row))
            at = [out.at(streams[layer], [place] * len(span), span) for layer in layers]
            found.append(torch.stack(at).float().norm(dim=-1))
        return found

    norms = torch.cat(in_batches(chat, rows, run), 1)
    return dict(zip(layers, norms.median(1).values.tolist(), strict=True))


@dataclass(frozen=True)
class Pair:
    """A harmful prompt with either response.

    Attributes:
        begins: where the responses start.
        refusal: token ids of the prompt and its refusal.
        compliance: token ids of the prompt and a harmful response.
    """

    begins: int
    refusal: list[int]
    compliance: list[int]


@dataclass
class LatentAdversary:
    """Latent adversarial training's objective for the trainer.

    Attributes:
        terms: the loss.
        settings: of the training loop; `batch_size` prompts of each class a step.
        harmful: prompts with either response.
        harmless: what the model does on harmless prompts.
        radii: how far a token may be moved, at each layer that is perturbed.
    """

    terms: Lat
    settings: TrainSettings
    harmful: Sequence[Pair]
    harmless: Reference
    radii: Mapping[int, float]

    def loss(self, chat: ChatModel, step: int) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Preference for the refusal under the perturbation found, and what holds harmless rows."""
        terms, size, seed = self.terms, self.settings.batch_size, self.settings.seed
        bad = [self.harmful[i] for i in batch_indices(len(self.harmful), size, step, seed)]
        good = batch_indices(len(self.harmless), size, step, seed + 1)
        answers = [self.harmless.rows[i] for i in good]
        rows = _both(bad)
        whole = rows + answers
        start = min(shared_prefix(whole), chat.template.head)
        found, metrics = self.search(chat, bad, start)
        out = forward(chat, whole, keep=start, edits=adding(found, start, max(map(len, whole))))
        refusal, compliance = _read(chat, out, bad)
        toward, away = refusal.cross_entropy()[0], compliance.refrain()
        metrics |= {"toward": float(toward.detach()), "away": float(away.detach())}
        total = terms.toward * toward + terms.away * away
        if terms.kl:
            kl = kl_from(self.harmless, good, chat, out, len(rows), 1.0)
            metrics["kl"] = float(kl.detach())
            total = total + terms.kl * kl / (kl.detach() + _CALM)
        if terms.sft:
            begins = [self.harmless.firsts[i] + 1 for i in good]
            said = read_responses(chat, out, answers, begins, len(rows)).cross_entropy()[0]
            metrics["cross_entropy_harmless"] = float(said.detach())
            total = total + terms.sft * said
        return total, metrics

    @torch.enable_grad()
    def search(
        self, chat: ChatModel, bad: Sequence[Pair], start: int
    ) -> tuple[dict[int, Float[Tensor, "n span d"]], dict[str, float]]:
        """A perturbation by projected gradient descent, and its loss at first and at last.

        It begins at zero, and is the same for both responses to a prompt.

        Args:
            chat: the model in training; its weights and their gradients are left alone.
            bad: harmful prompts.
            start: the first token that may be moved; the last one of each prompt is the last.
        """
        terms, width = self.terms, chat.inner.config.get_text_config(decoder=True).hidden_size
        ends = torch.tensor([pair.begins for pair in bad], device=chat.device)[:, None]
        own = torch.arange(start, int(ends.max()), device=chat.device) < ends
        found = {
            layer: torch.zeros(*own.shape, width, device=chat.device, requires_grad=True)
            for layer in self.radii
        }
        # Adam moves each coordinate by its learning rate, hence a token by that times sqrt(width).
        optimiser = torch.optim.AdamW(
            [
                {"params": [found[layer]], "lr": terms.rate * radius / width**0.5}
                for layer, radius in self.radii.items()
            ]
        )
        rows, held, losses = _both(bad), Held(), []
        edits = adding(found, start, max(map(len, rows)))
        for _ in range(terms.iterations):
            out = forward(chat, rows, keep=start, edits=edits, held=held)
            refusal, compliance = _read(chat, out, bad)
            loss = terms.toward * compliance.cross_entropy()[0] + terms.away * refusal.refrain()
            losses.append(float(loss.detach()))
            # Not backward(), which would leave gradients at the weights in training.
            gradients = torch.autograd.grad(loss, list(found.values()))
            for delta, gradient in zip(found.values(), gradients, strict=True):
                delta.grad = gradient
            optimiser.step()
            with torch.no_grad():
                for layer, delta in found.items():
                    far = delta.norm(dim=-1, keepdim=True).clamp(min=1e-12)
                    delta.mul_(own[..., None] * (self.radii[layer] / far).clamp(max=1.0))
        metrics = {"search_first": losses[0], "search_last": losses[-1]} if losses else {}
        return {layer: delta.detach() for layer, delta in found.items()}, metrics


def _both(bad: Sequence[Pair]) -> list[list[int]]:
    """The refusals' rows, then those of the harmful responses."""
    return [pair.refusal for pair in bad] + [pair.compliance for pair in bad]


def _read(chat: ChatModel, out: Forward, bad: Sequence[Pair]) -> tuple[Responses, Responses]:
    """The refusals and the harmful responses in a pass whose first rows are `_both`."""
    rows, begins, split = _both(bad), [pair.begins for pair in bad], len(bad)
    return (
        read_responses(chat, out, rows[:split], begins),
        read_responses(chat, out, rows[split:], begins, split),
    )


def adding(
    found: Mapping[int, Float[Tensor, "n span d"]], start: int, longest: int
) -> dict[int, Edit]:
    """Edits that add a perturbation to the first 2n rows of a batch: `_both` responses.

    Args:
        found: the perturbation at each layer.
        start: the token at which it begins.
        longest: tokens of the batch's longest row.
    """

    def at(delta: Float[Tensor, "n span d"]) -> Edit:
        def add(stream: Float[Tensor, "batch suffix d"]) -> Float[Tensor, "batch suffix d"]:
            n, span, _ = delta.shape
            before = start - (longest - stream.shape[1])  # counted after the shared prefix
            after, others = stream.shape[1] - before - span, len(stream) - 2 * n
            wide = pad(delta.repeat(2, 1, 1), (0, 0, before, after, 0, others))
            return (stream + wide).to(stream.dtype)

        return add

    return {layer: at(delta) for layer, delta in found.items()}
