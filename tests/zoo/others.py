"""Models of sound, of molecules and of embeddings: streams without a grid of pixels."""

from __future__ import annotations

from typing import Any

import torch

from tests.zoo.entries import HEAD, HEADED, HEADS, WIDTH, WORDS, Made, entry, noise, rotary

LENGTH = 64
"""Tokens of a sound."""


@entry("ace_step_transformer", "AceStepTransformer1DModel")
def ace_step(cls: Any) -> Made:
    model = cls(
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=1,
        head_dim=HEAD,
        in_channels=12,
        audio_acoustic_hidden_dim=4,
        sliding_window=16,
    )
    return model, {
        "hidden_states": noise(1, 2 * LENGTH, 4),
        "timestep": torch.full((1,), 0.5),
        "timestep_r": torch.full((1,), 0.4),
        "encoder_hidden_states": noise(1, WORDS, WIDTH),
        "context_latents": noise(1, 2 * LENGTH, 8),
    }


@entry("transformer_longcat_audio_dit", "LongCatAudioDiTTransformer")
def longcat_audio(cls: Any) -> Made:
    model = cls(dit_dim=WIDTH, dit_depth=2, dit_heads=HEADS, dit_text_dim=20, latent_dim=8)
    return model, {
        "hidden_states": noise(1, LENGTH, 8),
        "encoder_hidden_states": noise(1, WORDS, 20),
        "encoder_attention_mask": torch.ones(1, WORDS, dtype=torch.bool),
        "timestep": torch.full((1,), 0.5),
        "attention_mask": torch.ones(1, LENGTH, dtype=torch.bool),
        "latent_cond": noise(1, LENGTH, 8),
    }


@entry("transformer_minimax_music3", "MiniMaxMusic3Transformer1DModel")
def minimax_music(cls: Any) -> Made:
    model = cls(
        **HEADED,
        in_channels=8,
        condition_dim=20,
        num_layers=2,
        ff_inner_dim=48,
        rotary_dim=8,
        fourier_embedding_dim=16,
    )
    return model, {
        "hidden_states": noise(1, 8, LENGTH),
        "timestep": torch.full((1,), 0.5),
        "encoder_hidden_states": noise(1, LENGTH, 20),
    }


@entry("minimax_music3_rvq_depth_decoder", "MiniMaxMusic3RVQDepthDecoder")
def minimax_rvq(cls: Any) -> Made:
    model = cls(
        hidden_size=WIDTH,
        num_layers=2,
        num_attention_heads=HEADS,
        intermediate_size=48,
        audio_vocab_size=16,
    )
    return model, {"inputs_embeds": noise(1, 8, WIDTH)}


@entry("stable_audio_transformer", "StableAudioDiTModel")
def stable_audio(cls: Any) -> Made:
    model = cls(
        **HEADED,
        sample_size=LENGTH,
        in_channels=8,
        out_channels=8,
        num_layers=2,
        num_key_value_attention_heads=1,
        cross_attention_dim=HEAD,
        time_proj_dim=16,
        global_states_input_dim=12,
        cross_attention_input_dim=20,
    )
    return model, {
        "hidden_states": noise(2, 8, LENGTH),
        "timestep": torch.full((2,), 0.5),
        "encoder_hidden_states": noise(2, WORDS, 20),
        "global_hidden_states": noise(2, 1, 12),
        "rotary_embedding": rotary(LENGTH + 1, HEAD // 2),
    }


@entry("transformer_stable_audio3", "StableAudio3DiTModel")
def stable_audio3(cls: Any) -> Made:
    model = cls(
        io_channels=8,
        embed_dim=WIDTH,
        depth=2,
        num_heads=HEADS,
        cond_token_dim=20,
        global_cond_dim=12,
        local_add_cond_dim=9,
        timestep_features_dim=16,
        num_memory_tokens=4,
    )
    return model, {
        "hidden_states": noise(1, 8, LENGTH),
        "timestep": torch.full((1,), 0.5),
        "encoder_hidden_states": noise(1, WORDS, 20),
        "global_hidden_states": noise(1, 12),
    }


@entry("t5_film_transformer", "T5FilmDecoder")
def t5_film(cls: Any) -> Made:
    model = cls(
        input_dims=8,
        targets_length=LENGTH,
        d_model=WIDTH,
        num_layers=2,
        num_heads=HEADS,
        d_kv=HEAD,
        d_ff=48,
    )
    return model, {
        "encodings_and_masks": [(noise(1, WORDS, WIDTH), torch.ones(1, WORDS))],
        "decoder_input_tokens": noise(1, LENGTH, 8),
        "decoder_noise_time": torch.full((1,), 0.5),
    }


@entry("prior_transformer", "PriorTransformer")
def prior(cls: Any) -> Made:
    model = cls(**HEADED, num_layers=2, embedding_dim=20, num_embeddings=WORDS)
    return model, {
        "hidden_states": noise(2, 20),
        "timestep": torch.tensor(500.0),
        "proj_embedding": noise(2, 20),
        "encoder_hidden_states": noise(2, WORDS, 20),
        "attention_mask": torch.ones(2, WORDS, dtype=torch.bool),
    }


@entry("transformer_rfd4_proteina", "RFD4ProteinaTransformer")
def proteina(cls: Any) -> Made:
    model = cls(
        nlayers=2,
        token_dim=WIDTH,
        nheads=HEADS,
        dim_cond=16,
        pair_repr_dim=12,
        latent_dim=4,
        token_type_emb_dim=8,
        cath_emb_dim=8,
        t_emb_dim=16,
        seq_sep_dim=8,
        xt_pair_dist_dim=6,
        tri_mult_c=8,
        feats_seq=("xt_bb_ca", "xt_local_latents"),
        feats_cond_seq=("time_emb_bb_ca", "time_emb_local_latents"),
        feats_pair_repr=("xt_bb_ca_pair_dists",),
        feats_pair_cond=("time_emb_bb_ca", "time_emb_local_latents"),
    )
    real = torch.ones(1, LENGTH, dtype=torch.bool)
    return model, {
        "bb_ca": noise(1, LENGTH, 3),
        "local_latents": noise(1, LENGTH, 4),
        "bb_ca_time": torch.full((1,), 0.5),
        "local_latents_time": torch.full((1,), 0.5),
        "padding_mask": real,
        "conditioning": {"is_in_context_conditioning": ~real, "supports_local_latent": real},
    }
