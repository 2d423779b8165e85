//! The machine: differentiable operations, one folder each, on maps in [B,H,W,C].
