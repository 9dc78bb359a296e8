"""Hydra configs, installed as ``lightning_edge.conf`` (reached by ``pkg://lightning_edge.conf``)."""
