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

ONE_STEP = "tests/training/loop/test_one_step.py::test_batches_of_one_step_count_as_one_batch_of_all_their_samples"
EACH_ITS_OWN = (
    "tests/training/loop/test_one_step.py::test_every_sample_of_a_batch_has_a_noise_level_noise_and_dropout_of_its_own"
)

LOOP = (
    Fault(
        name="accumulated-loss-not-divided",
        why="With 4 batches per step the gradient is 4 times too large: another learning rate than was asked for.",
        file="training/loop/train.py",
        find="loss = forward_step(state.family, state.transformer, batch, draws).loss / accumulation",
        replace="loss = forward_step(state.family, state.transformer, batch, draws).loss",
        tests=(ONE_STEP,),
    ),
    Fault(
        name="only-the-last-batch-is-learned",
        why="All batches of a step but one are computed for nothing.",
        file="training/loop/train.py",
        find="        loss.backward()\n",
        replace="        state.optimizer.zero_grad()\n        loss.backward()\n",
        tests=(ONE_STEP,),
    ),
    Fault(
        name="one-batch-for-all-of-a-step",
        why="Of N batches of a step each is the same one; the others are never seen.",
        file="training/loop/train.py",
        find="for number in range(state.batches_done, state.batches_done + accumulation):",
        replace="for number in [state.batches_done] * accumulation:",
        tests=(ONE_STEP,),
    ),
    Fault(
        name="position-counts-steps",
        why="With accumulation, most batches are seen several times before the epoch ends.",
        file="training/loop/state.py",
        find="return self.step * self.config.options.gradient_accumulation_steps",
        replace="return self.step",
        tests=(ONE_STEP,),
    ),
    Fault(
        name="schedule-counts-batches",
        why="With accumulation, the learning rate never comes down.",
        file="training/loop/optimizer.py",
        find="num_training_steps=config.max_train_steps,",
        replace="num_training_steps=config.max_train_steps * options.gradient_accumulation_steps,",
        tests=(ONE_STEP,),
    ),
    Fault(
        name="warm-up-left-out",
        why="The first steps, whose gradients are the largest, have the full learning rate.",
        file="training/loop/optimizer.py",
        find="num_warmup_steps=options.lr_warmup_steps,",
        replace="num_warmup_steps=0,",
        tests=(ONE_STEP, "tests/training/loop/test_optimizer.py::test_constant_after_the_warm_up"),
    ),
    Fault(
        name="schedule-before-the-optimiser",
        why="Every step has the learning rate of the next one.",
        file="training/loop/state.py",
        find="        self.optimizer.step()\n        self.scheduler.step()\n",
        replace="        self.scheduler.step()\n        self.optimizer.step()\n",
        tests=(ONE_STEP,),
    ),
    Fault(
        name="gradients-not-clipped",
        why="One picture that does not fit throws the adapter far off.",
        file="training/loop/train.py",
        find="norm = clip_gradients(state.parameters.values(), options.max_grad_norm)",
        replace="norm = clip_gradients(state.parameters.values(), 0.0)",
        tests=(ONE_STEP,),
    ),
    Fault(
        name="gradients-kept",
        why="Each step repeats all steps before it.",
        file="training/loop/state.py",
        find="        self.optimizer.zero_grad()\n        if self.ema",
        replace="        if self.ema",
        tests=(ONE_STEP,),
    ),
    Fault(
        name="average-before-the-step",
        why="Previews and the saved LoRA are those of the step before.",
        file="training/loop/state.py",
        find="        self.optimizer.step()\n        self.scheduler.step()\n        self.optimizer.zero_grad()\n"
        "        if self.ema is not None:\n            self.ema.step(self.parameters.values())\n",
        replace="        if self.ema is not None:\n            self.ema.step(self.parameters.values())\n"
        "        self.optimizer.step()\n        self.scheduler.step()\n        self.optimizer.zero_grad()\n",
        tests=(ONE_STEP,),
    ),
    Fault(
        name="betas-left-out",
        why="adam_beta1 and adam_beta2 have no effect.",
        file="training/loop/optimizer.py",
        find="            betas=(options.adam_beta1, options.adam_beta2),\n",
        replace="",
        tests=(ONE_STEP, "tests/training/loop/test_optimizer.py::test_adamw_settings"),
    ),
    Fault(
        name="decay-of-the-average-left-out",
        why="ema_decay has no effect: the average is that of diffusers' default.",
        file="training/loop/optimizer.py",
        find="EMAModel(parameters, decay=options.ema_decay, foreach=True)",
        replace="EMAModel(parameters, foreach=True)",
        tests=(ONE_STEP,),
    ),
    Fault(
        name="one-noise-level-per-batch",
        why="The larger the batch, the fewer noise levels are learned.",
        file="training/loop/step.py",
        find="sigmas=draw_sigmas(batch_size, shift, generator, family.sigma_distribution),",
        replace="sigmas=draw_sigmas(1, shift, generator, family.sigma_distribution).expand(batch_size),",
        tests=(EACH_ITS_OWN,),
    ),
    Fault(
        name="one-noise-per-batch",
        why="All pictures of a batch are learned with the same noise.",
        file="training/loop/step.py",
        find="noise=torch.randn(tuple(latents_shape), generator=generator, dtype=torch.float32),",
        replace="noise=torch.randn(tuple(latents_shape), generator=generator)[:1].expand(*latents_shape),",
        tests=(EACH_ITS_OWN,),
    ),
    Fault(
        name="captions-dropped-together",
        why="A batch has all its captions or none.",
        file="training/loop/step.py",
        find="dropped=torch.rand(batch_size, generator=generator) < options.caption_dropout_probability,",
        replace="dropped=torch.rand(1, generator=generator).expand(batch_size) < options.caption_dropout_probability,",
        tests=(EACH_ITS_OWN,),
    ),
    Fault(
        name="every-epoch-in-one-order",
        why="Neighbours in a batch are always the same.",
        file="training/loop/batches.py",
        find='{"seed": self._seed, "epoch": epoch})[:15]',
        replace='{"seed": self._seed, "epoch": 0})[:15]',
        tests=("tests/training/loop/test_batches.py::test_epochs_differ_in_order_and_buckets_mix",),
    ),
    Fault(
        name="repeats-off-by-one",
        why="repeats 1 shows a picture once, as 0 does.",
        file="training/loop/batches.py",
        find="for _ in range(1 + each[1].record.repeats)",
        replace="for _ in range(max(1, each[1].record.repeats))",
        tests=("tests/training/loop/test_batches.py::test_repeats_show_each_record_so_many_times_more",),
    ),
    Fault(
        name="resumed-with-other-random-numbers",
        why="A run that was stopped is another one than a whole one.",
        file="training/loop/checkpoint.py",
        find="    state.generator.set_state(tensors[GENERATOR])\n",
        replace="",
        tests=("tests/training/loop/test_checkpoint.py::test_restores_to_the_bit_and_goes_on_to_the_bit",),
    ),
    Fault(
        name="previews-share-a-seed",
        why="All previews have the noise of the first: they look alike, and the second cannot be sampled again.",
        file="training/loop/previews.py",
        find="self.config.validation_seed + index",
        replace="self.config.validation_seed",
        tests=("tests/training/loop/test_previews_and_samplers.py::test_text_to_image",),
    ),
    Fault(
        name="previews-renormalised-the-other-way-round",
        why="Previews of pictures from text are glaring, those of edits dull; the sampler's pictures are neither.",
        file="training/loop/previews.py",
        find="renorm=not cond_latents",
        replace="renorm=bool(cond_latents)",
        tests=("tests/training/loop/test_previews_and_samplers.py::test_text_to_image",),
    ),
    Fault(
        name="previews-ignore-the-negative-prompt",
        why="validation_negative_prompt has no effect.",
        file="training/loop/previews.py",
        find="caption=config.validation_negative_prompt",
        replace='caption=""',
        tests=("tests/training/loop/test_previews_and_samplers.py::test_text_to_image",),
    ),
)

CACHES = (
    Fault(
        name="rate-of-a-clip-not-in-its-key",
        why="After a change of fps the old frames are trained on.",
        file="training/caches/keys.py",
        find=' "fps": f"{clip.fps:g}",',
        replace="",
        tests=(
            "tests/training/caches/test_keys.py::test_every_argument_of_a_key_alone_gives_another_one",
            "tests/training/caches/test_keys.py::test_a_clips_files_depend_on_what_they_are_made_of",
        ),
    ),
    Fault(
        name="crop-not-in-the-key-of-latents",
        why="After a change of crop_style the old part of every picture is trained on.",
        file="training/caches/keys.py",
        find='        "crop": _crop_text(crop),\n        "VAE"',
        replace='        "VAE"',
        tests=("tests/training/caches/test_keys.py::test_every_argument_of_a_key_alone_gives_another_one",),
    ),
    Fault(
        name="reference-not-in-the-key-of-text",
        why="After a change of a reference its instruction still has the embeddings of the old one.",
        file="training/caches/keys.py",
        find='        "reference": " ".join(references),\n',
        replace="",
        tests=("tests/training/caches/test_keys.py::test_every_argument_of_a_key_alone_gives_another_one",),
    ),
    Fault(
        name="dtype-not-in-the-key-of-text",
        why="After a change to fp32 the embeddings of bfloat16 are trained on.",
        file="training/caches/keys.py",
        find='        "dtype": _dtype_text(wanted),\n',
        replace="",
        tests=("tests/training/caches/test_keys.py::test_every_argument_of_a_key_alone_gives_another_one",),
    ),
    Fault(
        name="dtype-of-the-device-not-in-the-key-of-text",
        why="A cache that is carried to a card without bfloat16 mixes embeddings of two precisions.",
        file="training/caches/keys.py",
        find='        **({"encoded in": _dtype_text(used)} if used != wanted else {}),\n',
        replace="",
        tests=("tests/training/caches/test_keys.py::test_a_device_that_computes_in_another_dtype_has_keys_of_its_own",),
    ),
    Fault(
        name="text-encoder-not-in-the-key-of-text",
        why="After a change of the text encoder the embeddings of the old one are trained on.",
        file="training/caches/keys.py",
        find='        "text encoder": text_encoder,\n',
        replace="",
        tests=("tests/training/caches/test_keys.py::test_every_argument_of_a_key_alone_gives_another_one",),
    ),
    Fault(
        name="pictures-of-a-folder-known-by-one",
        why="A video that is a folder of pictures keeps its latents when its pictures change places.",
        file="training/caches/keys.py",
        find="sha256_of_json({path.name: sha256_of_file(path) for path in picture.iterdir() if path.is_file()})",
        replace="sha256_of_json(sorted(sha256_of_file(path) for path in picture.iterdir() if path.is_file()))",
        tests=(
            "tests/training/caches/test_keys.py::test_a_file_is_known_by_its_bytes_and_a_folder_by_names_and_bytes",
        ),
    ),
    Fault(
        name="pictures-cached-from-their-middle",
        why="crop_style decides the name of the file, and not what is in it.",
        file="training/caches/latents.py",
        find="to_pixels(read_image(picture), record.bucket, record.crop)",
        replace="to_pixels(read_image(picture), record.bucket)",
        tests=("tests/training/caches/test_latents.py::test_latents_equal_the_familys_own_and_lie_apart",),
    ),
    Fault(
        name="clips-cached-from-their-beginning",
        why="Every clip of a video has the first one's frames.",
        file="training/caches/latents.py",
        find="read_clip(picture, clip.start, clip.frames,",
        replace="read_clip(picture, 0, clip.frames,",
        tests=("tests/training/caches/test_keys.py::test_a_clips_latents_are_those_of_its_own_frames",),
    ),
    Fault(
        name="references-read-from-their-middle",
        why="The text encoder sees another part of the reference than the transformer.",
        file="training/caches/text.py",
        find="to_pixels(read_image(picture), bucket, crop)",
        replace="to_pixels(read_image(picture), bucket)",
        tests=("tests/training/caches/test_text.py::test_the_encoder_sees_the_reference_cropped_as_it_is_trained",),
    ),
)

DATA = (
    Fault(
        name="lists-open-other-files",
        why="A file among the data that names another one, or an address, opens it.",
        file="training/data/video_files.py",
        find='{"format_whitelist": DEMUXERS, "protocol_whitelist": "file"}',
        replace='{"protocol_whitelist": "file"}',
        tests=("tests/training/data/test_video_clocks.py::test_a_file_that_names_another_file_opens_none",),
    ),
    Fault(
        name="transparency-on-black",
        why="Cut-out pictures get a black ground that the guides' program does not give them.",
        file="training/data/media.py",
        find='Image.new("RGBA", layer.size, "white")',
        replace='Image.new("RGBA", layer.size, "black")',
        tests=("tests/training/data/test_media.py::test_alpha_is_laid_on_white",),
    ),
    Fault(
        name="exif-ignored",
        why="Pictures of telephones lie on their side.",
        file="training/data/media.py",
        find="ImageOps.exif_transpose(image) if _follows_exif(image) else image",
        replace="image",
        tests=("tests/training/data/test_media.py::test_turns_by_exif",),
    ),
    Fault(
        name="pixels-from-0-to-1",
        why="The VAE knows pixels in -1..1: all latents are those of pale pictures.",
        file="training/data/media.py",
        find="array / 127.5 - 1.0",
        replace="array / 255.0",
        tests=("tests/training/data/test_media.py::test_pixels_have_the_bucket_and_range",),
    ),
    Fault(
        name="buckets-by-difference-of-aspects",
        why="Wide pictures lose more of their sides than tall ones.",
        file="training/data/buckets.py",
        find="error = round(abs(math.log(bucket[0] / bucket[1]) - aspect), 9)",
        replace="error = round(abs(bucket[0] / bucket[1] - width / height), 9)",
        tests=("tests/training/data/test_buckets.py::test_nearness_is_the_ratio_of_the_aspects",),
    ),
    Fault(
        name="clips-overlap",
        why="clip_extraction multiple makes as many clips as a video has frames.",
        file="training/data/clips.py",
        find="return range(0, spare + 1, frames)",
        replace="return range(0, spare + 1)",
        tests=("tests/training/data/test_clips.py::test_where_clips_lie",),
    ),
    Fault(
        name="frames-in-a-row",
        why="A clip at 30 frames per second is learned as if it were slow motion.",
        file="training/data/clips.py",
        find="while before is not None and time is not None and time - before.time <= frame.time - time:",
        replace="while before is not None and time is not None:",
        tests=("tests/training/data/test_clips.py::test_resampled_to_the_nearest_frames",),
    ),
)

MORE_LORAS = (
    Fault(
        name="trained-with-alpha-of-the-rank",
        why="lora_alpha has no effect.",
        file="training/lora/inject.py",
        find="lora_alpha=alpha or rank",
        replace="lora_alpha=rank",
        tests=("tests/training/lora/test_inject.py::test_alpha_scales",),
    ),
    Fault(
        name="adapter-starts-elsewhere",
        why="A starts with peft's own distribution, which is not that of the official trainers.",
        file="training/lora/inject.py",
        find='init_lora_weights="gaussian"',
        replace="init_lora_weights=True",
        tests=("tests/training/lora/test_inject.py::test_same_seed_same_adapter_and_global_random_state_untouched",),
    ),
    Fault(
        name="saved-without-its-scale",
        why="A LoRA of alpha 8 and rank 16 acts twice as strongly once it is saved.",
        file="training/lora/file.py",
        find="b=(layer.lora_B[TRAINED_ADAPTER].weight.detach() * layer.scaling[TRAINED_ADAPTER]).cpu(),",
        replace="b=layer.lora_B[TRAINED_ADAPTER].weight.detach().cpu(),",
        tests=("tests/training/lora/test_file.py::test_applied_file_acts_like_the_trained_adapter",),
    ),
    Fault(
        name="rank-stabilised-as-plain",
        why="A LoRA that was trained with use_rslora acts too weakly, by the root of its rank.",
        file="training/lora/scale.py",
        find="math.sqrt(rank) if self.rank_stabilised else rank",
        replace="rank",
        tests=("tests/training/lora/test_layouts.py::test_rank_stabilised_scale",),
    ),
    Fault(
        name="halves-not-swapped",
        why="The last modulation has its scale for its shift where ComfyUI reads the file.",
        file="training/lora/regroup.py",
        find="torch.cat(weights.b.chunk(2)[::-1])",
        replace="torch.cat(weights.b.chunk(2))",
        tests=("tests/training/lora/test_layouts.py::test_swaps_the_halves_of_the_last_modulation",),
    ),
)

MODELS = (
    Fault(
        name="latents-drawn-instead-of-the-mode",
        why="Every caching gives other latents, and the noise of the VAE is learned.",
        file="training/models/image/family.py",
        find="raw_latents = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode()",
        replace="raw_latents = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.sample()",
        tests=("tests/training/models/image/test_family.py::test_encoding_is_the_mode_and_repeats",),
    ),
    Fault(
        name="given-frames-at-the-noisy-timestep",
        why="The transformer takes the clean start for noise.",
        file="training/models/video/family.py",
        find="torch.cat([torch.zeros_like(timesteps[:, :given]), timesteps[:, given:]], dim=1)",
        replace="timesteps",
        tests=(
            "tests/training/models/video/test_family.py::test_a_start_frame_gives_the_official_output_whatever_the_noisy_latents_hold_there",
        ),
    ),
    Fault(
        name="reference-numbered-as-the-target",
        why="The transformer cannot tell what is given from what it draws.",
        file="training/models/image/latents.py",
        find="TEXT, TARGET, REFERENCE = 0, 1, 2",
        replace="TEXT, TARGET, REFERENCE = 0, 1, 1",
        tests=(
            "tests/training/models/image/test_latents.py::test_position_ids_equal_diffusers",
            "tests/training/models/image/test_released_values.py::test_the_latent_spaces_and_schedules_are_the_released_ones",
        ),
    ),
    Fault(
        name="pictures-numbered-from-0",
        why="Picture and text share positions, which the released weights never saw.",
        file="training/models/image/latents.py",
        find="rows = torch.arange(height // PATCH, dtype=torch.float32) + text_length",
        replace="rows = torch.arange(height // PATCH, dtype=torch.float32)",
        tests=("tests/training/models/image/test_latents.py::test_position_ids_equal_diffusers",),
    ),
    Fault(
        name="shift-of-another-model",
        why="LongCat-Video is trained and sampled with the shift that SimpleTuner's defaults have.",
        file="training/models/flow.py",
        find="VIDEO_SHIFT = 12.0",
        replace="VIDEO_SHIFT = 3.0",
        tests=(
            "tests/training/models/test_flow.py::test_fifty_steps_are_shifted_once_as_the_released_ones",
            "tests/training/models/image/test_released_values.py::test_the_latent_spaces_and_schedules_are_the_released_ones",
        ),
    ),
    Fault(
        name="noise-mixed-the-other-way-round",
        why="Clean latents stand where the model is told of noise.",
        file="training/models/flow.py",
        find="return (1 - sigmas) * latents + sigmas * noise",
        replace="return sigmas * latents + (1 - sigmas) * noise",
        tests=("tests/training/models/test_flow.py::test_noise_path_ends_and_slope",),
    ),
)

WEIGHTS = (
    Fault(
        name="modulation-of-video-quantised",
        why="What LongCat-Video computes in float32 is rounded to 8 or 4 bits.",
        file="training/weights/quantisation.py",
        find=' "final_layer.*", "*adaLN_modulation.*"),',
        replace=' "final_layer.*"),',
        tests=(
            "tests/training/models/video/test_whole_layers.py::test_all_linears_of_the_blocks_but_the_modulation_are_quantised",
        ),
    ),
    Fault(
        name="entry-of-captions-quantised",
        why="Every word reaches the transformer rounded to 8 or 4 bits.",
        file="training/weights/quantisation.py",
        find='"t_embedder.*", "y_embedder.*",',
        replace='"t_embedder.*",',
        tests=(
            "tests/training/models/video/test_whole_layers.py::test_all_linears_of_the_blocks_but_the_modulation_are_quantised",
        ),
    ),
    Fault(
        name="colours-of-another-vision-encoder",
        why="The text encoder sees references in the colours of CLIP's successor, all a little off.",
        file="training/weights/qwen_file.py",
        find='"image_mean": [0.48145466, 0.4578275, 0.40821073],',
        replace='"image_mean": [0.5, 0.5, 0.5],',
        tests=(
            "tests/training/models/image/test_released_values.py::test_the_image_processor_has_the_released_settings",
            "tests/training/models/image/test_released_values.py::test_the_image_processor_makes_the_released_patches",
        ),
    ),
    Fault(
        name="rotation-of-another-text-encoder",
        why="The text encoder of a single file reads distances between words wrongly.",
        file="training/weights/qwen_file.py",
        find='"rope_theta": 1e6,',
        replace='"rope_theta": 1e4,',
        tests=(
            "tests/training/models/image/test_released_values.py::test_the_text_encoder_that_a_single_file_gives_is_the_released_one",
        ),
    ),
    Fault(
        name="windows-of-another-vision-encoder",
        why="Two of four vision blocks that attend to the whole picture see windows only.",
        file="training/weights/qwen_file.py",
        find="FULL_ATTENTION_EVERY = 8",
        replace="FULL_ATTENTION_EVERY = 16",
        tests=(
            "tests/training/models/image/test_released_values.py::test_the_text_encoder_that_a_single_file_gives_is_the_released_one",
        ),
    ),
)

SAMPLING = (
    Fault(
        name="guidance-from-the-prompt-itself",
        why="guidance_scale 4.5 acts as 5.5.",
        file="training/sampling/euler.py",
        find="guided = negative_velocity + self.scale * (velocity - negative_velocity)",
        replace="guided = velocity + self.scale * (velocity - negative_velocity)",
        tests=("tests/training/sampling/test_pictures_t2i.py::test_equals_the_released_pipeline",),
    ),
    Fault(
        name="renormalised-for-the-whole-picture",
        why="One bright spot dims everything around it.",
        file="training/sampling/euler.py",
        find=".clamp(max=1)\n    return unpack_latents",
        replace=".mean(1, keepdim=True).clamp(max=1)\n    return unpack_latents",
        tests=(
            "tests/training/sampling/test_pictures_t2i.py::test_renormalised_tokens_are_never_longer_than_unguided_ones",
        ),
    ),
)

SETTINGS = (
    Fault(
        name="clips-cut-to-4-k",
        why="The VAE drops the last three frames of every clip without a word.",
        file="training/settings/geometry.py",
        find="return (frames - 1) // interval * interval + 1 if frames > 0 else 0",
        replace="return frames // interval * interval if frames > 0 else 0",
        tests=("tests/training/data/test_buckets.py::test_cut_down_to_4_k_plus_1",),
    ),
    Fault(
        name="megapixels-of-1000",
        why="resolution_type area gives other buckets than the guides' program.",
        file="training/settings/geometry.py",
        find="return MEGAPIXEL_SIDE * number**0.5",
        replace="return 1000 * number**0.5",
        tests=("tests/training/settings/test_geometry.py::test_read_in_the_order_written",),
    ),
)

SIMPLETUNER = (
    Fault(
        name="full-precision-not-read",
        why="mixed_precision 'no' trains in bfloat16.",
        file="training/simpletuner/read.py",
        find='full = config.get("mixed_precision", "bf16") == "no"',
        replace="full = False",
        tests=("tests/training/simpletuner/test_read.py::test_translations",),
    ),
    Fault(
        name="folder-overrides-the-name",
        why="run_name of a configuration has no effect.",
        file="training/simpletuner/read.py",
        find="return str(path.parent), str(run_name or path.name)",
        replace="return str(path.parent), str(path.name or run_name)",
        tests=("tests/training/simpletuner/test_read.py::test_translations",),
    ),
)

REHEARSAL = (
    Fault(
        name="references-not-counted",
        why="An edit is said to need the memory of a picture from text, and ends at the first step.",
        file="training/rehearsal/estimate.py",
        find="return picture * (1 + len(record.references)) + _prompt_tokens(record)",
        replace="return picture + _prompt_tokens(record)",
        tests=("tests/training/rehearsal/test_estimate.py::test_tokens_of_samples",),
    ),
    Fault(
        name="checkpoints-of-the-adapter-alone",
        why="The disk is full before the night is over: the optimiser's moments were not counted.",
        file="training/rehearsal/estimate.py",
        find='moments = 0 if config.options.optimizer == "adafactor" else 8',
        replace="moments = 0",
        tests=("tests/training/rehearsal/test_estimate.py::test_checkpoints_count_what_is_kept",),
    ),
)

FAULTS = (
    *(*TARGETS, *CONTEXT, *LATENTS, *SCHEDULES, *SAMPLERS, *LORAS),
    *(*LOOP, *CACHES, *DATA, *MORE_LORAS, *MODELS, *WEIGHTS, *SAMPLING, *SETTINGS, *SIMPLETUNER, *REHEARSAL),
)
