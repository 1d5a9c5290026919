"""Metrics and a summary as a run reports them."""

from trainer.output.end_table import PHASES

TRAIN = {
    "iteration": 4, "epoch": 0.5, "eta": 0.05, "loss": 1.25, "train_error": 0.5,
    "skipped": 0, "images_per_second": 250.0, "step_p50_seconds": 0.1, "step_p90_seconds": 0.2,
    **{f"{phase}_seconds": 0.5 for phase in PHASES},
}  # fmt: skip
TEST = {"iteration": 8, "epoch": 1.0, "test_error": 0.25, "test_loss": 0.75, "test_images": 8}
SUMMARY = {
    **TEST,
    "iterations": 8,
    "minibatch": 32,
    "traffic_images": 8 * 32,
    "images_per_second": 1234.5,
    "training_seconds": 20.0,
    "elapsed_seconds": 21.0,
    "phase_seconds": dict(zip(PHASES, (1.0, 5.0, 10.0, 2.0, 1.5, 0.5), strict=True)),
    "node_sizes": [2, 2],
    "sent_bytes": {"network_bytes": [8e6] * 4, "shared_memory_bytes": [16e6, 8e6, 8e6, 8e6]},
    "algo": "ring",
    "buckets": 24,
    "bucket_bytes": 4194304,
    "gradient_bytes": 94_114_088,
    "plan": "",
}
