//! The processes that train a run together, or share other work, and what they tell each other.
//!
//! A [`World`] has W ranks, one process each, which hold the same model and do the same steps, each
//! with its [`Share`] of the micro-batches. What a step adds up over a batch goes through the
//! world, in the order of ranks; rank 0 alone writes files and the log. A world of one process has
//! no thread and no connection.
//!
//! Ranks that do not train share work whose pieces are independent, such as samples: [`parcels`].
//!
//! [`place`] finds this process's rank in what its launcher says, [`star`] connects all ranks to
//! rank 0, over which all data go but those on GPUs, which go from one to the other (`gpus`),
//! [`visitors`] are those who connect before they are known,
//! [`watch`] ends all ranks when one fails, [`wire`] is how values lie in a message.

#[cfg(feature = "cuda")]
mod gpus;
mod parcels;
mod place;
mod port;
mod share;
mod star;
mod visitors;
mod watch;
mod wire;

use std::sync::Arc;
use std::time::Instant;

use crate::error::{Error, Result, hinted};
use star::Link;
use wire::Kind;

pub use parcels::{Bytes, Parcel};
pub use place::Place;
pub use port::Port;
pub use share::Share;
pub(crate) use star::read_frames;
pub use watch::Work;
pub use wire::Number;

/// The processes that work together. All ranks must call the same methods in the same order.
#[derive(Debug, Clone, Default)]
pub struct World(Option<Arc<Link>>);

impl World {
    /// One process.
    pub fn alone() -> Self {
        Self(None)
    }

    /// Meets the other processes of `place`, for `work`.
    pub fn join(place: &Place, work: Work) -> Result<Self> {
        Ok(Self(Some(Arc::new(Link::join(place, work)?))))
    }

    pub fn rank(&self) -> usize {
        self.0.as_ref().map_or(0, |link| link.rank)
    }

    /// The number of ranks.
    pub fn size(&self) -> usize {
        self.0.as_ref().map_or(1, |link| link.size)
    }

    /// Whether this is the rank that writes.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// The micro-batches that are this rank's.
    pub fn share(&self) -> Share {
        Share {
            rank: self.rank(),
            size: self.size(),
        }
    }

    /// Adds the values of all other ranks, in their order, to those of rank 0; elsewhere `values`
    /// stay as they are.
    pub fn sum_at_first<T: Number>(&self, values: &mut [T]) -> Result<()> {
        let Some(link) = &self.0 else {
            return Ok(());
        };
        match self.is_first() {
            true => link.with_others(|_, from| {
                wire::receive_numbers(from, Kind::Sum, values, |sum, x| *sum = sum.plus(x))
            }),
            false => link.with_first(|to| wire::send_numbers(to, Kind::Sum, values)),
        }
    }

    /// Sets `values` of all ranks to those of rank 0.
    pub fn copy_from_first<T: Number>(&self, values: &mut [T]) -> Result<()> {
        let Some(link) = &self.0 else {
            return Ok(());
        };
        match self.is_first() {
            true => link.with_others(|_, to| wire::send_numbers(to, Kind::Copy, values)),
            false => link.with_first(|from| {
                wire::receive_numbers(from, Kind::Copy, values, |to, x| *to = x)
            }),
        }
    }

    /// Sets `values` of all ranks to their sum, added in the order of ranks.
    pub fn sum<T: Number>(&self, values: &mut [T]) -> Result<()> {
        self.sum_at_first(values)?;
        self.copy_from_first(values)
    }

    /// What every rank gave, by rank.
    pub fn gather(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        let Some(link) = &self.0 else {
            return Ok(vec![mine.to_vec()]);
        };
        if !self.is_first() {
            return link.with_first(|first| {
                wire::send(first, Kind::Gather, mine)?;
                star::receive_list(first, Kind::Gather, wire::LONG)
            });
        }
        let mut all = vec![mine.to_vec()];
        link.with_others(|_, from| {
            all.push(wire::expect(from, Kind::Gather, wire::LONG)?);
            Ok(())
        })?;
        link.with_others(|_, to| star::send_list(to, Kind::Gather, &all))?;
        Ok(all)
    }

    /// What every rank gave, by rank, at rank 0; elsewhere nothing, and no rank waits for another.
    pub fn gather_at_first(&self, mine: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        let Some(link) = &self.0 else {
            return Ok(vec![mine]);
        };
        if !self.is_first() {
            link.with_first(|first| wire::send(first, Kind::Gather, &mine))?;
            return Ok(Vec::new());
        }
        let mut all = vec![mine];
        link.with_others(|_, from| {
            all.push(wire::expect(from, Kind::Gather, wire::LONG)?);
            Ok(())
        })?;
        Ok(all)
    }

    /// What rank 0 gave; the others' is ignored.
    pub fn broadcast(&self, mine: Vec<u8>) -> Result<Vec<u8>> {
        let Some(link) = &self.0 else {
            return Ok(mine);
        };
        if !self.is_first() {
            return link.with_first(|from| wire::expect(from, Kind::Broadcast, wire::LONG));
        }
        link.with_others(|_, to| wire::send(to, Kind::Broadcast, &mine))?;
        Ok(mine)
    }

    /// The flags that are set at any rank.
    pub fn agree(&self, flags: u8) -> Result<u8> {
        let Some(link) = &self.0 else {
            return Ok(flags);
        };
        let one = |bytes: Vec<u8>| bytes.first().copied().unwrap_or_default();
        if !self.is_first() {
            return link.with_first(|first| {
                wire::send(first, Kind::Agree, &[flags])?;
                wire::expect(first, Kind::Agree, wire::SHORT).map(one)
            });
        }
        let mut all = flags;
        link.with_others(|_, from| {
            all |= one(wire::expect(from, Kind::Agree, wire::SHORT)?);
            Ok(())
        })?;
        link.with_others(|_, to| wire::send(to, Kind::Agree, &[all]))?;
        Ok(all)
    }

    /// Runs `make` at rank 0 and then, once that has succeeded, at the others: for files that rank
    /// 0 makes and all read.
    pub fn first_then<T>(&self, make: impl FnOnce() -> Result<T>) -> Result<T> {
        if self.is_first() {
            let made = make()?;
            self.agree(0)?;
            return Ok(made);
        }
        self.agree(0)?;
        make()
    }

    /// Errors: at some rank a fact (its name and its value) differs from rank 0's; names both.
    pub fn same(&self, facts: &[(impl AsRef<str>, String)]) -> Result<()> {
        let Some(link) = &self.0 else {
            return Ok(());
        };
        let values: Vec<&str> = facts.iter().map(|(_, value)| value.as_str()).collect();
        let all = self.gather(&serde_json::to_vec(&values)?)?;
        let all: Vec<Vec<String>> = all
            .iter()
            .map(|bytes| serde_json::from_slice(bytes))
            .collect::<std::result::Result<_, _>>()?;
        for (rank, values) in all.iter().enumerate() {
            let mut pairs = facts.iter().zip(all[0].iter().zip(values));
            if let Some(((what, _), (first, its))) = pairs.find(|(_, (first, its))| first != its) {
                let what = what.as_ref();
                return Err(hinted(
                    format!(
                        "{} has {what} {its}, but {} has {first}",
                        link.watch.name(rank),
                        link.watch.name(0)
                    ),
                    "all ranks need the same command, the same data and the same run",
                ));
            }
        }
        Ok(())
    }

    /// This rank has done so many steps, or what else it counts: named if it fails.
    pub fn at(&self, step: u64) {
        if let Some(link) = &self.0 {
            link.watch.at(step);
        }
    }

    /// Since when, after `begin`, this process has not waited for others: now if it waits.
    pub fn alone_since(&self, begin: Instant) -> Instant {
        self.0
            .as_ref()
            .map_or(begin, |link| link.alone_since(begin))
    }

    /// Tells the other ranks that this one fails, before it ends; its GPU no longer waits for them.
    pub fn fails(&self, error: &Error) {
        if let Some(link) = &self.0 {
            link.watch.leave(Some(error));
            #[cfg(feature = "cuda")]
            link.abort_gpus();
        }
    }

    /// Ends this process with an error, which the other ranks hear; for threads that nobody waits
    /// for.
    pub fn end_process(&self, error: Error) -> ! {
        if let Some(link) = &self.0 {
            link.watch.leave(Some(&error));
        }
        watch::end_process(&error)
    }

    /// Waits for all ranks to have done their work; from then on each may end on its own.
    pub fn part(&self) -> Result<()> {
        self.agree(0)?;
        if let Some(link) = &self.0 {
            link.watch.part();
        }
        Ok(())
    }

    /// The result of `work`; if it fails here, the other ranks hear why and end.
    pub fn run<T>(&self, work: impl FnOnce(&World) -> Result<T>) -> Result<T> {
        let Some(link) = &self.0 else {
            return work(self);
        };
        let mut leaving = Leaving(link, Some(hinted("a thread panicked", "")));
        let result = work(self);
        leaving.1 = None;
        if let Err(error) = &result {
            self.fails(error);
            return result;
        }
        #[cfg(feature = "cuda")]
        link.finish_gpus()?;
        result
    }
}

/// Leaves the world, with an error if the work has not ended.
struct Leaving<'a>(&'a Link, Option<Error>);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.watch.leave(self.1.as_ref());
        #[cfg(feature = "cuda")]
        if self.1.is_some() {
            self.0.abort_gpus();
        }
    }
}

#[cfg(test)]
mod tests;
