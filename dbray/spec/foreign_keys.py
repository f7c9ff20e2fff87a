"""dbray's names for the settings of other trainers: diffusers' DreamBooth scripts and kohya's.

Only for the fix of an unknown key: none of these is accepted.
"""

from __future__ import annotations

OURS = {
    "pretrained_model_name_or_path": "base",
    "model_name": "base",
    "revision": "base_revision",
    "output_dir": "storage",
    "output_name": "id",
    "instance_data_dir": "subjects",
    "instance_data_root": "subjects",
    "train_data_dir": "subjects",
    "concepts_list": "subjects",
    "lr": "recipe.learning_rate",
    "unet_lr": "recipe.learning_rate",
    "max_train_steps": "recipe.steps",
    "num_train_steps": "recipe.steps",
    "train_steps": "recipe.steps",
    "max_steps": "recipe.steps",
    "max_train_epochs": "recipe.steps",
    "num_train_epochs": "recipe.steps",
    "train_batch_size": "recipe.batch_size",
    "gradient_accumulation_steps": "recipe.batch_size",
    "prior_loss_weight": "recipe.prior_weight",
    "adam_weight_decay": "recipe.weight_decay",
    "snr_gamma": "recipe.min_snr_gamma",
    "lr_scheduler": "recipe.rate_schedule",
    "lr_warmup_steps": "recipe.warmup_steps",
    "use_ema": "recipe.ema_decay",
    "mixed_precision": "recipe.precision",
    "save_precision": "recipe.publish_precision",
    "random_flip": "recipe.flip",
    "flip_aug": "recipe.flip",
    "center_crop": "recipe.crop",
    "random_crop": "recipe.crop",
    "num_class_images": "prior.count",
    "class_prompt": "prior.prompt",
    "validation_prompt": "previews.prompts",
    "validation_prompts": "previews.prompts",
    "sample_prompts": "previews.prompts",
    "num_inference_steps": "previews.steps",
    "guidance_scale": "previews.guidance",
    "checkpointing_steps": "resources.checkpoint_every",
    "save_every_n_steps": "resources.checkpoint_every",
}
"""Their key: the section and key that replace it in a job file."""

WITHOUT_KEY = {
    "instance_prompt": "give each subject its class_noun; dbray finds the identifier",
    "with_prior_preservation": "prior preservation is on unless recipe.prior_weight is 0",
    "class_data_dir": "dbray makes the class images",
    "reg_data_dir": "dbray makes the class images",
    "loss_type": "recipe.huber_c chooses the Huber loss",
    "weighting_scheme": "recipe.flow has the density and the weighting of noise levels",
    "discrete_flow_shift": "recipe.flow.shift shifts the noise levels",
    "caption_extension": "captions are read from .txt and .caption files next to the photographs",
}
"""Their key: what dbray does instead."""


def canonical(key: str) -> str:
    """Return a key in the form of these tables: `--max-train-steps` is max_train_steps."""
    return key.strip().lstrip("-").replace("-", "_").lower()
