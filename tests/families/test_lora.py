"""LoRA by peft: only adapters are reduced, and stages without any send nothing back."""

from __future__ import annotations

import pytest

from tests.families.run import train_lora
from tests.pool import Pool
from tests.train.test_transparency import LAYOUTS, plan_of

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
LAYER = "model.base_model.model.model.layers"


def test_only_adapters_are_reduced_between_replicas(pool: Pool) -> None:
    plan = plan_of(*LAYOUTS["2-1"], cuts=(f"{LAYER}.3",), micro_batches=2)
    results = pool.run(train_lora, 3, plan, "lora-llama", (8,))
    for result in results[:2]:
        adapters = result["trained"]
        assert 0 < adapters < 0.2 * result["held"]
        # one number per parameter counts who used it
        assert 4 * adapters <= result["reduced_bytes"] <= 4 * 1.2 * adapters
    assert results[2]["reduced_bytes"] == 0


def test_a_stage_in_front_of_all_adapters_gets_no_gradients(pool: Pool) -> None:
    plan = plan_of(*LAYOUTS["1-1"], cuts=(f"{LAYER}.2",), micro_batches=2)
    first, second = pool.run(train_lora, 2, plan, "lora-late", (8,))
    assert first["trained"] == 0
    assert first["sent"][1] == 2  # an activation for each micro-batch
    assert second["sent"].get(0, 0) == 0
