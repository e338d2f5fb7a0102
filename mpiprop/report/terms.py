"""The numbers that a run logs, in plain words: a title and a sentence for each."""

PARTS = {
    "evaluate_s": "Gradients (rendering and the prior)",
    "rollout_s": "Optimiser steps",
    "transport_s": "Communication and waiting",
    "checkpoint_s": "Saving checkpoints",
}
DISTILLATIONS = {"sds": "SDS", "sjc": "SJC", "vsd": "VSD", "csd": "CSD", "asd": "ASD", "nfsd": "NFSD", "ism": "ISM",
                 "sdi": "SDI", "cds": "CDS", "bridge": "SDS-Bridge"}
VARIANCE = ("Over about the last 100 steps, summed over all numbers: of the gradient of a step (theta), or of one view in "
            "the prior's space (a term), by noise level. It counts noise, views and noise levels, and a little of the "
            "motion. Small is good.")
TERMS = {
    **{name: (f"Guidance ({title})", f"Half the squared size of the gradient of {title}. It is no distance to a goal: "
              "it need not fall.") for name, title in DISTILLATIONS.items()},
    "lora": ("LoRA loss", "Error of the noise that the LoRA predicts in renders; it should fall early and then stay."),
    "refine": ("Refinement loss", "Mean squared distance of the renders to what the prior makes of them; it should fall."),
    "grad_norm": ("Size of the gradient", "Norm of the guidance's gradient in the rendered images. Steady is good; bursts mean "
                  "that the learning rate or the guidance scale is too high."),
    "t": ("Noise level t", "Mean timestep of the prior, from 0 (no noise) to its last (all noise). Large ones form the shape, "
          "small ones the details."),
    "points": ("Gaussians", "How many there are; they are cloned, split and removed on the way."),
    "psnr": ("PSNR against the input image", "In dB, from the image's own camera. The higher, the more alike; 30 is close."),
    "rgb": ("Colour loss", "Mean squared difference of the render to the input image."),
    "mask": ("Outline loss", "Mean squared difference of the object's outline to that of the input image."),
    "depth": ("Depth loss", "Difference of depths to those of the input image, scale left free."),
    "depth_rel": ("Relative depth loss", "One minus the correlation of depths with those of the input image."),
    "normal": ("Normal loss", "Difference of the surface's directions to those of the input image."),
    "orient": ("Normals that face away", "Share of visible surface whose normals point away from the camera; fog has many."),
    "sparsity": ("Sparsity", "Mean opacity of the pixels: how much of the image the object covers."),
    "opaque": ("Half-transparent pixels", "Mean entropy of the opacity: 0 where every pixel is either covered or empty."),
    "z_variance": ("Thickness of the surface", "Variance of depth within a pixel; small where surfaces are thin."),
    "eikonal": ("Distance error", "How far the signed distance field is from growing by one for each unit of length."),
    "normal_consistency": ("Roughness of the mesh", "Mean difference between normals at both ends of an edge."),
    "laplacian": ("Unevenness of the mesh", "Mean distance of vertices from the middle of their neighbours."),
    "normal_smooth": ("Roughness in the image", "Squared difference of normals between neighbouring pixels."),
    "3d_normal_smooth": ("Roughness in space", "Difference of normals between points close to each other."),
    "mu_0": ("Weight of the noise", "How much of the evaluation's noise is subtracted as a control variate; 1 in plain SDS."),
    "mu_1": ("Weight of the depth variate", "How much of the control variate made of the depth estimator is subtracted."),
    "phi": ("Disagreement of depths", "One minus the correlation of the depth of the render and of that seen in the noisy "
            "render."),
}
