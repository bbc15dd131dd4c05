"""Models of pictures whose grid shows in the graph: they take latents `[B, C, H, W]`."""

from __future__ import annotations

from typing import Any

import torch

from tests.zoo.entries import (
    COLUMNS,
    HEAD,
    HEADED,
    HEADS,
    ROWS,
    TOKENS,
    WIDTH,
    WORDS,
    Made,
    entry,
    noise,
    rotary,
)


def latents(channels: int = 4, patch: int = 2, batch: int = 2) -> torch.Tensor:
    return noise(batch, channels, ROWS * patch, COLUMNS * patch)


def steps(batch: int = 2) -> torch.Tensor:
    return torch.full((batch,), 500.0)


@entry("auraflow_transformer_2d", "AuraFlowTransformer2DModel")
def auraflow(cls: Any) -> Made:
    model = cls(
        **HEADED,
        sample_size=24,
        num_mmdit_layers=2,
        num_single_dit_layers=2,
        joint_attention_dim=20,
        caption_projection_dim=WIDTH,
        pos_embed_max_size=256,
    )
    return model, {
        "hidden_states": latents(),
        "encoder_hidden_states": noise(2, WORDS, 20),
        "timestep": steps() / 1000,
    }


@entry("dit_transformer_2d", "DiTTransformer2DModel")
def dit(cls: Any) -> Made:
    model = cls(**HEADED, num_layers=2, sample_size=24, num_embeds_ada_norm=8)
    return model, {
        "hidden_states": noise(2, 4, 24, 24),
        "timestep": steps().long(),
        "class_labels": torch.tensor([3, 5]),
    }


@entry("hunyuan_transformer_2d", "HunyuanDiT2DModel")
def hunyuan_dit(cls: Any) -> Made:
    model = cls(
        **HEADED,
        in_channels=4,
        patch_size=2,
        sample_size=24,
        hidden_size=WIDTH,
        num_layers=4,
        cross_attention_dim=20,
        cross_attention_dim_t5=24,
        pooled_projection_dim=12,
        text_len=WORDS,
        text_len_t5=6,
        use_style_cond_and_image_meta_size=False,
    )
    return model, {
        "hidden_states": latents(),
        "timestep": steps(),
        "encoder_hidden_states": noise(2, WORDS, 20),
        "text_embedding_mask": torch.ones(2, WORDS, dtype=torch.bool),
        "encoder_hidden_states_t5": noise(2, 6, 24),
        "text_embedding_mask_t5": torch.ones(2, 6, dtype=torch.bool),
        "image_meta_size": None,
        "style": None,
        "image_rotary_emb": rotary(TOKENS),
    }


@entry("lumina_nextdit2d", "LuminaNextDiT2DModel")
def lumina_next(cls: Any) -> Made:
    model = cls(
        sample_size=24,
        hidden_size=WIDTH,
        num_layers=2,
        num_attention_heads=HEADS,
        num_kv_heads=1,
        multiple_of=16,
        cross_attention_dim=20,
    )
    angles = torch.rand(ROWS, COLUMNS, HEAD // 2) * 6
    return model, {
        "hidden_states": latents(),
        "timestep": steps() / 1000,
        "encoder_hidden_states": noise(2, WORDS, 20),
        "encoder_mask": torch.ones(2, WORDS),
        "image_rotary_emb": torch.polar(torch.ones_like(angles), angles),
        "cross_attention_kwargs": {},
    }


@entry("pixart_transformer_2d", "PixArtTransformer2DModel")
def pixart(cls: Any) -> Made:
    model = cls(
        **HEADED, num_layers=2, cross_attention_dim=WIDTH, sample_size=24, caption_channels=20
    )
    return model, {
        "hidden_states": latents(),
        "encoder_hidden_states": noise(2, WORDS, 20),
        "timestep": steps(),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        "encoder_attention_mask": torch.ones(2, WORDS),
    }


@entry("sana_transformer", "SanaTransformer2DModel")
def sana(cls: Any) -> Made:
    model = cls(
        **HEADED,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=HEAD,
        cross_attention_dim=WIDTH,
        caption_channels=20,
        sample_size=24,
    )
    return model, {
        "hidden_states": latents(patch=1),
        "encoder_hidden_states": noise(2, WORDS, 20),
        "timestep": steps(),
        "encoder_attention_mask": torch.ones(2, WORDS),
    }


@entry("transformer_2d", "Transformer2DModel")
def transformer_2d(cls: Any) -> Made:
    model = cls(
        **HEADED, in_channels=WIDTH, num_layers=2, norm_num_groups=8, cross_attention_dim=20
    )
    return model, {
        "hidden_states": latents(WIDTH, patch=1),
        "encoder_hidden_states": noise(2, WORDS, 20),
    }


@entry("transformer_2d_dreamlite", "DreamLiteTransformer2DModel")
def dreamlite(cls: Any) -> Made:
    model = cls(
        **HEADED,
        in_channels=WIDTH,
        num_layers=2,
        norm_num_groups=8,
        cross_attention_dim=20,
        use_linear_projection=True,
        qk_norm="rms_norm",
    )
    return model, {
        "hidden_states": latents(WIDTH, patch=1),
        "encoder_hidden_states": noise(2, WORDS, 20),
    }


@entry("transformer_bria_fibo2", "BriaFibo2Transformer2DModel")
def bria_fibo2(cls: Any) -> Made:
    model = cls(
        in_channels=4,
        dim=WIDTH,
        n_layers=3,
        n_refiner_layers=1,
        n_heads=HEADS,
        cap_feat_dim=20,
        injection_layer_ids=(1,),
        perceiver_num_layers=1,
        min_num_gist_tokens=8,
        max_num_gist_tokens=16,
        gist_step=8,
        gist_min_text_len=4,
        gist_max_text_len=32,
        axes_dims=(4, 6, 6),
        axes_lens=(64, 32, 32),
    )
    return model, {
        "hidden_states": latents(),
        "timestep": steps() / 1000,
        "encoder_hidden_states": noise(2, 2, WORDS, 20),
    }


@entry("transformer_cogview3plus", "CogView3PlusTransformer2DModel")
def cogview3(cls: Any) -> Made:
    model = cls(
        **HEADED,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        text_embed_dim=20,
        time_embed_dim=16,
        condition_dim=8,
        pos_embed_max_size=24,
        sample_size=24,
    )
    return model, {
        "hidden_states": latents(),
        "encoder_hidden_states": noise(2, WORDS, 20),
        "timestep": steps(),
        **sizes(),
    }


def sizes() -> dict[str, torch.Tensor]:
    size = torch.tensor([[16.0 * ROWS, 16.0 * COLUMNS]] * 2)
    return {"original_size": size, "target_size": size, "crop_coords": torch.zeros(2, 2)}


@entry("transformer_cogview4", "CogView4Transformer2DModel")
def cogview4(cls: Any) -> Made:
    model = cls(
        **HEADED,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        text_embed_dim=20,
        time_embed_dim=16,
        condition_dim=8,
        sample_size=24,
        rope_axes_dim=(24, 24),
    )
    return model, {
        "hidden_states": latents(),
        "encoder_hidden_states": noise(2, WORDS, 20),
        "timestep": steps(),
        **sizes(),
    }


@entry("transformer_ernie_image", "ErnieImageTransformer2DModel")
def ernie(cls: Any) -> Made:
    model = cls(
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        num_layers=2,
        ffn_hidden_size=48,
        in_channels=4,
        out_channels=4,
        text_in_dim=20,
        rope_axes_dim=(4, 6, 6),
    )
    return model, {
        "hidden_states": latents(patch=1),
        "timestep": steps(),
        "text_bth": noise(2, WORDS, 20),
        "text_lens": torch.tensor([WORDS, WORDS]),
    }


@entry("transformer_glm_image", "GlmImageTransformer2DModel")
def glm_image(cls: Any) -> Made:
    model = cls(
        **HEADED,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        text_embed_dim=20,
        time_embed_dim=16,
        condition_dim=8,
        prior_vq_quantizer_codebook_size=32,
    )
    size = sizes()
    return model, {
        "hidden_states": latents(),
        "encoder_hidden_states": noise(2, WORDS, 20),
        "prior_token_id": torch.randint(0, 32, (2, TOKENS)),
        "prior_token_drop": torch.zeros(2, TOKENS, dtype=torch.bool),
        "timestep": steps(),
        "target_size": size["target_size"],
        "crop_coords": size["crop_coords"],
    }


@entry("transformer_hidream_image", "HiDreamImageTransformer2DModel", grid=(16, 16))
def hidream(cls: Any) -> Made:
    model = cls(
        **HEADED,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        caption_channels=[20, 24],
        text_emb_dim=12,
        axes_dims_rope=(8, 4, 4),
        max_resolution=(32, 32),
        llama_layers=[0, 1, 0, 1],
        force_inference_output=True,
    )
    return model, {
        "hidden_states": latents(),
        "timesteps": steps(),
        "encoder_hidden_states_t5": noise(2, WORDS, 20),
        "encoder_hidden_states_llama3": noise(2, 2, WORDS, 24),
        "pooled_embeds": noise(2, 12),
    }


@entry("transformer_hunyuanimage", "HunyuanImageTransformer2DModel")
def hunyuan_image(cls: Any) -> Made:
    model = cls(
        **HEADED,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        patch_size=(2, 2),
        text_embed_dim=20,
        rope_axes_dim=(8, 8),
    )
    return model, {
        "hidden_states": latents(),
        "timestep": steps(),
        "encoder_hidden_states": noise(2, WORDS, 20),
        "encoder_attention_mask": torch.ones(2, WORDS),
    }


@entry("transformer_lumina2", "Lumina2Transformer2DModel")
def lumina2(cls: Any) -> Made:
    model = cls(
        sample_size=24,
        in_channels=4,
        hidden_size=WIDTH,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=HEADS,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 6, 6),
        axes_lens=(64, 32, 32),
        cap_feat_dim=20,
    )
    return model, {
        "hidden_states": latents(),
        "timestep": steps() / 1000,
        "encoder_hidden_states": noise(2, WORDS, 20),
        "encoder_attention_mask": torch.ones(2, WORDS, dtype=torch.bool),
    }


@entry("transformer_prx", "PRXTransformer2DModel")
def prx(cls: Any) -> Made:
    model = cls(
        in_channels=4,
        context_in_dim=20,
        hidden_size=WIDTH,
        num_heads=HEADS,
        depth=2,
        axes_dim=[8, 8],
    )
    return model, {
        "hidden_states": latents(),
        "timestep": steps() / 1000,
        "encoder_hidden_states": noise(2, WORDS, 20),
        "attention_mask": torch.ones(2, WORDS, dtype=torch.bool),
    }


@entry("transformer_sd3", "SD3Transformer2DModel")
def sd3(cls: Any) -> Made:
    model = cls(
        **HEADED,
        sample_size=24,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        joint_attention_dim=20,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=12,
        pos_embed_max_size=24,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    return model, {
        "hidden_states": latents(),
        "encoder_hidden_states": noise(2, WORDS, 20),
        "pooled_projections": noise(2, 12),
        "timestep": steps(),
    }


@entry("transformer_z_image", "ZImageTransformer2DModel")
def z_image(cls: Any) -> Made:
    model = cls(
        in_channels=4,
        dim=WIDTH,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=HEADS,
        n_kv_heads=HEADS,
        cap_feat_dim=20,
        axes_dims=[4, 6, 6],
        axes_lens=[256, 32, 32],
    )
    model.rope_embedder(torch.zeros(1, 3, dtype=torch.int))  # made at the first call, then kept
    return model, {
        "x": [noise(4, 1, ROWS * 2, COLUMNS * 2) for _ in range(2)],
        "t": steps() / 1000,
        "cap_feats": [noise(WORDS, 20) for _ in range(2)],
    }


@entry("transformer_omnigen", "OmniGenTransformer2DModel")
def omnigen(cls: Any) -> Made:
    model = cls(
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        intermediate_size=48,
        num_layers=2,
        pad_token_id=0,
        vocab_size=64,
        max_position_embeddings=256,
        original_max_position_embeddings=256,
        rope_scaling={"short_factor": [1.0] * 8, "long_factor": [1.0] * 8, "type": "su"},
        pos_embed_max_size=24,
        time_step_dim=16,
    )
    length = WORDS + 1 + TOKENS
    mask = torch.ones(2, length, length)
    mask[:, : WORDS + 1] = torch.ones(length, length).tril()[: WORDS + 1]
    return model, {
        "hidden_states": latents(),
        "timestep": steps() / 1000,
        "input_ids": torch.randint(1, 60, (2, WORDS)),
        "input_img_latents": [],
        "input_image_sizes": {},
        "attention_mask": mask,
        "position_ids": torch.arange(length).expand(2, -1),
    }
