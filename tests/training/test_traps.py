"""The errors that trainers of this kind are known for, each with the test that keeps it out, or why it cannot happen here.

The table is also a page of claims: `assets/docs/training.md` tells of them, this file holds it to tests that exist.
"""

import ast
from pathlib import Path

import pytest
import torch

from studio import families
from studio.families import sources
from studio.lora import attach

ROOT = Path(__file__).parents[2]

# number -> what goes wrong elsewhere, and the tests here; a text without "::" is why it does not apply
TRAPS: dict[int, tuple[str, tuple[str, ...]]] = {
    1: (
        "size conditioning that does not follow each picture's own crop and mirror",
        (
            "families/test_sdxl.py::test_the_prediction_is_the_pipelines_own_denoiser_call",
            "data/test_buckets.py::test_size_conditioning_follows_the_cut_and_the_mirror",
        ),
    ),
    2: ("another embedding of time and size than the base's", ("families/test_sdxl.py::test_the_prediction_is_the_pipelines_own_denoiser_call",)),
    3: (
        "pooled text of the wrong encoder or token, or moved by new words",
        (
            "families/test_sdxl.py::test_captions_are_encoded_as_the_pipeline_does",
            "training/test_new_words.py::test_the_end_of_a_text_is_found_by_old_configurations_too",
        ),
    ),
    4: ("text encoders told by number, and the numbers swapped", ("lora/test_names.py::test_text_encoders_have_the_modules_of_the_reference",)),
    5: (
        "text_encoder swallows the keys of text_encoder_2",
        ("lora/test_names.py::test_text_encoders_have_the_modules_of_the_reference", "training/test_traps.py::test_the_paths_of_two_encoders_do_not_mix"),
    ),
    6: (
        "layers, or new words of the wrong table, that silently take no part",
        (
            "training/test_guards.py::test_every_kind_of_network_is_guarded",
            "training/test_new_words.py::test_only_the_new_rows_change_and_they_move_from_the_words_they_start_from",
            "lora/test_attach.py::test_each_preset_takes_the_layers_it_names_and_trains_nothing_else",
            "training/test_loop.py::test_a_backward_pass_that_misses_the_adapter_is_an_error",
        ),
    ),
    7: (
        "a VAE that overflows in fp16, and latents that are not numbers",
        (
            "families/test_sdxl.py::test_the_pipeline_draws_in_half_precision_with_a_vae_in_fp32",
            "data/test_cache.py::test_latents_that_are_not_finite_name_the_picture_and_are_not_kept",
        ),
    ),
    8: (
        "alpha ignored or lost",
        (
            "lora/test_formats.py::test_a_kohya_file_has_one_alpha_as_a_float32_scalar_and_true_zeros",
            "training/test_loop.py::test_start_from_reads_an_exported_file",
        ),
    ),
    9: (
        "DoRA under names that nobody reads",
        ("lora/test_layers.py::test_dora_is_that_of_peft", "lora/test_layers.py::test_every_kind_survives_a_kohya_file_exactly"),
    ),
    10: (
        "min-SNR for noise applied to velocity",
        ("training/test_objective.py::test_min_snr_weights", "training/test_objective.py::test_min_snr_counts_a_picture_error_the_same_for_both_predictions"),
    ),
    11: (
        "velocity and zero terminal SNR, off by one at the last step",
        (
            "training/test_objective.py::test_zero_terminal_training_asks_for_velocity_and_ends_in_pure_noise",
            "training/test_objective.py::test_diffusion_is_that_of_the_drawing_scheduler",
        ),
    ),
    12: (
        "an average that is configured and never used",
        (
            "training/test_average.py::test_a_run_trains_as_without_and_saves_the_average",
            "training/test_optim.py::test_what_is_given_by_a_schedule_free_run_is_its_average_and_training_goes_on_from_its_point",
        ),
    ),
    13: (
        "the timestep shift of another resolution, or of four times the tokens",
        ("training/test_objective.py::test_flux_shift_by_resolution", "training/test_objective.py::test_packed_tokens_are_a_quarter_of_the_latents"),
    ),
    14: (
        "noise levels inverted or drawn and not used",
        (
            "training/test_objective.py::test_flow_levels_are_logit_normal_and_a_shift_means_more_noise",
            "training/test_objective.py::test_flow_mixes_linearly_and_aims_from_picture_to_noise",
        ),
    ),
    15: (
        "guidance of drawing used in training, or given to a base without it",
        ("families/test_flux.py::test_the_prediction_is_the_pipelines_own_denoiser_call", "families/test_flux.py::test_schnell_predicts_without_guidance"),
    ),
    16: ("padding of T5 masked away", ("families/test_flux.py::test_captions_are_encoded_as_the_pipeline_does",)),
    17: ("the VAE's shift forgotten or applied twice", ("families/test_flux.py::test_latents_use_shift_and_scale_of_the_vae",)),
    18: ("times and sizes above 256 rounded in bf16", ("training/test_traps.py::test_times_and_sizes_reach_the_denoiser_in_fp32_on_a_base_in_bf16",)),
    19: (
        "a cache that does not know all it depends on",
        ("data/test_cache.py::test_every_input_is_in_the_key", "data/test_cache.py::test_a_changed_weight_changes_the_identity"),
    ),
    20: (
        "buckets that cut too much, enlarge or break on odd shapes",
        (
            "data/test_buckets.py::test_a_picture_is_never_enlarged_and_always_covers_its_bucket",
            "data/test_buckets.py::test_no_bucket_that_fits_would_keep_more",
        ),
    ),
    21: (
        "weights of a picture applied to another one's loss",
        ("training/test_choices.py::test_prior_prediction_starts_at_no_loss_and_a_weight_of_regularisation_counts",),
    ),
    22: (
        "captions neither dropped nor shuffled once they are cached, and silence that is not what the base means by it",
        (
            "families/test_sdxl.py::test_an_empty_caption_is_zeros_where_the_base_draws_away_from_zeros",
            "generation/test_modes.py::test_without_a_negative_prompt_a_base_draws_away_from_what_a_dropped_caption_trained",
            "training/test_plan.py::test_everything_names_each_encoding_that_a_batch_can_ask_for",
            "training/test_plan.py::test_a_drawn_caption_is_cached_follows_its_key_and_all_come_up",
        ),
    ),
    23: (
        "a base that sampling or moving about has changed",
        (
            "families/test_offload.py::test_steps_with_waiting_blocks_are_the_same_bit_for_bit_and_leave_the_base_alone",
            "training/test_loop.py::test_the_base_is_not_changed_and_the_preview_disturbs_nothing",
            "training/test_networks.py::test_a_base_that_changes_under_a_run_is_noticed_and_nothing_is_saved",
        ),
    ),
    24: (
        "masks at the wrong scale, and a loss that shrinks with them",
        (
            "data/test_masks.py::test_a_mask_is_resized_cut_and_mirrored_with_its_picture",
            "training/test_losses.py::test_a_mask_leaves_out_what_it_hides_and_does_not_shrink_the_loss",
        ),
    ),
    25: ("extra noise in the target or at the wrong strength", ("training/test_objective.py::test_extra_noise_is_seen_and_not_told",)),
    26: (
        "counters, rates or weights that are not what they were after a resume",
        ("training/test_resume.py::test_any_cut_ends_in_the_same_bits", "training/test_optim.py::test_memory_given_back_goes_on_bit_for_bit"),
    ),
    27: (
        "a LoRA rounded away by a base in few bits",
        (
            "training/test_networks.py::test_a_base_in_fewer_bits_is_trained_on_and_resumes_to_the_bit",
            "generation/test_quantised.py::test_a_stack_runs_beside_weights_of_few_bits",
        ),
    ),
    28: (
        "validation that moves the training",
        ("training/test_validation.py::test_validation_changes_no_bit_of_the_training", "training/test_resume.py::test_any_cut_ends_in_the_same_bits"),
    ),
    29: (
        "metadata lost, or a hash from before the last cast",
        (
            "lora/test_formats.py::test_hashes_metadata_and_bytes_are_reproducible",
            "lora/test_formats.py::test_verifying_finds_a_changed_value_a_missing_layer_and_a_wrong_hash",
        ),
    ),
    30: ("numbers written in the language of a desktop", ("no part sets a locale: settings travel as JSON and TOML, and Python's float() ignores LC_NUMERIC",)),
}


def names_in(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("number", TRAPS)
def test_every_trap_has_tests_that_exist(number):
    _, kept_out = TRAPS[number]
    assert kept_out
    for named in (text for text in kept_out if "::" in text):
        file, _, test = named.partition("::")
        assert test in names_in(ROOT / "tests" / file), named


def test_all_thirty_are_in_the_table():
    assert list(TRAPS) == list(range(1, 31))
    assert [number for number, (_, kept_out) in TRAPS.items() if not any("::" in text for text in kept_out)] == [30]


def test_a_missing_test_would_be_noticed():
    assert "test_that_nobody_wrote" not in names_in(Path(__file__))


def test_times_and_sizes_reach_the_denoiser_in_fp32_on_a_base_in_bf16():
    for name in ("demo-sdxl", "demo-flux"):
        base = sources.find(name)
        family = families.get(base.family)
        c = family.load(base, ("denoiser", "text"), torch.bfloat16, torch.device("cpu"))
        seen = {}

        def look(module, args, kwargs, seen=seen):
            given = {f"argument {i}": value for i, value in enumerate(args)} | kwargs | kwargs.get("added_cond_kwargs", {})
            seen.update({key: value for key, value in given.items() if isinstance(value, torch.Tensor)})

        handle = c.denoiser.register_forward_pre_hook(look, with_kwargs=True)
        cond = family.encode_captions(c, ["cat"])
        channels = 16
        family.predict(c, torch.randn(1, channels, 8, 8), torch.tensor([998.7]), cond, torch.tensor([[301.0, 257.0, 3.0, 5.0, 64.0, 64.0]]))
        handle.remove()
        times = seen.get("timestep", seen.get("argument 1"))
        assert times is not None and times.dtype == torch.float32 and times.item() in (pytest.approx(998.7), pytest.approx(0.9987))
        if "time_ids" in seen:
            assert seen["time_ids"].dtype == torch.float32 and seen["time_ids"][0, :2].tolist() == [301.0, 257.0]


def test_the_paths_of_two_encoders_do_not_mix():
    base = sources.find("demo-sdxl")
    c = families.get("sdxl").load(base, ("text",), torch.float32, torch.device("cpu"))
    paths = attach.module_map(c)
    first = {path for path in paths if path.startswith("text_encoder.")}
    second = {path for path in paths if path.startswith("text_encoder_2.")}
    assert first and second and not first & second and first | second == set(paths)
    assert all(paths[path] is c.parts["text_encoder"].get_submodule(path.removeprefix("text_encoder.").removeprefix("text_model.")) for path in first)
