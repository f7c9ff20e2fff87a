"""The interface of a family of models, and what most families have in common.

A Family is a description: it has no weights and no state. `bases.backbone` loads the models that it
lists and passes them to it. torch is imported where needed, so that a base can be checked without
it.
Shape suffixes: N images, B rows, C channels, H height, W width.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from dbray.errors import BaseError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dbray.bases.layout import Layout
    from dbray.bases.schedule import Schedule
    from dbray.spec.recipe import Recipe
    from dbray.spec.sections import Sampler

_DISTILLED = re.compile(r"turbo|lightning|distill|(?<![a-z])(hyper|lcm)(?![a-z])")

KEPT_PER_BLOCK = 42
"""Numbers that a transformer block keeps for its backward pass, for each position and channel.

Counted by `torch.autograd.graph.saved_tensors_hooks` on models of real size, with attention that
keeps no matrix: 41 in FLUX.1, 44 in Stable Diffusion 1.5 and XL.
"""

Tensors = Mapping[str, Any]
"""Tensors by name: the content of a Condition."""


class Family:
    """A kind of base: its parts, its checks, and how they work together.

    The defaults are those of a base with one autoencoder of the AutoencoderKL kind.
    """

    name: ClassVar[str]
    """Name in messages."""
    models: ClassVar[Mapping[str, str]]
    """Parts with weights: folder name -> 'library.Class', the denoiser first."""
    tokenizers: ClassVar[Mapping[str, str]]
    """Folder name -> class of transformers, in the order of the text encoders."""
    reader: ClassVar[str] = "tokenizer"
    """The tokenizer of the text encoder that reads the longest texts."""
    reads_case: ClassVar[bool] = True
    """Whether prompts keep their capital letters; else they are read in lower case."""
    denoiser: ClassVar[str]
    autoencoder: ClassVar[str | None] = "vae"
    """The model between pixels and latents; None: the latents are the pixels."""
    undecayed: ClassVar[tuple[str, ...]] = ()
    """Parameters of the denoiser without weight decay: those with rows that have no target, which
    decay alone would change."""
    text_encoders: ClassVar[tuple[str, ...]]
    """Names of the models that read text, in the order of publishing."""
    index_keys: ClassVar[tuple[str, ...]] = ()
    """Keys of a base's index that affect its images."""
    trained_encoders: ClassVar[tuple[str, ...] | None] = None
    """Text encoders that may be trained; None: all."""
    taught_encoders: ClassVar[tuple[str, ...] | None] = None
    """Those that may learn an identifier's embeddings; None: the same."""
    samplers: ClassVar[tuple[Sampler, ...]]
    """Names of its samplers."""
    no_prompt: ClassVar[str] = ""
    """The default negative prompt."""
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Recommended settings of all its bases that differ from a job's defaults, by section."""
    few_steps: ClassVar[Mapping[str, Any]] = {"steps": 4, "guidance": 1.0}
    """Recommended settings for sampling from distilled bases."""

    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """What is recommended of a recipe for all its bases, by the method's kind. Learning rates and
    steps are those of diffusers' scripts; where those average 4 images a step, set batch_size."""

    targets: ClassVar[Mapping[str, tuple[str, ...]]]
    """Groups of layers that low-rank factors may train: endings of paths in the denoiser."""
    default_targets: ClassVar[tuple[str, ...]] = ("attention", "feed_forward")
    text_targets: ClassVar[tuple[str, ...]] = ("q_proj", "k_proj", "v_proj", "out_proj")
    """The same in the text encoders."""

    @property
    def encoders_to_train(self) -> tuple[str, ...]:
        """Names of the text encoders that may be trained, in order."""
        allowed = self.trained_encoders
        return self.text_encoders if allowed is None else allowed

    @property
    def encoders_to_teach(self) -> tuple[str, ...]:
        """Names of the text encoders in which an identifier's embeddings may be trained."""
        allowed = self.taught_encoders
        return self.encoders_to_train if allowed is None else allowed

    @property
    def folders(self) -> tuple[str, ...]:
        """Every folder of a base that dbray reads."""
        return (*self.models, *self.tokenizers, *self.schedulers)

    @property
    def schedulers(self) -> tuple[str, ...]:
        """Folders of schedulers: first that of the denoiser."""
        return ("scheduler",)

    @property
    def is_super_resolution(self) -> bool:
        """Whether its bases enlarge images, and draw none from a text alone."""
        return len(self.schedulers) > 1

    def check(self, layout: Layout) -> None:
        """Raise BaseError if the configurations are not those of a supported base."""
        raise NotImplementedError

    def resolution(self, layout: Layout) -> int:
        """Side in pixels of the images that the base was trained on. Raises BaseError."""
        raise NotImplementedError

    def unfit(self, layout: Layout, recipe: Recipe) -> Iterator[tuple[str, str]]:
        """Yield each problem of a recipe with a base, and what to change."""
        frozen = f"the text encoders of {self.name} cannot be trained"
        if recipe.train_text_encoder and not self.encoders_to_train:
            yield f"train_text_encoder: {frozen}", "leave out train_text_encoder"
        if self.encoders_to_teach:
            return
        if recipe.identifier_rate is not None:
            yield f"identifier_rate: {frozen}", "leave out identifier_rate"
        if recipe.method.kind in ("textual_inversion", "pivotal"):
            yield f"method {recipe.method.kind}: {frozen}", "set method to lora or full"

    def check_sampler(self, name: Sampler) -> None:
        """Raise BaseError if there is no such sampler."""
        if name not in self.samplers:
            raise BaseError(f"{self.name} has no sampler {name!r}; "
                            f"choose one of: {', '.join(self.samplers)}")  # fmt: skip

    def schedule(self, config: Mapping[str, Any]) -> Schedule:
        """Make the schedule of training from the scheduler's configuration."""
        raise NotImplementedError

    def scheduler(self, name: Sampler, config: Mapping[str, Any]) -> Any:
        """Make a fresh diffusers scheduler; schedulers keep state, so they are never shared."""
        raise NotImplementedError

    def prepare(self, scheduler: Any, steps: int, shape: tuple[int, int, int]) -> Any:
        """Prepare a scheduler for latents of the shape (C, H, W), for `generate`."""
        scheduler.set_timesteps(steps)
        return scheduler

    def needs_negative(self, scale: float) -> bool:
        """Return whether guidance of this scale needs the prediction for the negative prompt."""
        return scale != 1

    def guide(self, positive_BCHW: Tensor, negative_BCHW: Tensor, scale: float) -> Tensor:
        """Mix two predictions: classifier-free guidance (Ho and Salimans 2022)."""
        return negative_BCHW + scale * (positive_BCHW - negative_BCHW)

    def with_guidance(self, condition: Tensors, scale: float) -> Tensors:
        """Add the scale to a condition, if the denoiser takes it as an input."""
        return condition

    def tokenize(self, tokenizers: Mapping[str, Any], prompts: Sequence[str]) -> Tensors:
        """Turn N prompts into token ids (and masks), each of shape (N, ...), on the CPU."""
        raise NotImplementedError

    def max_tokens(self, reader: Any) -> int:
        """Number of tokens of the longest text that is read, by the tokenizer `reader`."""
        return reader.model_max_length

    def framed(self, reader: Any, prompt: str) -> str:
        """Return the input of the tokenizer `reader` for a prompt."""
        return prompt

    def embed(self, models: Mapping[str, Any], tokens: Tensors) -> Tensors:
        """Compute the input of `predict` from the result of `tokenize`; with gradients."""
        raise NotImplementedError

    def extra_inputs(self, models: Mapping[str, Any], num: int) -> Tensors:
        """Return further inputs of `predict` from the models: N rows, added to the token ids."""
        return {}

    def without_prompt(self, condition: Tensors, layout: Layout) -> Tensors:
        """Return the condition for no negative prompt, from that of an empty one."""
        return condition

    def predict(
        self, denoiser: nn.Module, latents_BCHW: Tensor, timesteps_B: Tensor, condition: Tensors
    ) -> Tensor:
        """Call the denoiser; the result is in the schedule's parameterisation."""
        raise NotImplementedError

    def targeted(self, prediction_BCHW: Tensor) -> Tensor:
        """Return the part of a prediction that has a target in training."""
        return prediction_BCHW

    def num_targets(self, config: Mapping[str, Any], group: str) -> int | None:
        """Return the number of layers of a group, from the configuration; None if unknown."""
        return None

    def kept_values(self, layout: Layout, recipe: Recipe) -> int:
        """Numbers that one row of a step keeps for its backward pass: an estimate."""
        raise NotImplementedError

    def latent_shape(self, vae: Mapping[str, Any], size: tuple[int, int]) -> tuple[int, int, int]:
        """Return the shape (C, H, W) of the latents of an image of (width, height) pixels.

        `vae` is the autoencoder's configuration, empty without one.
        """
        factor = latent_factor(vae)
        width, height = size
        return vae["latent_channels"], height // factor, width // factor

    def encode(self, models: Mapping[str, Any], pixels_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Encode pixels in [-1, 1] to mean and standard deviation of their scaled latents."""
        vae = models["vae"]
        scale, shift = latent_scale(vae.config)
        posterior = vae.encode(pixels_NCHW).latent_dist
        return (posterior.mean - shift) * scale, posterior.std * scale

    def decode(self, models: Mapping[str, Any], latents_NCHW: Tensor) -> Tensor:
        """Decode scaled latents to pixels of about [-1, 1]."""
        vae = models["vae"]
        scale, shift = latent_scale(vae.config)
        return vae.decode(latents_NCHW / scale + shift).sample

    def distilled(self, layout: Layout) -> str | None:
        """Return how a base's files show that it is distilled to few steps; None if they do not.

        Training would undo that. In most families only the name shows it.
        """
        for name in layout.names:
            if found := _DISTILLED.search(name.lower()):
                return f"{name!r} is distilled to few steps by its name ({found[0]!r})"
        return None

    def refused(self, reason: str) -> BaseError:
        """Make the error that a base is not of this family."""
        return BaseError(f"not a {self.name} text-to-image model: {reason}; choose another base")


def recipes(
    lora: Mapping[str, Any], full: Mapping[str, Any] | None = None
) -> dict[str, Mapping[str, Any]]:
    """Recipes by method; textual inversion's is the same in all families."""
    return {
        "full": full or {},
        "lora": lora,
        "pivotal": lora,
        # The README of diffusers' examples/textual_inversion: 5e-4, scaled by 4 images a step.
        "textual_inversion": {"learning_rate": 2e-3, "steps": 3000},
    }


def latent_factor(config: Mapping[str, Any]) -> int:
    """Return the pixels per latent along a side."""
    return 2 ** (len(config["block_out_channels"]) - 1)


def latent_scale(config: Any) -> tuple[float, float]:
    """Return scale and shift of an AutoencoderKL's latents."""
    return config.scaling_factor, getattr(config, "shift_factor", None) or 0.0
