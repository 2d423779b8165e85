//! Processes that work together, started as a launcher starts them.

use std::process::{Child, Command, Output, Stdio};

use rdpm::world::Port;

/// Those that still run are killed when a test fails.
pub struct Ranks {
    running: Vec<Option<Child>>,
    /// Where they meet, if it was reserved here.
    port: Option<Port>,
}

impl Ranks {
    /// Starts `size` of them, with one thread each; `command` makes the command of a rank.
    pub fn start(size: usize, command: impl Fn(usize) -> Command) -> Self {
        let port = Port::reserve().expect("a port");
        let number = port.number();
        let variables = |rank: usize| {
            let (rank, size) = (rank.to_string(), size.to_string());
            vec![
                ("RANK", rank.clone()),
                ("WORLD_SIZE", size.clone()),
                ("LOCAL_RANK", rank),
                ("LOCAL_WORLD_SIZE", size),
                ("MASTER_ADDR", "127.0.0.1".to_string()),
                ("MASTER_PORT", number.to_string()),
            ]
        };
        let mut ranks = Self::start_with(size, command, variables);
        ranks.port = Some(port);
        ranks
    }

    /// With these variables of each rank.
    pub fn start_with(
        size: usize,
        command: impl Fn(usize) -> Command,
        variables: impl Fn(usize) -> Vec<(&'static str, String)>,
    ) -> Self {
        let running = (0..size).map(|rank| {
            let mut command = command(rank);
            command
                .env("RAYON_NUM_THREADS", "1")
                .envs(variables(rank))
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            Some(command.spawn().expect("it starts"))
        });
        Self {
            running: running.collect(),
            port: None,
        }
    }

    pub fn send(&self, signal: &str, rank: usize) {
        let id = self.running[rank].as_ref().expect("it runs").id();
        let mut kill = Command::new("kill");
        let sent = kill.args([signal, &id.to_string()]);
        assert!(sent.status().expect("kill runs").success());
    }

    /// What each said in the end.
    pub fn end(mut self) -> Vec<Output> {
        let ranks = self.running.iter_mut().map(|rank| rank.take());
        let ended = ranks.map(|child| child.expect("it runs").wait_with_output());
        ended.map(|output| output.expect("it ends")).collect()
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        for child in self.running.iter_mut().flatten() {
            // It may have ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
