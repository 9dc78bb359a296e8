"""A Hugging Face model from a local directory or from a configuration, with or without LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from lightning_edge.errors import UnsupportedError

__all__: list[str] = []

_INSTALL = 'install it with `pip install "lightning-edge[hf]"`'


def load(
    auto: str,
    path: str | None,
    config: Mapping[str, Any] | None,
    lora: Mapping[str, Any] | None,
    **settings: Any,
) -> nn.Module:
    """Make the model; nothing is fetched from anywhere.

    Args:
        auto: Class in transformers that finds the architecture, such as "AutoModelForCausalLM".
        path: A directory with `config.json` and weights, or a `config.json` alone for new weights.
        config: Instead of a path: `model_type` and other entries of a `config.json`; new weights.
        lora: Settings of `peft.LoraConfig`; all other parameters are frozen then.
        **settings: Changed entries of the configuration.

    Raises:
        UnsupportedError: A package is missing, or the path is not a model.
    """
    try:
        import transformers
    except ImportError:
        raise UnsupportedError(f"this model needs transformers: {_INSTALL}") from None
    if (path is None) == (config is None):
        raise UnsupportedError(
            "a Hugging Face model is made from model.path or from model.config: set one of the two"
        )
    kind = getattr(transformers, auto)
    if config is not None:
        changed = transformers.AutoConfig.for_model(**{**config, **settings})
        model = kind.from_config(changed)
    else:
        assert path is not None
        place = Path(path).expanduser()
        if not place.is_file() and not (place / "config.json").is_file():
            raise UnsupportedError(
                f"model.path={path} is neither a directory with a config.json nor such a file;"
                " models are not downloaded: fetch it before, and give the directory"
            )
        if place.is_file():
            changed = transformers.AutoConfig.from_pretrained(str(place), **settings)
            model = kind.from_config(changed)
        else:
            model = kind.from_pretrained(str(place), local_files_only=True, **settings)
    model.train()  # from_pretrained leaves it in evaluation mode, in which Lightning would train
    return model if lora is None else _with_lora(model, lora, auto)


def _with_lora(model: nn.Module, lora: Mapping[str, Any], auto: str) -> nn.Module:
    try:
        import peft
    except ImportError:
        raise UnsupportedError(f"model.lora needs peft: {_INSTALL}") from None
    task = {"AutoModelForCausalLM": "CAUSAL_LM"}.get(auto, "SEQ_CLS")
    try:
        wrapped: nn.Module = peft.get_peft_model(
            model, peft.LoraConfig(**{"task_type": task, **lora})
        )
    except (TypeError, ValueError) as error:
        raise UnsupportedError(
            f"model.lora={dict(lora)} does not suit this model: {error}"
        ) from None
    return wrapped
