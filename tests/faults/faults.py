"""Faults that a trainer or sampler of LongCat can have while all numbers stay finite, and the tests that notice them.

Most were seen in other programs. None crashes: the loss falls and pictures come out, only not the right ones.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One wrong line, and who has to notice it."""

    name: str
    why: str
    """What it does to a LoRA or a picture."""
    file: str
    find: str
    """The right line or part of one; occurs exactly once in `file`."""
    replace: str
    tests: tuple[str, ...]
    """Node ids without parameters; every one of them has to turn red."""

    def planted_in(self, text: str) -> str:
        """The text of `file` with the fault.

        Raises:
            ValueError: what it replaces is not there exactly once.
        """
        if text.count(self.find) != 1:
            raise ValueError(
                f"the fault no longer applies: {self.name} replaces {self.find!r}, which occurs {text.count(self.find)}"
                f" times in {self.file}. Bring its entry in tests/faults/faults.py up to date."
            )
        return text.replace(self.find, self.replace)


TARGETS = (
    Fault(
        name="image-target-sign",
        why="The LoRA learns to walk away from the pictures.",
        file="training/loop/step.py",
        find="target = velocity_target(latents, noise)",
        replace="target = velocity_target(noise, latents)",
        tests=("tests/training/loop/test_step_oracles.py::test_training_target_is_noise_minus_latents",),
    ),
    Fault(
        name="video-target-sign",
        why="The raw output is latents - noise; trained towards noise - latents, the LoRA turns the model round.",
        file="training/models/video/family.py",
        find="return -output.float()",
        replace="return output.float()",
        tests=(
            "tests/training/loop/test_step_oracles.py::test_training_target_of_video_is_latents_minus_noise_of_the_raw_output",
            "tests/training/models/video/test_family.py::test_prediction_is_the_official_output_with_the_sign_of_the_target",
        ),
    ),
    Fault(
        name="first-frame-in-loss",
        why="The output at a given frame means nothing; learned, it pulls all other frames along.",
        file="training/loop/step.py",
        find="learned = slice(inputs.num_cond_latents, None)",
        replace="learned = slice(None)",
        tests=("tests/training/loop/test_step_oracles.py::test_the_first_video_frame_is_not_in_the_loss",),
    ),
)

CONTEXT = (
    Fault(
        name="reference-at-timestep-0",
        # The transformer takes one timestep a sample, so tokens at 0 and at t can only reach it as their mean.
        why="The released weights know reference tokens at the timestep of the noisy ones.",
        file="training/models/image/family.py",
        find="timestep=sigmas.to(device),",
        replace="timestep=(sigmas * target_count / tokens.shape[1]).to(device),",
        tests=(
            "tests/training/models/image/test_family.py::test_reference_tokens_have_the_timestep_of_the_noisy_ones",
            "tests/training/sampling/test_pictures_edit.py::test_edit_equals_the_released_pipeline",
        ),
    ),
    Fault(
        name="vision-context-full-size",
        why="Four times the picture tokens that the weights were trained with.",
        file="training/models/image/prompt.py",
        find=".resize((width // 2, height // 2), Resampling.LANCZOS)",
        replace=".resize((width, height), Resampling.LANCZOS)",
        tests=(
            "tests/training/models/image/test_prompt.py::test_the_vision_context_is_that_of_half_the_size",
            "tests/training/models/image/test_prompt.py::test_the_encoder_sees_the_reference_at_half_size",
        ),
    ),
    Fault(
        name="position-ids-left-out",
        why="transformers 5 then numbers the picture's tokens as if they were a line of text.",
        file="training/models/image/prompt.py",
        find="        position_ids=position_ids(is_image, attention_mask, rows, columns).to(device),\n",
        replace="",
        tests=("tests/training/models/image/test_prompt.py::test_3d_positions_are_passed_as_the_library_loses_them",),
    ),
    Fault(
        name="quoted-text-not-split",
        why="Text that shall be written in the picture loses the spelling by letters that the model learned it by.",
        file="training/models/image/prompt.py",
        find="for text in piece if quoted else [piece]:",
        replace="for text in [piece]:",
        tests=("tests/training/models/image/test_prompt.py::test_quotations_are_tokenised_by_character",),
    ),
    Fault(
        name="captions-trimmed",
        why="The video transformer attends to all 512 slots, the padded ones as zeros.",
        file="training/models/video/family.py",
        find="        prompt_embeds, mask = fill_slots(prompt_embeds)\n",
        replace="        prompt_embeds, mask = fill_slots(prompt_embeds)\n"
        "        used = int(mask.sum(dim=1).max())\n"
        "        prompt_embeds, mask = prompt_embeds[:, :used], mask[:, :used]\n",
        tests=("tests/training/models/video/test_prompt.py::test_captions_are_not_trimmed_before_the_transformer",),
    ),
)

LATENTS = (
    Fault(
        name="image-vae-scale-twice",
        why="Latents a third as large as the transformer knows them: grey, flat pictures.",
        file="training/models/image/latents.py",
        find='return (raw_latents - vae_config["shift_factor"]) * vae_config["scaling_factor"]',
        replace='return (raw_latents - vae_config["shift_factor"]) * vae_config["scaling_factor"] ** 2',
        tests=(
            "tests/training/models/image/test_family.py::test_vae_scale_and_shift_are_applied_once_as_the_pipeline_does",
        ),
    ),
    Fault(
        name="image-vae-shift-twice",
        why="All latents 0.04 too low: a cast in every picture.",
        file="training/models/image/latents.py",
        find='return (raw_latents - vae_config["shift_factor"]) * vae_config["scaling_factor"]',
        replace='return (raw_latents - 2 * vae_config["shift_factor"]) * vae_config["scaling_factor"]',
        tests=(
            "tests/training/models/image/test_family.py::test_vae_scale_and_shift_are_applied_once_as_the_pipeline_does",
        ),
    ),
    Fault(
        name="image-vae-twice-when-decoding",
        why="Sampled latents nearly three times too large: glaring pictures.",
        file="training/models/image/family.py",
        find="raw_latents = denormalise(latents.float(), vae.config)",
        replace="raw_latents = denormalise(denormalise(latents.float(), vae.config), vae.config)",
        tests=(
            "tests/training/models/image/test_family.py::test_vae_scale_and_shift_are_applied_once_as_the_pipeline_does",
        ),
    ),
    Fault(
        name="edit-reference-scaled-twice",
        why="ComfyUI carries raw latents; given normalised ones, the sampler normalises the reference again.",
        file="training/sampling/prompts.py",
        find="raw_cond_latents = denormalise(family.encode_pixels(vae, references[0]), vae.config).cpu()",
        replace="raw_cond_latents = family.encode_pixels(vae, references[0]).cpu()",
        tests=("tests/training/sampling/test_pictures_edit.py::test_an_edit_scales_and_shifts_its_reference_once",),
    ),
    Fault(
        name="video-vae-statistics-twice",
        why="Clips and start frames in a space that the transformer does not know.",
        file="training/models/video/family.py",
        find="return normalise(raw_latents.float(), vae.config)",
        replace="return normalise(normalise(raw_latents.float(), vae.config), vae.config)",
        tests=("tests/training/models/video/test_family.py::test_vae_means_and_deviations_are_applied_once",),
    ),
    Fault(
        name="video-vae-statistics-twice-when-decoding",
        why="Sampled latents up to three times too large, each channel off by another mean.",
        file="training/models/video/family.py",
        find="denormalise(latents.float(), vae.config).to(",
        replace="denormalise(denormalise(latents.float(), vae.config), vae.config).to(",
        tests=("tests/training/models/video/test_family.py::test_vae_means_and_deviations_are_applied_once",),
    ),
)

SCHEDULES = (
    Fault(
        name="image-training-shifted-twice",
        why="At one megapixel 1 % of the noise levels are below a half instead of 13 %: no details are learned.",
        file="training/models/flow.py",
        find="(DISTRIBUTIONS[sigma_distribution](batch_size, generator), shift)",
        replace="(shift_sigmas(DISTRIBUTIONS[sigma_distribution](batch_size, generator), shift), shift)",
        tests=("tests/training/models/test_flow.py::test_training_levels_are_logit_normal_and_shifted_once",),
    ),
    Fault(
        name="video-training-shifted-twice",
        why="Drawn from the shifted schedule and shifted again: 0.7 % of the levels are below a half instead of 7.7 %.",
        file="training/models/flow.py",
        find="return torch.rand(batch_size, generator=generator, dtype=torch.float32)",
        replace="return shift_sigmas(torch.rand(batch_size, generator=generator, dtype=torch.float32), 12.0)",
        tests=("tests/training/models/test_flow.py::test_training_levels_of_video_are_uniform_and_shifted_once",),
    ),
    Fault(
        name="sampling-shifted-twice",
        why="Of 50 steps at one megapixel, the last begins at a noise level of 0.17 instead of 0.06; of a clip's, at"
        " 0.13 instead of 0.01.",
        file="training/models/flow.py",
        find="shift_sigmas(levels, shift).to(",
        replace="shift_sigmas(shift_sigmas(levels, shift), shift).to(",
        tests=(
            "tests/training/models/test_flow.py::test_sampling_levels_are_shifted_once_as_the_released_scheduler_does",
            "tests/training/models/test_flow.py::test_fifty_steps_are_shifted_once_as_the_released_ones",
        ),
    ),
)

SAMPLERS = (
    Fault(
        name="first-frame-stepped",
        why="The given start drifts away from its picture.",
        file="training/sampling/euler.py",
        find="start, denoised = latents[:, :, :given], latents[:, :, given:]",
        replace="start, denoised = latents[:, :, :0], latents",
        tests=(
            "tests/training/sampling/test_euler_video.py::test_given_frames_stay_bit_for_bit_and_are_shown_clean_at_timestep_zero",
        ),
    ),
    Fault(
        name="cfg-zero-over-the-batch",
        why="What is sampled beside a clip changes the clip.",
        file="training/sampling/euler.py",
        find="positive, negative = velocity.flatten(1), negative_velocity.flatten(1)",
        replace="positive, negative = velocity.flatten()[None], negative_velocity.flatten()[None]",
        tests=("tests/training/sampling/test_euler_video.py::test_the_cfg_zero_scale_is_each_samples_own",),
    ),
)

LORAS = (
    Fault(
        name="lora-alpha-ignored",
        why="A LoRA of alpha 8 and rank 32 acts four times too strongly.",
        file="training/lora/file.py",
        find='given = part.get("scale", part.get("alpha"))',
        replace="given = None",
        tests=(
            "tests/training/lora/test_layouts.py::test_reads_every_spelling_with_its_alpha",
            "tests/training/lora/test_video.py::test_the_official_lora_gives_the_official_output_in_every_layout",
        ),
    ),
    Fault(
        name="peft-alpha-ignored",
        why="The same for the official trainers' files, whose alpha is in adapter_config.json.",
        file="training/lora/file.py",
        find="scale = settings.scale(module, rank)",
        replace="scale = 1.0",
        tests=("tests/training/lora/test_layouts.py::test_a_folder_that_peft_saved_keeps_its_alpha",),
    ),
)

FAULTS = (*TARGETS, *CONTEXT, *LATENTS, *SCHEDULES, *SAMPLERS, *LORAS)
