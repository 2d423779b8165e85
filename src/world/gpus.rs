//! The GPUs of a world: what a step adds up on them goes from GPU to GPU by NCCL, in the order of
//! each one's stream, and never over the host.
//!
//! A thread looks for errors between the GPUs, which no waiting kernel would say. A rank that fails
//! ends what its own GPU still waits for.

use std::sync::{Arc, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::World;
use super::star::Link;
use crate::error::{Context, Result, hinted, usage};
use crate::ops::cuda::nccl::{self, Communicator, Id};
use crate::ops::cuda::{Buffer, Gpu};

/// Lets NCCL 2.30 and later take one GPU for several processes.
const SHARED: &str = "NCCL_MULTI_RANK_GPU_ENABLE";

/// Between two looks for an error.
const LOOK: Duration = Duration::from_secs(1);

/// What a rank computes on.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    /// Of a GPU.
    uuid: Option<String>,
    /// NCCL's.
    version: Option<i32>,
}

impl World {
    /// Connects the ranks' GPUs, if `device` is one.
    ///
    /// Errors: some ranks compute on CPUs and some on GPUs; two on the same GPU; NCCL is missing or
    /// fails.
    pub fn connect(&self, device: &Device) -> Result<()> {
        let Some(link) = &self.0 else {
            return Ok(());
        };
        let mut own = Place {
            uuid: None,
            version: None,
        };
        if let Device::Cuda(cuda) = device {
            let uuid = cuda.cuda_stream().context().uuid()?;
            own = Place {
                uuid: Some(
                    uuid.bytes
                        .iter()
                        .map(|b| format!("{:02x}", *b as u8))
                        .collect(),
                ),
                version: Some(nccl::library()?.version.0),
            };
        }
        let all = self.gather(&serde_json::to_vec(&own)?)?;
        let all: Vec<Place> = all
            .iter()
            .map(|bytes| serde_json::from_slice(bytes))
            .collect::<std::result::Result<_, _>>()?;
        check(&all, &|rank| link.watch.name(rank))?;
        let Device::Cuda(cuda) = device else {
            return Ok(());
        };
        let id = match self.is_first() {
            true => nccl::library()?.unique_id()?.0.to_vec(),
            false => Vec::new(),
        };
        let id = self.broadcast(id)?.try_into().ok();
        let id = Id(id.context("NCCL's meeting point is not whole")?);
        let gpu = Gpu::of(cuda)?;
        let made = Communicator::new(gpu.stream(), id, self.rank(), self.size())?;
        try_it(&made, &gpu, self.rank(), self.size())?;
        let made = Arc::new(made);
        self.look_for_errors(Arc::downgrade(&made))?;
        *link.gpus.lock().unwrap_or_else(PoisonError::into_inner) = Some(made);
        Ok(())
    }

    /// Whether tensors are summed from GPU to GPU.
    pub fn has_gpus(&self) -> bool {
        self.communicator().is_some()
    }

    fn communicator(&self) -> Option<Arc<Communicator>> {
        self.0.as_ref()?.communicator()
    }

    fn gpus(&self) -> Result<Arc<Communicator>> {
        self.communicator()
            .context("the ranks' GPUs are not connected")
    }

    /// Sets each of `floats` and `counts` to its sum over all ranks, on the GPUs; nothing waits.
    pub fn sum_buffers(&self, floats: &[&Buffer<f32>], counts: &[&Buffer<u32>]) -> Result<()> {
        match self.size() {
            1 => Ok(()),
            _ => self.gpus()?.sum(floats, counts),
        }
    }

    /// The sums of f32 `tensors` over all ranks, on the GPUs; nothing waits.
    pub fn sum_tensors(&self, tensors: &[&Tensor]) -> Result<Vec<Tensor>> {
        self.gpus()?.sums(tensors)
    }

    /// The n values f32 of every rank's tensor, by rank: [W,n]; nothing waits.
    pub fn gather_tensor(&self, own: &Tensor) -> Result<Tensor> {
        self.gpus()?.gather(own)
    }

    /// Waits until what the ranks last summed on GPUs is there: first for this rank's own work,
    /// then for the others, which a watchdog does not hold against this one.
    pub fn settle(&self) -> Result<()> {
        let (Some(link), Some(gpus)) = (&self.0, self.communicator()) else {
            return Ok(());
        };
        gpus.wait_own()?;
        let _waiting = link.wait();
        gpus.wait()
    }

    /// Ends the process once there is an error between the GPUs.
    fn look_for_errors(&self, gpus: Weak<Communicator>) -> Result<()> {
        let world = self.clone();
        let look = move || {
            loop {
                thread::sleep(LOOK);
                let Some(gpus) = gpus.upgrade() else {
                    return;
                };
                if let Err(error) = gpus.check() {
                    world.end_process(error);
                }
            }
        };
        thread::Builder::new()
            .name("rdpm-nccl".to_string())
            .spawn(look)
            .context("could not start a thread that watches the GPUs")?;
        Ok(())
    }
}

impl Link {
    fn communicator(&self) -> Option<Arc<Communicator>> {
        self.gpus
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// All ranks have done their work.
    pub fn finish_gpus(&self) -> Result<()> {
        self.take().map_or(Ok(()), |gpus| gpus.finish())
    }

    /// This rank fails: what waits for others on its GPU ends.
    pub fn abort_gpus(&self) {
        if let Some(gpus) = self.take() {
            gpus.abort();
        }
    }

    fn take(&self) -> Option<Arc<Communicator>> {
        self.gpus
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

/// Errors: ranks that cannot sum on GPUs together.
fn check(all: &[Place], name: &dyn Fn(usize) -> String) -> Result<()> {
    let first = &all[0];
    let on = |place: &Place| match place.uuid {
        Some(_) => "on a GPU",
        None => "on the CPU",
    };
    for (rank, its) in all.iter().enumerate() {
        if its.uuid.is_some() != first.uuid.is_some() {
            return Err(usage(
                format!(
                    "{} computes {}, but {} {}",
                    name(rank),
                    on(its),
                    name(0),
                    on(first)
                ),
                "--device cuda or --device cpu for all of them; `rdpm doctor` says what each machine has",
            ));
        }
        if its.version != first.version {
            let version = |place: &Place| nccl::Version(place.version.unwrap_or_default());
            return Err(usage(
                format!(
                    "{} has NCCL {}, but {} has {}",
                    name(rank),
                    version(its),
                    name(0),
                    version(first)
                ),
                nccl::install(),
            ));
        }
        let same = all[..rank].iter().position(|other| other.uuid == its.uuid);
        let allowed = std::env::var(SHARED).is_ok_and(|value| value == "1");
        if let (Some(other), Some(uuid), false) = (same, &its.uuid, allowed) {
            return Err(usage(
                format!(
                    "{} and {} have the same GPU ({uuid})",
                    name(other),
                    name(rank)
                ),
                format!(
                    "start one process for each GPU; more images at a time serve one GPU better ({SHARED}=1 allows \
                     it for tests, with NCCL 2.30 or later)"
                ),
            ));
        }
    }
    Ok(())
}

/// Sums rank + 1 of all ranks, so that GPUs that do not reach each other fail here.
fn try_it(gpus: &Communicator, gpu: &Gpu, rank: usize, size: usize) -> Result<()> {
    let mut buffer = Buffer::<f32>::zeros(gpu, 1)?;
    buffer.write(&[rank as f32 + 1.0])?;
    gpus.sum(&[&buffer], &[])?;
    gpus.wait()?;
    let (found, expected) = (buffer.read()?[0], (size * (size + 1) / 2) as f32);
    match found == expected {
        true => Ok(()),
        false => Err(hinted(
            format!("the GPUs of {size} processes add up {found}, expected {expected}"),
            "NCCL_P2P_DISABLE=1 has NCCL take another way between them, and NCCL_DEBUG=INFO has it say which",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::report;

    fn on_gpu(uuid: &str, version: i32) -> Place {
        Place {
            uuid: Some(uuid.into()),
            version: Some(version),
        }
    }

    fn refused(all: &[Place]) -> String {
        report(&check(all, &|rank| format!("rank {rank} (host)")).unwrap_err()).0
    }

    #[test]
    fn ranks_that_cannot_sum_on_gpus_are_named() -> Result<()> {
        let cpu = || Place {
            uuid: None,
            version: None,
        };
        let name = |rank: usize| rank.to_string();
        check(&[on_gpu("a", 22809), on_gpu("b", 22809)], &name)?;
        check(&[cpu(), cpu()], &name)?;
        let text = refused(&[on_gpu("a", 22809), on_gpu("b", 22809), on_gpu("b", 22809)]);
        assert!(
            text.contains("rank 1 (host) and rank 2 (host) have the same GPU (b)"),
            "{text}"
        );
        let text = refused(&[on_gpu("a", 22809), cpu()]);
        assert!(
            text.contains("rank 1 (host) computes on the CPU, but rank 0 (host) on a GPU"),
            "{text}"
        );
        let text = refused(&[on_gpu("a", 22809), on_gpu("b", 23203)]);
        assert!(
            text.contains("rank 1 (host) has NCCL 2.32.3, but rank 0 (host) has 2.28.9"),
            "{text}"
        );
        Ok(())
    }
}
