//! Training: the loop both stages share, and the stages.
