"""The ablations: what each one varies, and the paper's figures for it.

An ablation is a function from a checked job, which lists its subjects itself, to its variants; the
others are compared with the first. To add one: that function, and an entry in ABLATIONS. Loads
neither torch nor Ray. Source: Ruiz et al. 2022 (arXiv 2208.12242) with its later version; figures
are of Imagen, except those of Table 1, which are of Stable Diffusion.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dbray.bases.defaults import OF_JOB
from dbray.bases.families.super_resolution import SuperResolution
from dbray.errors import SpecError
from dbray.planning.known_nouns import nouns_of
from dbray.spec.methods import Full, Lora, MethodSettings, TextualInversion
from dbray.spec.prompts import NO_NOUN
from dbray.spec.recipe import Recipe
from dbray.spec.sections import Prior

if TYPE_CHECKING:
    from dbray.planning.checked import Ready
    from dbray.spec.job import Job
    from dbray.spec.subject import Subject

RATE_FACTORS = (1.0, 0.25, 4.0)
STEP_FACTORS = (1.0, 0.25, 0.5, 2.0)
MOST_PHOTOGRAPHS = 5
COMMON_WORDS = ("happy", "old", "small", "red", "striped", "sleeping", "angry", "blue", "golden",
                "young", "green", "spotted")  # fmt: skip
"""Words with a meaning that every base knows, the miniature too."""
NUM_CHARACTERS = 9
"""Of an identifier of random characters; the paper's example is xxy5syt00."""
_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"

Figures = Mapping[str, float]
"""Published figures, by measure."""


@dataclass(frozen=True)
class Variant:
    """One way to train the subjects; without a job, the untouched base is given descriptions."""

    name: str
    job: Job | None
    paper: Figures = field(default_factory=dict)


@dataclass(frozen=True)
class Ablation:
    """What is varied, where the paper does so, and the scores that show the effect."""

    summary: str
    source: str
    measures: tuple[str, ...]
    variants: Callable[[Ready], list[Variant]]


def prior(ready: Ready) -> list[Variant]:
    """Class images, nothing, or the untouched base as teacher."""
    job, weight = ready.job, ready.job.recipe.prior_weight or 1.0
    images = _with_prior(_with_recipe(job, prior_weight=weight), kind="images")
    found = [
        Variant("class images", images, {
            "preservation": 0.493, "diversity": 0.391, "identity": 0.684, "clip_identity": 0.815,
            "prompt": 0.308,
        }),
        Variant("none", _with_recipe(images, prior_weight=0.0), {
            "preservation": 0.664, "diversity": 0.371, "identity": 0.712, "clip_identity": 0.828,
            "prompt": 0.306,
        }),
    ]  # fmt: skip
    if job.super_resolution is None:  # it is kept by class images
        teacher = Prior(kind="teacher", prompt=job.prior.prompt)
        found.append(Variant("teacher", images.model_copy(update={"prior": teacher})))
    return found


def noun(ready: Ready) -> list[Variant]:
    """The right class noun, none, or another one."""
    known = [one.subject.class_noun for one in ready.subjects]
    nouns = sorted({*known} if len({*known}) > 1 else {*known, *nouns_of(ready.base)})
    wrong = {one: _another(one, nouns) for one in known}

    def renamed(name: Callable[[str], str]) -> Job:
        return _with_subjects(ready, lambda one: one.model_copy(update={
            "class_noun": name(one.class_noun), "true_class_noun": one.class_noun,
        }))  # fmt: skip

    return [
        Variant("correct", ready.job, {"identity": 0.744, "clip_identity": 0.853}),
        Variant("none", renamed(lambda _: NO_NOUN), {"identity": 0.303, "clip_identity": 0.607}),
        Variant("wrong", renamed(wrong.__getitem__), {"identity": 0.454, "clip_identity": 0.728}),
    ]


def _another(noun: str, nouns: Sequence[str]) -> str:
    """Return the noun half-way round a list of two or more."""
    return nouns[(nouns.index(noun) + len(nouns) // 2) % len(nouns)]


def photographs(ready: Ready) -> list[Variant]:
    """From all photographs, at most 5, down to a single one."""
    fewest = min(len(one.subject.images) for one in ready.subjects)
    if fewest < 2:
        alone = next(one.subject.id for one in ready.subjects if len(one.subject.images) == fewest)
        raise SpecError.of(f"subject {alone}", "has one photograph, so their number cannot vary",
                           "give it at least 2")  # fmt: skip
    counts = range(min(fewest, MOST_PHOTOGRAPHS), 0, -1)
    # Table 5: the means of its two subjects, a backpack and a dog.
    paper = {1: 0.646, 2: 0.683, 3: 0.734, 4: 0.740, 5: 0.731}
    return [
        Variant(str(count), _with_subjects(ready, lambda one, count=count: _first(one, count)),
                {"identity": paper[count]})
        for count in counts
    ]  # fmt: skip


def _first(subject: Subject, count: int) -> Subject:
    captions = subject.captions and subject.captions[:count]
    return subject.model_copy(update={"images": subject.images[:count], "captions": captions})


def identifier(ready: Ready) -> list[Variant]:
    """A rare token, a common word, or random characters."""
    ids = [one.subject.id for one in ready.subjects]
    words = {name: COMMON_WORDS[place % len(COMMON_WORDS)] for place, name in enumerate(ids)}

    def named(name: Callable[[str], str | None]) -> Job:
        return _with_subjects(
            ready, lambda one: one.model_copy(update={"identifier": name(one.id)})
        )

    return [
        Variant("rare token", named(lambda _: None)),
        Variant("common word", named(words.__getitem__)),
        Variant("random characters", named(_random_characters)),
    ]


def _random_characters(subject_id: str) -> str:
    drawn = hashlib.sha256(subject_id.encode()).digest()[:NUM_CHARACTERS]
    return "".join(_CHARACTERS[byte % len(_CHARACTERS)] for byte in drawn)


def rate(ready: Ready) -> list[Variant]:
    """The learning rate, a quarter of it, and four times it."""
    return [_scaled(ready, "learning_rate", factor) for factor in RATE_FACTORS]


def steps(ready: Ready) -> list[Variant]:
    """The steps, a quarter of them, half, and twice as many."""
    return [_scaled(ready, "steps", factor) for factor in STEP_FACTORS]


def _scaled(ready: Ready, name: str, factor: float) -> Variant:
    """Multiply a number of the recipe; whole numbers stay whole, and at least 1."""
    value = getattr(ready.job.recipe, name)
    scaled = max(1, round(value * factor)) if isinstance(value, int) else value * factor
    return Variant(f"{scaled:g}", _with_recipe(ready.job, **{name: scaled}))


def method(ready: Ready) -> list[Variant]:
    """All layers, low-rank factors, embeddings alone, and no training but a description.

    A method that the base cannot train by is left out.
    """
    found = [
        Variant("DreamBooth", _with_method(ready, Full()),
                {"identity": 0.668, "clip_identity": 0.803, "prompt": 0.305}),
        Variant("DreamBooth by LoRA", _with_method(ready, Lora())),
        Variant("textual inversion", _with_method(ready, TextualInversion()),
                {"identity": 0.569, "clip_identity": 0.780, "prompt": 0.255}),
    ]  # fmt: skip
    found = [one for one in found if one.job is not None and not _unfit(ready, one.job)]
    described = all(one.subject.description for one in ready.subjects)
    return [*found, Variant("description", None)] if described else found


def detail(ready: Ready) -> list[Variant]:
    """The second stage fine-tuned at low noise, at the noise that is usual for it, and as it is."""
    stage, second = ready.job.super_resolution, ready.base.super_resolution
    where = "super_resolution"
    if stage is None or second is None or not stage.train:
        raise SpecError.of(where, "no second stage is fine-tuned", "name a base of two stages")
    assert isinstance(second.family, SuperResolution)
    usual = second.family.usual_level
    if stage.noise_level >= usual:
        what = f"noise_level {stage.noise_level} is not below the usual {usual}"
        raise SpecError.of(where, what, "set noise_level to 0")
    return [
        Variant("low noise", ready.job),
        Variant("usual noise", _with_stage(ready.job, noise_level=usual)),
        Variant("not fine-tuned", _with_stage(ready.job, noise_level=usual, train=False)),
    ]


def _unfit(ready: Ready, job: Job) -> bool:
    return any(ready.base.family.unfit(ready.base.layout, job.recipe))


def _with_method(ready: Ready, settings: MethodSettings) -> Job:
    """The job by a method, at the rates that the base recommends for it.

    Its own rates stay only for its own method: those of others differ 10 to 1,000 times.
    """
    own = ready.job.recipe
    if own.method.kind == settings.kind:
        return ready.job
    of_job = {name for name, source in ready.sources["recipe"].items() if source == OF_JOB}
    kept = own.model_dump(include=of_job - {"method", "learning_rate", "identifier_rate"})
    recipe = Recipe.model_validate({**kept, "method": settings})
    return ready.job.model_copy(update={"recipe": recipe})


def _with_recipe(job: Job, **changes: object) -> Job:
    return job.model_copy(update={"recipe": job.recipe.model_copy(update=changes)})


def _with_stage(job: Job, **changes: object) -> Job:
    assert job.super_resolution is not None
    stage = job.super_resolution.model_copy(update=changes)
    return job.model_copy(update={"super_resolution": stage})


def _with_prior(job: Job, **changes: object) -> Job:
    return job.model_copy(update={"prior": job.prior.model_copy(update=changes)})


def _with_subjects(ready: Ready, change: Callable[[Subject], Subject]) -> Job:
    subjects = tuple(change(one.subject) for one in ready.subjects)
    return ready.job.model_copy(update={"subjects": subjects})


_FIDELITY = ("identity", "clip_identity", "prompt")

ABLATIONS: dict[str, Ablation] = {
    "prior": Ablation(
        "prior preservation by class images, none, or the base as teacher",
        "Figures 12 and 13, Table 3",
        ("preservation", "diversity", *_FIDELITY, "drift"),
        prior,
    ),
    "noun": Ablation(
        "the right class noun, none, or a wrong one",
        "Figure 11, Table 4",
        _FIDELITY,
        noun,
    ),
    "photographs": Ablation(
        "1 to 5 photographs",
        "Table 5",
        (*_FIDELITY, "copies"),
        photographs,
    ),
    "identifier": Ablation(
        "a rare token as identifier, a common word, or random characters",
        "section 3.2",
        (*_FIDELITY, "preservation"),
        identifier,
    ),
    "rate": Ablation(
        "the learning rate, a quarter of it, and four times it",
        "section 4",
        (*_FIDELITY, "drift", "copies"),
        rate,
    ),
    "steps": Ablation(
        "the steps, a quarter of them, half, and twice as many",
        "section 4",
        (*_FIDELITY, "drift", "copies"),
        steps,
    ),
    "method": Ablation(
        "DreamBooth, LoRA, textual inversion, and the untouched base with a description",
        "Figures 2, 15 and 16, Table 1",
        (*_FIDELITY, "nearest", "diversity"),
        method,
    ),
    "detail": Ablation(
        "super-resolution fine-tuned at low noise, at the usual noise, or as it is",
        "Figure 14",
        _FIDELITY,
        detail,
    ),
}
"""By the name that the command takes."""
