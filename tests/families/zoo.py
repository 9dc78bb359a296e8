"""Models of every family people train, tiny, from configurations, with random weights.

Each entry says how to make one, how to draw a batch, and where it is cut into three stages; the
cuts are where the values that cross are least like a chain of blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.families.own import Lstm, Residuals, UNet, compiled
from tests.models import (
    LENGTH,
    MODELS,
    VOCAB,
    Batch,
    Step,
    _classes,
    _images,
    _pixels,
    _text,
)

Family = tuple[Callable[[], nn.Module], Callable[[int, int], Batch], tuple[str, ...]]

TEXT = {"vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 16}
END = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


def llama(**more: Any) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**TEXT, **HEADS, **more))


def _llama_eager() -> nn.Module:
    return Step(llama(attn_implementation="eager"))


def _qwen2() -> nn.Module:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Step(Qwen2ForCausalLM(Qwen2Config(**TEXT, **HEADS, tie_word_embeddings=True)))


def _qwen3() -> nn.Module:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(**TEXT, **HEADS, head_dim=4, tie_word_embeddings=True)
    return Step(Qwen3ForCausalLM(config))


def _mixture() -> nn.Module:
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    config = Qwen2MoeConfig(
        **TEXT,
        **HEADS,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=8,
        shared_expert_intermediate_size=16,
        output_router_logits=True,  # the auxiliary loss needs every layer's at the end
        router_aux_loss_coef=0.1,
    )
    return Step(Qwen2MoeForCausalLM(config))


def _distilbert() -> nn.Module:
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    config = DistilBertConfig(
        vocab_size=VOCAB,
        max_position_embeddings=16,
        n_layers=4,
        n_heads=2,
        dim=16,
        hidden_dim=32,
        dropout=0.0,
        attention_dropout=0.0,
        seq_classif_dropout=0.0,
        num_labels=3,
    )
    return Step(DistilBertForSequenceClassification(config))


def _swin() -> nn.Module:
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(
        image_size=16,
        patch_size=2,
        embed_dim=8,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=2,
        drop_path_rate=0.0,
        num_labels=3,
    )
    return Step(SwinForImageClassification(config))


def _convnext() -> nn.Module:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(
        image_size=32, patch_size=2, num_stages=2, hidden_sizes=[8, 16], depths=[2, 2], num_labels=3
    )
    return Step(ConvNextForImageClassification(config))


def _resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[2, 2],
        layer_type="basic",
        num_labels=3,
    )
    return Step(ResNetForImageClassification(config))


def _t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=VOCAB,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=3,
        num_heads=2,
        relative_attention_num_buckets=8,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        pad_token_id=0,
    )
    return Step(T5ForConditionalGeneration(config))


def _whisper() -> nn.Module:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=VOCAB,
        num_mel_bins=4,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_source_positions=10,
        max_target_positions=16,
        decoder_start_token_id=1,
        **END,
    )
    return Step(WhisperForConditionalGeneration(config))


def _clip() -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    config = CLIPConfig(
        text_config={
            **tower,
            **END,
            "num_attention_heads": 2,
            "vocab_size": VOCAB,
            "max_position_embeddings": 16,
        },
        vision_config={**tower, "num_attention_heads": 2, "image_size": 16, "patch_size": 4},
        projection_dim=8,
    )
    return _Clip(CLIPModel(config))


class _Clip(Step):
    def training_step(self, batch: Batch) -> Tensor:
        loss: Tensor = self.model(**batch, return_loss=True).loss
        return loss


def _demo() -> nn.Module:
    from lightning.pytorch.demos import Transformer

    class Demo(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = Transformer(
                vocab_size=VOCAB, ninp=16, nhead=2, nhid=16, nlayers=2, dropout=0.0
            )

        def training_step(self, batch: Batch) -> Tensor:
            ids, target = batch["input_ids"], batch["labels"]
            return F.nll_loss(self.model(ids, target), target.view(-1))

    return Demo()


def _lora(classifier: bool, **more: Any) -> nn.Module:
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import BertConfig, BertForSequenceClassification

    if classifier:
        bert = BertConfig(
            **TEXT,
            num_attention_heads=2,
            max_position_embeddings=16,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            num_labels=3,
        )
        model: Any = BertForSequenceClassification(bert)
        task, targets = TaskType.SEQ_CLS, ["query", "value"]
    else:
        model, task, targets = llama(), TaskType.CAUSAL_LM, ["q_proj", "v_proj"]
    config = LoraConfig(task_type=task, r=2, lora_alpha=4, target_modules=targets, **more)
    step = Step(get_peft_model(model, config))
    for name, parameter in step.named_parameters():
        if "lora_B" in name:  # zero by default, and A would have no gradient in the first step
            nn.init.normal_(parameter, std=0.1)
    return step


def _speech(rows: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return {
        "input_features": torch.randn(rows, 4, 20, generator=generator),
        "labels": torch.randint(1, VOCAB, (rows, LENGTH), generator=generator),
    }


def _pairs(rows: int, seed: int) -> Batch:
    batch = _text(rows, seed)
    del batch["labels"]
    batch["input_ids"][:, -1] = 0  # CLIP takes the state of the end-of-text token
    batch["pixel_values"] = torch.randn(
        rows, 3, 16, 16, generator=torch.Generator().manual_seed(seed)
    )
    return batch


FAMILIES: dict[str, Family] = {
    "gpt2": MODELS["gpt2"],
    "llama": MODELS["llama"],
    "llama-eager": (_llama_eager, _text, ("model.model.layers.1", "model.model.layers.3")),
    "qwen2": (_qwen2, _text, ("model.model.layers.1", "model.model.layers.3")),
    "qwen3": (_qwen3, _text, ("model.model.layers.1", "model.model.layers.3")),
    "mixture-of-experts": (_mixture, _text, ("model.model.layers.1", "model.model.layers.3")),
    "bert": MODELS["bert"],
    "distilbert": (
        _distilbert,
        _classes,
        ("model.distilbert.transformer.layer.1", "model.distilbert.transformer.layer.3"),
    ),
    "vit": MODELS["vit"],
    "swin": (
        _swin,
        _pixels,
        ("model.swin.encoder.layers.0.blocks.1", "model.swin.encoder.layers.1"),
    ),
    "convnext": (
        _convnext,
        _pixels,
        ("model.convnext.encoder.stages.0.layers.1", "model.convnext.encoder.stages.1"),
    ),
    "resnet": (
        _resnet,
        _pixels,
        ("model.resnet.encoder.stages.0.layers.1", "model.resnet.encoder.stages.1"),
    ),
    "batchnorm": MODELS["batchnorm"],
    "t5": (_t5, _text, ("model.encoder.block.1", "model.decoder.block.1")),
    "t5-decoder": (_t5, _text, ("model.decoder.block.0", "model.decoder.block.2")),
    "whisper": (
        _whisper,
        _speech,
        ("model.model.encoder.layers.1", "model.model.decoder.layers.1"),
    ),
    "clip": (
        _clip,
        _pairs,
        ("model.vision_model.encoder.layers.1", "model.text_model.encoder.layers.1"),
    ),
    "unet": (UNet, _images, ("down2", "up2")),
    "lstm": (Lstm, _text, ("second", "third")),
    "mlp": MODELS["mlp"],
    "residuals": (Residuals, _text, ("layers.1", "gate")),
    "lightning-demo": (
        _demo,
        _text,
        ("model.transformer.encoder.layers.1", "model.transformer.decoder.layers.1"),
    ),
    "lora-llama": (
        lambda: _lora(False),
        _text,
        ("model.base_model.model.model.layers.1", "model.base_model.model.model.layers.3"),
    ),
    "lora-bert": (
        lambda: _lora(True),
        _classes,
        (
            "model.base_model.model.bert.encoder.layer.1",
            "model.base_model.model.bert.encoder.layer.3",
        ),
    ),
}
MODELS.update(FAMILIES)
MODELS["lora-late"] = (
    lambda: _lora(False, layers_to_transform=[2, 3]),
    *FAMILIES["lora-llama"][1:],
)
MODELS["tiny-compiled"] = (compiled, *MODELS["tiny"][1:])
MODELS["tiny-compiled-in-place"] = (lambda: compiled(in_place=True), *MODELS["tiny"][1:])
