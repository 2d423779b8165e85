//! Training runs of the binary: what must hold whatever happens to the process.

mod fixture;
mod launch;
mod results;
mod resume;
mod seen;
mod stops;
mod world;
