//! Training runs of the binary: what must hold whatever happens to the process.

#[cfg(target_os = "linux")]
mod faults;
mod fixture;
mod launch;
mod mpi;
#[path = "../ranks/mod.rs"]
mod processes;
mod results;
mod resume;
mod seen;
#[cfg(target_os = "linux")]
mod soak;
mod stops;
mod world;
