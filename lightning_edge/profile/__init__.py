"""Phase 1: what there is. Devices, the model block by block, links; measured, cached, merged."""
