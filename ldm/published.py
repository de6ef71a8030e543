"""Names in published configurations: the classes that are implemented here, and the parts that are not."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class OtherParameters:
    """Parameters of a published class that the class here lacks, or takes with some values only.

    Attributes:
        ignored: parameters that affect only training, or nothing; any value is accepted.
        only: parameters that are accepted with these values only.
    """

    ignored: Collection[str] = ()
    only: Mapping[str, Collection[object]] = field(default_factory=dict)


FIRST_STAGE = OtherParameters(
    ignored={
        "batch_resize_range",
        "ckpt_path",
        "colorize_nlabels",
        "ema_decay",
        "ignore_keys",
        "image_key",
        "learn_logvar",
        "lossconfig",
        "lr_g_factor",
        "monitor",
        "remap",
        "sane_index_shape",
        "scheduler_config",
        "use_ema",
    }
)
# The section `ddconfig` of a first stage
ENCODER_AND_DECODER = OtherParameters(
    only={
        "attn_type": {"vanilla", "vanilla-xformers"},  # the same products
        "give_pre_end": {False},
        "tanh_out": {False},
        "use_linear_attn": {False},
    }
)
# Every class that a configuration may name, by its published path
TARGETS: dict[str, OtherParameters] = {
    "ldm.models.diffusion.ddpm.LatentDiffusion": OtherParameters(
        ignored={
            "ckpt_path",
            "clip_denoised",  # latents are never clipped
            "cond_stage_trainable",
            "first_stage_key",
            "ignore_keys",
            "l_simple_weight",
            "learn_logvar",
            "load_only_unet",
            "log_every_t",
            "logvar_init",
            "loss_type",
            "make_it_fit",
            "monitor",
            "num_timesteps_cond",
            "original_elbo_weight",
            "reset_ema",
            "reset_num_ema_updates",
            "scheduler_config",
            "ucg_training",
            "use_positional_encodings",
        },
        only={
            "cond_stage_forward": {None},
            "force_null_conditioning": {False},
            "given_betas": {None},
            "parameterization": {"eps"},
        },
    ),
    "ldm.models.autoencoder.AutoencoderKL": FIRST_STAGE,
    "ldm.models.autoencoder.VQModelInterface": FIRST_STAGE,
    "ldm.models.autoencoder.IdentityFirstStage": OtherParameters(ignored={"vq_interface"}),
    "ldm.modules.diffusionmodules.openaimodel.UNetModel": OtherParameters(
        ignored={
            "image_size",
            "legacy",
            "offload_to_cpu",
            "use_bf16",  # the precision is chosen when a model is sampled
            "use_checkpoint",
            "use_fairscale_checkpoint",
            "use_fp16",
        },
        only={
            "adm_in_channels": {None},
            "dims": {2},
            "disable_middle_self_attn": {False},
            "disable_middle_transformer": {False},
            "disable_self_attentions": {None},
            "n_embed": {None},
            "num_attention_blocks": {None},
            "num_heads_upsample": {-1},
            "spatial_transformer_attn_type": {"softmax", "softmax-xformers"},  # the same products
            "transformer_depth_middle": {None},
            "use_linear_in_transformer": {False},
            "use_new_attention_order": {False},
        },
    ),
    "ldm.modules.encoders.modules.ClassEmbedder": OtherParameters(ignored={"ucg_rate"}),
    "ldm.modules.encoders.modules.FrozenCLIPEmbedder": OtherParameters(
        ignored={"device", "freeze"}, only={"layer": {"last"}, "layer_idx": {None}}
    ),
}
# Classes that published configurations name for training; they are accepted and never built
TRAINING_TARGETS = {
    "ldm.lr_scheduler.LambdaLinearScheduler",
    "ldm.lr_scheduler.LambdaWarmUpCosineScheduler",
    "ldm.lr_scheduler.LambdaWarmUpCosineScheduler2",
    "ldm.modules.losses.LPIPSWithDiscriminator",
    "ldm.modules.losses.contperceptual.DummyLoss",
    "ldm.modules.losses.contperceptual.LPIPSWithDiscriminator",
    "ldm.modules.losses.vqperceptual.DummyLoss",
    "ldm.modules.losses.vqperceptual.VQLPIPSWithDiscriminator",
    "torch.nn.Identity",
}
# Published classes that are not implemented here, from any module -> what they are for
UNAVAILABLE = {
    "AutoencodingEngine": "a first stage of Stable Diffusion XL's code",
    "BERTEmbedder": "conditioning by a BERT encoder, as in text2img-1p4B",
    "BertSeriesModelWithTransformation": "AltDiffusion",
    "CLIPEmbeddingNoiseAugmentation": "unCLIP",
    "ClipImageEmbedder": "conditioning on images",
    "DDPM": "diffusion of pixels by a UNetModel",
    "DiffusionEngine": "Stable Diffusion XL",
    "EncoderUNetModel": "a classifier of noisy latents",
    "FrozenCLIPT5Encoder": "text encoding by T5",
    "FrozenCLIPTextEmbedder": "text encoding by the CLIP package",
    "FrozenClipImageEmbedder": "conditioning on images",
    "FrozenOpenCLIPEmbedder": "Stable Diffusion 2",
    "FrozenOpenCLIPImageEmbedder": "unCLIP",
    "FrozenT5Embedder": "text encoding by T5",
    "GeneralConditioner": "Stable Diffusion XL",
    "Identity": "conditioning on images",
    "IdentityEncoder": "conditioning on unprocessed inputs",
    "ImageConcatWithNoiseAugmentation": "upscaling",
    "ImageEmbeddingConditionedLatentDiffusion": "unCLIP",
    "LatentDepth2ImageDiffusion": "conditioning on depth",
    "LatentFinetuneDiffusion": "conditioning on images",
    "LatentInpaintDiffusion": "inpainting",
    "LatentUpscaleDiffusion": "upscaling",
    "LatentUpscaleFinetuneDiffusion": "upscaling",
    "Layout2ImgDiffusion": "conditioning on layouts",
    "NoisyLatentImageClassifier": "a classifier of noisy latents",
    "SpatialRescaler": "conditioning on semantic maps",
    "SuperResModel": "upscaling",
    "TransformerEmbedder": "conditioning on tokens",
    "VQModel": "a first stage that quantizes as it encodes",
}
# Values of parameters that are not implemented here -> what they mean
MEANINGS = {"parameterization: v": "v-prediction", "parameterization: x0": "prediction of x0"}
