"""Record LoRA adapters as PEFT saves them, and the weights that PEFT makes of a tiny model with each of them merged.

`python -m tests.golden.record_lora` writes lora/<case>/ and lora/merged.npz; it needs the extra `golden` and peft.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.checkpoints import build
from tests.lora_models import CASES, MODELS, row_step

FOLDER = Path(__file__).parent / "lora"


def _adapter(model: Path, folder: Path, settings: dict[str, Any]) -> None:
    """Save an adapter with seeded weights; PEFT's own initial weights would merge to nothing."""
    torch.manual_seed(5)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    wrapped = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **settings))
    generator = torch.Generator().manual_seed(17)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                positive = "magnitude" in name or "norm" in name
                parameter.copy_(1 + 0.1 * noise if positive else 0.05 * noise)
    wrapped.save_pretrained(folder, save_embedding_layers=False)  # their size; all-biases has such base_layer entries
    (folder / "README.md").unlink()
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = None  # a temporary folder
    config["target_modules"] = sorted(config["target_modules"])
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def main() -> None:
    merged: dict[str, np.ndarray] = {}
    shutil.rmtree(FOLDER, ignore_errors=True)
    for case, (model_name, settings) in CASES.items():
        with tempfile.TemporaryDirectory() as temporary:
            model = build(model_name, Path(temporary) / "model", MODELS[model_name])
            folder = FOLDER / case
            _adapter(model, folder, dict(settings))
            if case == "bf16":
                halves = {
                    name: tensor.bfloat16() for name, tensor in load_file(folder / "adapter_model.safetensors").items()
                }
                save_file(halves, folder / "adapter_model.safetensors", {"format": "pt"})
            if case == "pickled":
                torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
                (folder / "adapter_model.safetensors").unlink()
            base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
            before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
            after = PeftModel.from_pretrained(base, folder).merge_and_unload().state_dict()
            for name, tensor in after.items():
                if not torch.equal(tensor, before[name]):
                    merged[f"{case}/{name}"] = tensor.numpy()[:: row_step(tensor.shape)]
    np.savez_compressed(FOLDER / "merged.npz", **merged)
    versions = {"peft": peft.__version__, "torch": torch.__version__}
    for path in FOLDER.rglob("*.*"):
        path.chmod(0o644)
    (FOLDER / "recorded_with.json").write_text(json.dumps(versions) + "\n")


if __name__ == "__main__":
    main()
