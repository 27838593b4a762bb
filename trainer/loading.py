"""The model and tokenizer that training starts from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accelerate.utils import DistributedType, extract_model_from_parallel
from peft import get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase, Trainer
from trl.trainer.utils import get_peft_config, get_quantization_config

from dataset_builder.errors import InputError
from trainer.base_model import BaseModel
from trainer.config import ContrastiveTrainingArguments, EmbeddingModelConfig
from trainer.eos import ensure_eos


def load_model(base: BaseModel, config: EmbeddingModelConfig, args: ContrastiveTrainingArguments) -> Any:
    """Return the bare model (no head) of a base, with LoRA adapters if these are to be trained.

    Raises:
        InputError: if the model cannot read texts of `max_seq_length`, or the LoRA settings do not fit it.
    """
    quantization = get_quantization_config(config)
    model = AutoModel.from_pretrained(
        base.path,
        revision=base.revision if base.is_hub_id else None,
        dtype=config.dtype,
        attn_implementation=config.attn_implementation,
        quantization_config=quantization,
        **({"device_map": {"": args.device}} if quantization else {}),
    )
    _check_length(model, args.max_seq_length)
    if quantization:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)  # type: ignore[no-untyped-call]
    pooler = getattr(model, "pooler", None)
    if isinstance(pooler, nn.Module):  # BERT's; the EOS embedding does not pass through it
        pooler.requires_grad_(False)
    peft_config: Any = get_peft_config(config)
    if peft_config is None:
        return model
    if isinstance(pooler, nn.Module) and config.lora_target_modules == ["all-linear"]:
        peft_config.exclude_modules = r"pooler\..*"
    peft_config.base_model_name_or_path = base.name if base.is_hub_id else base.path
    try:
        return get_peft_model(model, peft_config)
    except ValueError as error:
        raise InputError(f"The LoRA settings do not fit {base.name}: {' '.join(str(error).split())}") from None


def whole_model(trainer: Trainer, load: Callable[[], Any]) -> Any:
    """Return the trained model, whole; None in all processes but the first.

    Where the weights are sharded (FSDP, ZeRO-3) all processes must call this: the shards are gathered on the first one's CPU
    and put into a model loaded anew, because the sharded one computes only with the others.

    Args:
        trainer: after its training.
        load: returns the model as it was before the training.
    """
    accelerator = trainer.accelerator
    is_sharded = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
    # under mixed precision accelerate leaves its autocast on the forward; the exported model has none
    if not is_sharded:
        whole = extract_model_from_parallel(trainer.model, keep_fp32_wrapper=False)
        return None if trainer.args.process_index else whole
    weights = accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.args.process_index:
        return None
    whole = load()
    whole.load_state_dict(weights)
    return whole


def load_tokenizer(base: BaseModel) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a base model, keeping the EOS contract.

    Raises:
        InputError: if the model comes without a usable tokenizer.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(base.path, revision=base.revision if base.is_hub_id else None)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"The tokenizer of {base.name} cannot be read ({reason}); it needs a tokenizer.json."
        ) from None
    # without its files a tokenizer comes up with a handful of special tokens, to which every word is unknown
    ids = tokenizer("the quick brown fox jumps", add_special_tokens=False)["input_ids"]
    if not ids or set(ids) == {tokenizer.unk_token_id}:
        raise InputError(
            f"The tokenizer of {base.name} knows no word of English; are its files (tokenizer.json) there?"
        )
    return ensure_eos(tokenizer)


def _check_length(model: nn.Module, max_seq_length: int) -> None:
    """Refuse texts longer than a model with learned positions can read."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.endswith(("position_embeddings", "wpe")):
            # XLM-R's positions start behind that of its padding
            longest = module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
            if max_seq_length > longest:
                raise InputError(
                    f"`max_seq_length` is {max_seq_length} but the model reads at most {longest} tokens; give {longest} or "
                    "less."
                )
