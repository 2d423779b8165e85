//! Algorithm 2 and what its images are written to.
