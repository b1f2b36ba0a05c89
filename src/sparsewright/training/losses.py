"""What a student must match of its teacher, per family of models: encoders, classifiers, causal language models.

Sources: Hinton et al. 2015, arXiv:1503.02531 (soft targets); Reimers and Gurevych 2020, arXiv:2004.09813 (sentence
vectors); Tung and Mori 2019, arXiv:1907.09682 (similarities within a batch); Jiao et al. 2019, arXiv:1909.10351 (hidden
states). Every term is zero when the student equals the teacher and has a natural scale near one, so weights compare.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional

from ..core import ModelError, Registry


@dataclass(frozen=True)
class Answer:
    """One forward pass.

    Attributes:
        output: the model's main tensor: hidden states `(batch, tokens, width)` or logits `(batch, ..., classes)`.
        hidden: outputs of the blocks, in run order; empty where they are not compared.
    """

    output: Tensor
    hidden: Sequence[Tensor]


class AbstractDistillation(ABC):
    """Distance of a student's answer from its teacher's."""

    about: str

    @abstractmethod
    def loss(self, student: Answer, teacher: Answer, batch: Mapping[str, Any]) -> Tensor:
        """Distance, a scalar with a gradient in the student.

        Args:
            student: with gradients.
            teacher: the dense model's answer to the same batch, without gradients.
            batch: what both were given; `attention_mask` tells real tokens from padding.
        """


distillations: Registry[AbstractDistillation] = Registry("distillations", AbstractDistillation)


def real_tokens(hidden: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """`(batch, tokens)` 1.0 for real tokens; all ones where the batch has no attention mask of that shape."""
    mask = batch.get("attention_mask")
    if isinstance(mask, Tensor) and mask.shape == hidden.shape[:2]:
        return mask.to(hidden.dtype)
    return torch.ones(hidden.shape[:2], dtype=hidden.dtype)


def relative_error(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Squared error over the teacher's variance, over real tokens: 0 = equal, 1 = no better than the mean."""
    keep = mask.bool()
    target = teacher[keep]
    spread = (target - target.mean(0)).square().mean().clamp_min(1e-12)
    return (student[keep] - target).square().mean() / spread


def hidden_error(student: Answer, teacher: Answer, batch: Mapping[str, Any]) -> Tensor:
    """Mean relative error of the block outputs that are `(batch, tokens, width)`; zero without any."""
    pairs = [(ours, theirs) for ours, theirs in zip(student.hidden, teacher.hidden, strict=True) if ours.ndim == 3]
    if not pairs:
        return student.output.new_zeros(())
    return torch.stack([relative_error(ours, theirs, real_tokens(ours, batch)) for ours, theirs in pairs]).mean()


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence from teacher to student along the last dimension, mean over the rest."""
    ours = functional.log_softmax(student / temperature, dim=-1).flatten(0, -2)
    theirs = functional.log_softmax(teacher / temperature, dim=-1).flatten(0, -2)
    return functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)


@final
@distillations.register("encoder")
@dataclass(frozen=True)
class EncoderDistillation(AbstractDistillation):
    """Sentence encoders: pooled vectors, their similarities in the batch, tokens and hidden states.

    Attributes:
        pooled: weight of one minus the cosine of the pooled vectors.
        similarity: weight of the divergence between the similarity rankings within the batch.
        tokens: weight of the relative error of the output tokens.
        hidden: weight of the mean relative error of the block outputs.
        temperature: of the similarities; lower looks at nearer neighbours only.
    """

    about = "sentence encoders: pooled cosine, similarities in the batch, tokens, hidden states"
    pooled: float = 4.0
    similarity: float = 1.0
    tokens: float = 1.0
    hidden: float = 1.0
    temperature: float = 0.05

    def loss(self, student: Answer, teacher: Answer, batch: Mapping[str, Any]) -> Tensor:
        """See `AbstractDistillation.loss`; outputs are `(batch, tokens, width)`."""
        if student.output.ndim != 3:
            raise ModelError(
                f"Encoder distillation needs outputs (batch, tokens, width), got shape {tuple(student.output.shape)}. "
                "Use the family 'classifier' for models that answer with one vector per item."
            )
        mask = real_tokens(student.output, batch)
        ours, theirs = (
            functional.normalize((answer.output * mask.unsqueeze(-1)).sum(1), dim=-1) for answer in (student, teacher)
        )
        total = self.pooled * (1.0 - (ours * theirs).sum(-1)).mean()
        if self.similarity and len(ours) > 2:
            off = ~torch.eye(len(ours), dtype=torch.bool)
            near_ours = (ours @ ours.T)[off].view(len(ours), -1)
            near_theirs = (theirs @ theirs.T)[off].view(len(ours), -1)
            total = total + self.similarity * soft_cross_entropy(near_ours, near_theirs, self.temperature)
        total = total + self.tokens * relative_error(student.output, teacher.output, mask)
        return total + self.hidden * hidden_error(student, teacher, batch)


@final
@distillations.register("classifier")
@dataclass(frozen=True)
class ClassifierDistillation(AbstractDistillation):
    """Classifiers: soft labels, and hidden states where blocks are known.

    Attributes:
        soft: weight of the divergence of the class probabilities.
        hidden: weight of the mean relative error of the block outputs.
        temperature: softens both sides; the divergence is scaled by its square.
    """

    about = "classifiers of images or texts: soft labels, hidden states"
    soft: float = 1.0
    hidden: float = 1.0
    temperature: float = 2.0

    def loss(self, student: Answer, teacher: Answer, batch: Mapping[str, Any]) -> Tensor:
        """See `AbstractDistillation.loss`; outputs are logits `(batch, classes)`."""
        # The square keeps the gradient's size the same at every temperature (Hinton et al. 2015, section 2.1).
        scale = self.soft * self.temperature**2
        total = scale * soft_cross_entropy(student.output, teacher.output, self.temperature)
        return total + self.hidden * hidden_error(student, teacher, batch)


@final
@distillations.register("causal_lm")
@dataclass(frozen=True)
class CausalLMDistillation(AbstractDistillation):
    """Causal language models: next-token probabilities at real positions, and hidden states.

    Attributes:
        soft: weight of the divergence of the next-token probabilities.
        hidden: weight of the mean relative error of the block outputs.
    """

    about = "causal language models: next-token probabilities, hidden states"
    soft: float = 1.0
    hidden: float = 0.5

    def loss(self, student: Answer, teacher: Answer, batch: Mapping[str, Any]) -> Tensor:
        """See `AbstractDistillation.loss`; outputs are logits `(batch, tokens, vocabulary)`."""
        keep = real_tokens(student.output, batch).bool()
        total = self.soft * soft_cross_entropy(student.output[keep], teacher.output[keep], 1.0)
        return total + self.hidden * hidden_error(student, teacher, batch)
