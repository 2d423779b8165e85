//! This process's place among the processes of a job, as its launcher says in the environment.
//!
//! The first launcher whose variables are complete counts: torchrun (or whoever sets RANK and
//! WORLD_SIZE), Open MPI, MPICH and Intel MPI, srun. A batch script of Slurm that does not use srun
//! has SLURM_NTASKS and SLURM_PROCID too but is one process: only a step's own variables count.

use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::error::{Result, usage};

/// Which process this is, and where the processes meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub rank: usize,
    pub size: usize,
    /// The number among the processes of this machine.
    pub local_rank: usize,
    /// The number of processes of this machine.
    pub local_size: usize,
    /// Where rank 0 listens.
    pub host: String,
    pub port: u16,
    /// What only processes of this job know.
    pub token: String,
    /// How long to wait for the others.
    pub patience: Duration,
}

/// The names of a launcher's variables.
struct Launcher {
    rank: &'static str,
    size: &'static str,
    local_rank: &'static str,
    local_size: &'static str,
    /// Whether one of `rank` and `size` without the other is a mistake.
    both: bool,
    /// Whether it is another launcher that sets `rank` and `size` without `local_size`.
    all: bool,
}

const LAUNCHERS: [Launcher; 5] = [
    Launcher {
        rank: "RANK",
        size: "WORLD_SIZE",
        local_rank: "LOCAL_RANK",
        local_size: "LOCAL_WORLD_SIZE",
        both: true,
        all: false,
    },
    Launcher {
        rank: "OMPI_COMM_WORLD_RANK",
        size: "OMPI_COMM_WORLD_SIZE",
        local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
        local_size: "OMPI_COMM_WORLD_LOCAL_SIZE",
        both: true,
        all: false,
    },
    Launcher {
        rank: "PMI_RANK",
        size: "PMI_SIZE",
        local_rank: "MPI_LOCALRANKID",
        local_size: "MPI_LOCALNRANKS",
        both: false,
        all: true,
    },
    Launcher {
        rank: "SLURM_PROCID",
        size: "SLURM_STEP_NUM_TASKS",
        local_rank: "SLURM_LOCALID",
        local_size: "SLURM_STEP_TASKS_PER_NODE",
        both: false,
        all: false,
    },
    // Others that start processes as MPICH does; srun does too, and its own variables say more.
    Launcher {
        rank: "PMI_RANK",
        size: "PMI_SIZE",
        local_rank: "PMI_LOCAL_RANK",
        local_size: "PMI_LOCAL_SIZE",
        both: false,
        all: false,
    },
];

/// Variables that name the job: equal in its processes and hardly anywhere else.
const JOBS: [&[&str]; 5] = [
    &["RDPM_TOKEN"],
    &["TORCHELASTIC_RUN_ID"],
    &["SLURM_JOB_ID", "SLURM_STEP_ID"],
    &["PMIX_NAMESPACE"],
    &["PMI_JOBID"],
];

/// Ports for jobs that name none: below those that Linux gives to connections.
const PORTS: std::ops::Range<u16> = 20_000..30_000;

/// How long processes wait for each other at the start.
const PATIENCE: Duration = Duration::from_secs(300);

impl Place {
    /// None: this process is alone.
    ///
    /// Errors: variables that contradict each other, or name no place to meet.
    pub fn of_environment() -> Result<Option<Self>> {
        Self::of(&|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn of(variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let Some(launcher) = launcher(variable)? else {
            return Ok(None);
        };
        let number = |name: &str| -> Result<Option<usize>> {
            let Some(text) = variable(name) else {
                return Ok(None);
            };
            // Slurm's form for several machines: 2(x3), or 2(x3),1 where they differ.
            let same = text.split_once("(x").map_or(&*text, |(each, _)| each);
            match same.trim().parse().ok() {
                _ if text.contains(',') => Ok(None),
                None => Err(usage(
                    format!("{name} is `{text}`, expected a number"),
                    "the launcher sets it; unset it to train in one process",
                )),
                found => Ok(found),
            }
        };
        let (Some(rank), Some(size)) = (number(launcher.rank)?, number(launcher.size)?) else {
            return Ok(None);
        };
        if rank >= size {
            return Err(usage(
                format!(
                    "{} is {rank}, but {} is {size}",
                    launcher.rank, launcher.size
                ),
                "ranks are counted from 0",
            ));
        }
        if size == 1 {
            return Ok(None);
        }
        let (local_rank, local_size) = (number(launcher.local_rank)?, number(launcher.local_size)?);
        let token = token(variable);
        let host = host(variable, launcher, local_size == Some(size))?;
        if token.is_none() && !is_loopback(&host) {
            return Err(usage(
                format!("{size} processes meet at {host}, and nothing tells theirs from others'"),
                "set RDPM_TOKEN to the same long random word for all of them",
            ));
        }
        let token = token.unwrap_or_default();
        Ok(Some(Self {
            rank,
            size,
            local_rank: local_rank.unwrap_or(0),
            local_size: local_size.unwrap_or(1),
            host,
            port: port(variable, &token)?,
            token,
            patience: PATIENCE,
        }))
    }
}

/// The first launcher with a rank and a number of ranks.
fn launcher(variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<&'static Launcher>> {
    let mut half = None;
    for launcher in &LAUNCHERS {
        match [launcher.rank, launcher.size].map(|name| variable(name).is_some()) {
            [true, true] if launcher.all && variable(launcher.local_size).is_none() => {}
            [true, true] => return Ok(Some(launcher)),
            [false, false] => {}
            [has_rank, _] if launcher.both => {
                let (set, other) = match has_rank {
                    true => (launcher.rank, launcher.size),
                    false => (launcher.size, launcher.rank),
                };
                half = half.or(Some((set, other)));
            }
            _ => {}
        }
    }
    match half {
        None => Ok(None),
        Some((set, other)) => Err(usage(
            format!("{set} is set, but {other} is not"),
            format!("set both to train in several processes, or unset {set} to train in one"),
        )),
    }
}

/// Where rank 0 listens.
fn host(
    variable: &dyn Fn(&str) -> Option<String>,
    launcher: &Launcher,
    is_one_machine: bool,
) -> Result<String> {
    const HERE: &str = "127.0.0.1";
    if let Some(named) = variable("MASTER_ADDR") {
        return Ok(named);
    }
    if is_one_machine {
        return Ok(HERE.to_string());
    }
    let nodes = variable("SLURM_STEP_NODELIST").filter(|_| launcher.rank == "SLURM_PROCID");
    if let Some(nodes) = nodes {
        return Ok(match variable("SLURM_STEP_NUM_NODES").as_deref() {
            Some("1") => HERE.to_string(),
            _ => first_node(&nodes),
        });
    }
    Err(usage(
        format!(
            "{} and {} say that there are several processes, but not where they meet",
            launcher.rank, launcher.size
        ),
        "set MASTER_ADDR to the machine of rank 0 (127.0.0.1 if all are on one) and MASTER_PORT to a free port of it",
    ))
}

/// The first of Slurm's list of machines: `node[03-05,7],x` begins with node03.
fn first_node(nodes: &str) -> String {
    let end = nodes.find([',', '[']).unwrap_or(nodes.len());
    let (name, rest) = nodes.split_at(end);
    let numbers = rest.strip_prefix('[').unwrap_or_default();
    let first = numbers.split([',', '-', ']']).next().unwrap_or_default();
    format!("{name}{first}")
}

fn port(variable: &dyn Fn(&str) -> Option<String>, token: &str) -> Result<u16> {
    // Under torchrun the port itself is its own store's.
    let is_taken = variable("TORCHELASTIC_USE_AGENT_STORE").as_deref() == Some("True");
    for (name, after) in [("RDPM_PORT", 0), ("MASTER_PORT", u16::from(is_taken))] {
        let Some(text) = variable(name) else {
            continue;
        };
        let port = text.trim().parse::<u16>().ok();
        return port.and_then(|port| port.checked_add(after)).ok_or_else(|| {
            usage(
                format!("{name} is `{text}`, expected a port"),
                "a number from 1024 to 65534 that no other program on the machine of rank 0 uses",
            )
        });
    }
    let digest = Sha256::digest(token.as_bytes());
    let number = u16::from_le_bytes([digest[0], digest[1]]);
    Ok(PORTS.start + number % (PORTS.end - PORTS.start))
}

fn token(variable: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    JOBS.iter().find_map(|names| {
        let values: Option<Vec<String>> = names.iter().map(|name| variable(name)).collect();
        // torchrun's "none": whoever started it gave the job no name.
        values
            .map(|values| values.join("."))
            .filter(|token| token != "none")
    })
}

pub fn is_loopback(host: &str) -> bool {
    let address = host.parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<Option<Place>> {
        let find = |name: &str| {
            let found = variables.iter().find(|(own, _)| *own == name);
            found.map(|(_, value)| value.to_string())
        };
        Place::of(&find)
    }

    fn place(variables: &[(&str, &str)]) -> Place {
        of(variables).expect("no error").expect("a place")
    }

    fn refused(variables: &[(&str, &str)]) -> String {
        let (text, code) = crate::error::report(&of(variables).expect_err("this is refused"));
        assert_eq!(code, 2);
        text
    }

    #[test]
    fn every_launcher_is_understood() {
        let torchrun = place(&[
            ("RANK", "3"),
            ("WORLD_SIZE", "4"),
            ("LOCAL_RANK", "1"),
            ("LOCAL_WORLD_SIZE", "2"),
            ("MASTER_ADDR", "node7"),
            ("MASTER_PORT", "29500"),
            ("TORCHELASTIC_USE_AGENT_STORE", "True"),
            ("TORCHELASTIC_RUN_ID", "run-1"),
            // Inside a job of Slurm.
            ("SLURM_PROCID", "0"),
            ("SLURM_STEP_NUM_TASKS", "2"),
        ]);
        assert_eq!((torchrun.rank, torchrun.size), (3, 4));
        assert_eq!((torchrun.local_rank, torchrun.local_size), (1, 2));
        assert_eq!((&*torchrun.host, torchrun.port), ("node7", 29501));
        assert_eq!(torchrun.token, "run-1");
        let open_mpi = place(&[
            ("OMPI_COMM_WORLD_RANK", "1"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
            ("PMIX_NAMESPACE", "prterun-a-1@1"),
        ]);
        assert_eq!((open_mpi.rank, &*open_mpi.host), (1, "127.0.0.1"));
        assert!(PORTS.contains(&open_mpi.port));
        let mpich = place(&[
            ("PMI_RANK", "0"),
            ("PMI_SIZE", "2"),
            ("MPI_LOCALRANKID", "0"),
            ("MPI_LOCALNRANKS", "2"),
            ("RDPM_PORT", "4000"),
        ]);
        assert_eq!((mpich.rank, mpich.size, mpich.port), (0, 2, 4000));
        let srun = place(&[
            ("SLURM_PROCID", "5"),
            ("SLURM_STEP_NUM_TASKS", "6"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_STEP_TASKS_PER_NODE", "2(x3)"),
            ("SLURM_STEP_NUM_NODES", "3"),
            ("SLURM_STEP_NODELIST", "node[03-05]"),
            ("SLURM_JOB_ID", "88"),
            ("SLURM_STEP_ID", "1"),
            // With srun's support for MPICH.
            ("PMI_RANK", "5"),
            ("PMI_SIZE", "6"),
        ]);
        assert_eq!((srun.rank, srun.size), (5, 6));
        assert_eq!((srun.local_rank, srun.local_size), (1, 2));
        assert_eq!((&*srun.host, &*srun.token), ("node03", "88.1"));
        let other = place(&[
            ("PMI_RANK", "1"),
            ("PMI_SIZE", "2"),
            ("PMI_LOCAL_RANK", "1"),
            ("PMI_LOCAL_SIZE", "2"),
        ]);
        assert_eq!((other.rank, other.local_size), (1, 2));
    }

    #[test]
    fn no_launcher_or_one_process_is_alone() {
        // A batch script without srun has these.
        let batch = [
            ("SLURM_PROCID", "0"),
            ("SLURM_NTASKS", "4"),
            ("SLURM_JOB_ID", "88"),
        ];
        assert_eq!(of(&batch).expect("no error"), None);
        assert_eq!(of(&[]).expect("no error"), None);
        let one = [("RANK", "0"), ("WORLD_SIZE", "1")];
        assert_eq!(of(&one).expect("no error"), None);
    }

    #[test]
    fn variables_that_cannot_be_are_errors_that_name_them() {
        let here = ("MASTER_ADDR", "127.0.0.1");
        let text = refused(&[("RANK", "0")]);
        assert!(
            text.contains("RANK is set, but WORLD_SIZE is not"),
            "{text}"
        );
        let text = refused(&[("WORLD_SIZE", "2")]);
        assert!(
            text.contains("WORLD_SIZE is set, but RANK is not"),
            "{text}"
        );
        let text = refused(&[("RANK", "2"), ("WORLD_SIZE", "2"), here]);
        assert!(text.contains("RANK is 2, but WORLD_SIZE is 2"), "{text}");
        let text = refused(&[("RANK", "x"), ("WORLD_SIZE", "2"), here]);
        assert!(text.contains("RANK is `x`"), "{text}");
        // Never this machine by itself where there may be others.
        let text = refused(&[("RANK", "1"), ("WORLD_SIZE", "2")]);
        assert!(text.contains("set MASTER_ADDR"), "{text}");
        let port = [
            ("RANK", "1"),
            ("WORLD_SIZE", "2"),
            here,
            ("MASTER_PORT", "a"),
        ];
        assert!(refused(&port).contains("MASTER_PORT is `a`"));
        let text = refused(&[("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "node1")]);
        assert!(text.contains("set RDPM_TOKEN"), "{text}");
    }

    #[test]
    fn slurms_lists_begin_with_their_first_machine() {
        for (list, first) in [
            ("node[03-05,7],x", "node03"),
            ("a1", "a1"),
            ("a1,b2", "a1"),
            ("gpu-[7]", "gpu-7"),
        ] {
            assert_eq!(first_node(list), first);
        }
    }
}
