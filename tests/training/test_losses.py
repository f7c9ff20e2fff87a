"""The mathematics: batches equal loops over rows, and weights stay finite."""

from __future__ import annotations

import pytest
import torch

from dbray.bases.schedule import NoiseSchedule
from dbray.training import losses


def make_schedule(prediction="epsilon", zero_terminal_snr=False):
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alphas_cumprod = torch.cumprod(1 - betas, 0)
    if zero_terminal_snr:
        alphas_cumprod[-1] = 0.0
    return NoiseSchedule(alphas_cumprod, prediction)


def make_rows(num_rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    latents, noise, prediction = (
        torch.randn(num_rows, 4, 6, 5, generator=generator) for _ in range(3)
    )
    timesteps = torch.randint(1000, (num_rows,), generator=generator)
    return latents, noise, prediction, timesteps


@pytest.mark.parametrize("num_instance", [1, 2, 3, 8])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("gamma", [None, 5.0])
def test_batched_loss_equals_a_loop_over_rows(num_instance, prediction, gamma):
    schedule = make_schedule(prediction)
    latents, noise, answer, timesteps = make_rows(2 * num_instance)
    is_prior = torch.arange(2 * num_instance) >= num_instance
    weights = losses.row_weights(is_prior, prior_weight=0.7)
    if gamma is not None:
        weights = weights * schedule.min_snr_weights(timesteps, gamma)
    target = schedule.target(latents, noise, timesteps)
    batched = losses.prior_preservation_loss(losses.row_losses(answer, target), weights)

    by_hand = 0.0
    for row in range(2 * num_instance):
        alpha = schedule.alphas_cumprod_T[timesteps[row]].double()
        wanted = noise[row].double()
        if prediction == "v_prediction":
            wanted = alpha.sqrt() * wanted - (1 - alpha).sqrt() * latents[row].double()
        loss = (answer[row].double() - wanted).pow(2).mean()
        snr = alpha / (1 - alpha)
        if gamma is not None and prediction == "epsilon":
            loss *= min(snr, torch.tensor(gamma)) / snr
        elif gamma is not None:
            loss *= min(snr, torch.tensor(gamma)) / (snr + 1)
        by_hand += float(loss) * (0.7 if row >= num_instance else 1.0) / num_instance
    assert float(batched) == pytest.approx(by_hand, rel=1e-5)


def test_the_order_of_rows_has_no_effect():
    is_prior = torch.tensor([False, True, False, True, True])
    errors = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    order = torch.tensor([3, 0, 4, 2, 1])
    loss = losses.prior_preservation_loss(errors, losses.row_weights(is_prior, 1.0))
    permuted = losses.prior_preservation_loss(
        errors[order], losses.row_weights(is_prior[order], 1.0)
    )
    assert float(loss) == pytest.approx((1 + 3) / 2 + (2 + 4 + 5) / 3)
    assert float(permuted) == pytest.approx(float(loss))


def test_lambda_zero_equals_training_without_prior():
    errors = torch.tensor([1.5, 100.0])
    weights = losses.row_weights(torch.tensor([False, True]), prior_weight=0.0)
    assert float(losses.prior_preservation_loss(errors, weights)) == 1.5


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_min_snr_is_finite_at_zero_terminal_snr(prediction):
    schedule = make_schedule(prediction, zero_terminal_snr=True)
    weights = schedule.min_snr_weights(torch.arange(1000), gamma=5.0)
    assert torch.isfinite(weights).all()
    assert float(weights[-1]) == (1.0 if prediction == "epsilon" else 0.0)


def test_huber_is_a_plain_loop_over_elements():
    _, noise, answer, _ = make_rows(3)
    found = losses.row_losses(answer, noise, huber_c=0.1)
    for row in range(3):
        errors = (answer[row] - noise[row]).double().flatten().tolist()
        by_hand = [2 * 0.1 * ((e * e + 0.1**2) ** 0.5 - 0.1) for e in errors]
        assert float(found[row]) == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-5)


def test_huber_counts_small_errors_by_their_square_and_large_ones_by_their_size():
    errors = torch.tensor([1e-3, 100.0]).view(2, 1, 1, 1)
    small, large = losses.row_losses(errors, torch.zeros_like(errors), huber_c=0.5).tolist()
    assert small == pytest.approx(1e-6, rel=1e-3)
    assert large == pytest.approx(2 * 0.5 * (100 - 0.5), rel=1e-3)


def test_offset_noise_moves_whole_channels():
    noise = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(1))
    moved = losses.offset_noise(noise, 0.1, torch.Generator().manual_seed(2)) - noise
    offsets = torch.randn(4, 1, 1, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(moved, 0.1 * offsets.expand(4, 6, 5), rtol=1e-4, atol=1e-6)
    untouched = torch.Generator().manual_seed(2)
    assert losses.offset_noise(noise, 0.0, untouched) is noise
    assert torch.equal(torch.randn(4, 1, 1, generator=untouched), offsets)


def test_noising_keeps_unit_variance():
    schedule = make_schedule()
    latents, noise = torch.randn(2, 64, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    for timestep in (0, 300, 999):
        noisy = schedule.add_noise(latents, noise, torch.full((64,), timestep))
        assert float(noisy.var()) == pytest.approx(1.0, abs=0.02)


def test_v_prediction_recovers_latents_and_noise():
    schedule = make_schedule("v_prediction")
    latents, noise, _, timesteps = make_rows(5)
    noisy = schedule.add_noise(latents, noise, timesteps)
    v = schedule.target(latents, noise, timesteps)
    alphas = schedule.alphas_cumprod_T[timesteps].view(-1, 1, 1, 1)
    torch.testing.assert_close(alphas.sqrt() * noisy - (1 - alphas).sqrt() * v, latents)
    torch.testing.assert_close(alphas.sqrt() * v + (1 - alphas).sqrt() * noisy, noise)


def test_agrees_with_the_scheduler_of_diffusers():
    from diffusers import DDPMScheduler

    reference = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    latents, noise, _, timesteps = make_rows(4)
    for prediction in ("epsilon", "v_prediction"):
        schedule = NoiseSchedule(reference.alphas_cumprod, prediction)
        torch.testing.assert_close(
            schedule.add_noise(latents, noise, timesteps),
            reference.add_noise(latents, noise, timesteps),
        )
    torch.testing.assert_close(
        schedule.target(latents, noise, timesteps),
        reference.get_velocity(latents, noise, timesteps),
    )


def test_draws_depend_on_names_not_on_order():
    first = torch.randn(3, generator=losses.generator_of(0, "rex", 5, 1))
    again = torch.randn(3, generator=losses.generator_of(0, "rex", 5, 1))
    other = torch.randn(3, generator=losses.generator_of(0, "rex", 51, ""))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert 0 <= losses.seed_of("x") < 2**63
